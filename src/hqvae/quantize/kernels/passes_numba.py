"""The functions of `passes_torch.py`, compiled by Numba into one pass over each block.

The same names, arguments and results, for float32 on a CPU. exp and log are polynomials without
branches, so that LLVM turns the loops over codes into vector instructions. A maximum of floats is
taken over their bits as integers, and so vectorises without a promise that nothing is NaN. All that
is compiled is in this file: Numba's cache sees no change of another.
"""

import math

import numpy as np
from torch import Tensor

from ..noise import LARGEST, MUL1, MUL2, SMALLEST
from . import passes_torch
from .numba_pass import compiled_pass, inline
from .passes_torch import MIN_LOGIT

_f32 = np.float32
_i32 = np.int32
_u32 = np.uint32
_LN2 = _f32(math.log(2))
_LOG2E = _f32(1 / math.log(2))
_SMALLEST = _f32(SMALLEST)
_REST = _f32(1 - LARGEST)
_SCALE = _f32(2.0**-31)
_MIN_LOGIT = _f32(MIN_LOGIT)
_SQRT_HALF = _i32(0x3F3504F3)  # the bits of √½
_MIN_KEY = _i32(-2147483648)
_MUL1 = _u32(MUL1)
_MUL2 = _u32(MUL2)
_RUNS = 256  # of scores whose largest are compared before each is
_FEW = 64  # places that are found one by one


@inline
def _exp(x):
    """e^x for x ≤ 0, to 1e-7 of itself; zero below the smallest normal number."""
    x = max(x * _LOG2E, _f32(-126.0))
    n = np.floor(x + _f32(0.5))
    r = x - n
    p = _f32(1.535336188319500e-4)  # minimax polynomial of 2^r on [−½, ½] (Cephes)
    p = p * r + _f32(1.339887440266574e-3)
    p = p * r + _f32(9.618437357674640e-3)
    p = p * r + _f32(5.550332471162809e-2)
    p = p * r + _f32(2.402264791363012e-1)
    p = p * r + _f32(6.931472028550421e-1)
    p = p * r + _f32(1.0)
    power = _i32((_i32(n) + _i32(127)) << _i32(23)).view(_f32)
    return p * power if x > _f32(-126.0) else _f32(0.0)


@inline
def _log1p(t):
    """log(1 + t) on [√½ − 1, √2 − 1], to 1e-7 of itself (Cephes)."""
    z = t * t
    p = _f32(7.0376836292e-2)
    p = p * t + _f32(-1.1514610310e-1)
    p = p * t + _f32(1.1676998740e-1)
    p = p * t + _f32(-1.2420140846e-1)
    p = p * t + _f32(1.4249322787e-1)
    p = p * t + _f32(-1.6668057665e-1)
    p = p * t + _f32(2.0000714765e-1)
    p = p * t + _f32(-2.4999993993e-1)
    p = p * t + _f32(3.3333331174e-1)
    return (p * t * z - _f32(0.5) * z) + t


@inline
def _log_exponential(row_hash, code_hash):
    """log E from the hashes of a pair, as in noise.py."""
    bits = _u32(row_hash ^ code_hash)
    bits = _u32(bits * _MUL1)
    bits = _u32(bits ^ _u32(bits >> _u32(15)))
    bits = _u32(bits * _MUL2)
    bits = _u32(bits ^ _u32(bits >> _u32(16)))
    u = max(_f32(_i32(bits & _u32(0x7FFFFFFF))) * _SCALE, _SMALLEST)
    rest = _f32(max(_f32(1.0) - u, _REST))
    float_bits = _f32(rest).view(_i32)
    exponent = _i32(_i32(float_bits - _SQRT_HALF) >> _i32(23))
    mantissa = _i32(float_bits - _i32(exponent << _i32(23))).view(_f32)
    # −u and not (1 − u) − 1: small u keep all their bits.
    t = -u if exponent == 0 else mantissa - _f32(1.0)
    e = _f32(-(_f32(exponent) * _LN2 + _log1p(t)))
    float_bits = _f32(e).view(_i32)
    exponent = _i32(_i32(float_bits - _SQRT_HALF) >> _i32(23))
    mantissa = _i32(float_bits - _i32(exponent << _i32(23))).view(_f32)
    return _f32(exponent) * _LN2 + _log1p(mantissa - _f32(1.0))


@inline
def _key(x):
    """An integer that orders as the float does; −0 is 0."""
    bits = _f32(x).view(_i32)
    return bits if bits >= _i32(0) else _i32(_MIN_KEY - bits)


@inline
def _unkey(key):
    return _i32(key if key >= _i32(0) else _i32(_MIN_KEY - key)).view(_f32)


@inline
def _largest(row):
    key = _MIN_KEY
    for k in range(len(row)):
        key = max(key, _key(row[k]))
    return _unkey(key)


@inline
def _first(row, value):
    """The first index where row equals value; 0 where none does (NaN)."""
    index = _i32(0x7FFFFFFF)
    for k in range(len(row)):
        index = min(index, _i32(k) if row[k] == value else _i32(0x7FFFFFFF))
    return index if index < len(row) else _i32(0)


@compiled_pass
def nearest(scores, codes):
    for i in range(len(scores)):
        codes[i] = _first(scores[i], _largest(scores[i]))


@inline
def _insert(key, place, keys, places, held):
    """Put a place among those held, the largest key first, and of equals the first place."""
    at = min(held, len(keys) - 1)
    if held == len(keys) and (key < keys[at] or (key == keys[at] and place > places[at])):
        return held
    while at > 0 and (keys[at - 1] < key or (keys[at - 1] == key and places[at - 1] > place)):
        keys[at] = keys[at - 1]
        places[at] = places[at - 1]
        at -= 1
    keys[at] = key
    places[at] = place
    return min(held + 1, len(keys))


@compiled_pass
def _largest_few(scores, places):
    """Run j has the places j, j + _RUNS, …: their largest are found in vectors, side by side.

    The last of the largest runs' is a bound: of runs that stay below it nothing is looked at.
    """
    width = scores.shape[1]
    runs = min(_RUNS, width)
    run_keys = np.empty(runs, np.int32)
    keys = np.empty(places.shape[1], np.int32)
    for i in range(len(scores)):
        row = scores[i]
        found = places[i]
        for j in range(runs):
            run_keys[j] = _key(row[j])
        for start in range(runs, width, runs):
            part = row[start : start + runs]  # of a slice LLVM knows that no index is negative
            for j in range(len(part)):
                run_keys[j] = max(run_keys[j], _key(part[j]))
        held = 0
        for j in range(runs):
            held = _insert(run_keys[j], j, keys, found, held)
        least = keys[len(keys) - 1]  # there are as many runs as places wanted, and more
        held = 0
        for j in range(runs):
            if run_keys[j] >= least:
                for k in range(j, width, runs):
                    held = _insert(_key(row[k]), k, keys, found, held)


def largest(scores: Tensor, places: Tensor) -> None:
    """Places are put among others one by one, which is fast for a few of them."""
    (_largest_few if places.shape[1] <= _FEW else passes_torch.largest)(scores, places)


@compiled_pass
def assign(scores, precision, codes, entropy):
    precision = _f32(precision)
    for i in range(len(scores)):
        row = scores[i]
        max_score = _largest(row)
        codes[i] = _first(row, max_score)
        norm = _f32(0.0)
        moment = _f32(0.0)
        for k in range(len(row)):
            x = max((row[k] - max_score) * precision, _MIN_LOGIT)
            p = _exp(x)
            norm += p
            moment += p * x
        entropy[i] = _f32(math.log(norm)) - moment / norm


@compiled_pass
def sample(scores, precision, hashes, codes):
    precision = _f32(precision)
    code_hashes = hashes.codes
    for i in range(len(scores)):
        row = scores[i]
        max_score = _largest(row)
        key = _MIN_KEY
        for k in range(len(row)):
            x = max((row[k] - max_score) * precision, _MIN_LOGIT)
            noisy = x - _log_exponential(hashes.rows[i], code_hashes[k])
            key = max(key, _key(noisy))
            row[k] = noisy
        codes[i] = _first(row, _unkey(key))


@inline
def _relax(row, code_hashes, row_hash, max_score, precision, inv_temperature):
    """Turns scores into w = (x + g) / τ; returns its largest value, log Σ exp x and the entropy."""
    norm = _f32(0.0)
    moment = _f32(0.0)
    key = _MIN_KEY
    for k in range(len(row)):
        x = max((row[k] - max_score) * precision, _MIN_LOGIT)
        p = _exp(x)
        norm += p
        moment += p * x
        w = (x - _log_exponential(row_hash, code_hashes[k])) * inv_temperature
        key = max(key, _key(w))
        row[k] = w
    log_norm = _f32(math.log(norm))
    return _unkey(key), log_norm, log_norm - moment / norm


@compiled_pass
def forward(scores, scale, hashes, stats):
    precision = _f32(scale.precision)
    inv_temperature = _f32(scale.inv_temperature)
    code_hashes = hashes.codes
    for i in range(len(scores)):
        row = scores[i]
        max_score = _largest(row)
        stats.max_score[i] = max_score
        stats.codes[i] = _first(row, max_score)
        max_w, stats.log_norm_p[i], stats.entropy[i] = _relax(
            row, code_hashes, hashes.rows[i], max_score, precision, inv_temperature
        )
        norm = _f32(0.0)
        for k in range(len(row)):
            y = _exp(row[k] - max_w)
            norm += y
            row[k] = y
        stats.log_norm_y[i] = max_w + _f32(math.log(norm))
        inv_norm = _f32(1.0) / norm
        for k in range(len(row)):
            row[k] *= inv_norm


@compiled_pass
def backward(scores, grad_scores, bias, scale, hashes, stats, grads):
    precision = _f32(scale.precision)
    inv_temperature = _f32(scale.inv_temperature)
    code_hashes = hashes.codes
    grad_bias = grads.bias
    for i in range(len(scores)):
        row = scores[i]
        grad_row = grad_scores[i]
        row_hash = hashes.rows[i]
        max_score = stats.max_score[i]
        entropy = stats.entropy[i]
        log_norm_p = stats.log_norm_p[i]
        log_norm_y = stats.log_norm_y[i]
        delta = grads.delta[i]
        grad_entropy = grads.entropy[i]
        for k in range(len(row)):
            row[k] += bias[k]  # in a loop of its own: here it is rounded as in the forward pass
        moment = _f32(0.0)
        for k in range(len(row)):
            x = max((row[k] - max_score) * precision, _MIN_LOGIT)
            x = min(x, _f32(0.0))  # where a product was rounded otherwise after all
            log_p = x - log_norm_p
            w = (x - _log_exponential(row_hash, code_hashes[k])) * inv_temperature
            y = _exp(w - log_norm_y)
            grad_logit = y * (grad_row[k] - delta) * inv_temperature
            grad_logit -= grad_entropy * _exp(log_p) * (log_p + entropy)
            moment += grad_logit * x
            grad_score = grad_logit * precision
            row[k] = y
            grad_row[k] = grad_score
            grad_bias[k] += grad_score
        grads.log_s2[i] = -moment
