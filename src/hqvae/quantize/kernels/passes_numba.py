"""The functions of `passes_torch.py`, compiled by Numba into one pass over each block.

The same names, arguments and results, for float32 on a CPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from . import passes_torch
from .numba_maths import (
    FAST,
    MIN_KEY,
    exp,
    first,
    inline,
    key_of,
    largest_of,
    log_exponential,
    score_of,
)
from .passes_torch import MIN_LOGIT

_f32 = np.float32
_MIN_LOGIT = _f32(MIN_LOGIT)
_RUNS = 256  # of scores whose largest are compared before each is
_FEW = 64  # places that are found one by one


def _arrays(value: Any) -> Any:
    """NumPy's views of tensors, and of those in named tuples."""
    if isinstance(value, tuple):
        return type(value)(*map(_arrays, value))
    return value.numpy() if isinstance(value, Tensor) else value


def _pass(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a pass, once per machine, and have it take tensors."""
    compiled = njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)(function)

    @functools.wraps(function)
    def on_tensors(*arguments: Any) -> None:
        compiled(*map(_arrays, arguments))

    return on_tensors


@_pass
def nearest(scores, codes):
    for i in range(len(scores)):
        codes[i] = first(scores[i], largest_of(scores[i]))


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


@_pass
def _largest_few(scores, places):
    """Run j has the places j, j + _RUNS, …: their largest are found in vectors, side by side.

    The last of the largest runs' is a bound: of runs that stay below it nothing is looked at.
    """
    count = places.shape[1]
    width = scores.shape[1]
    runs = min(_RUNS, width)
    run_keys = np.empty(runs, np.int32)
    keys = np.empty(count, np.int32)
    for i in range(len(scores)):
        row = scores[i]
        found = places[i]
        for j in range(runs):
            run_keys[j] = key_of(row[j])
        for start in range(runs, width, runs):
            part = row[start : start + runs]  # of a slice LLVM knows that no index is negative
            for j in range(len(part)):
                run_keys[j] = max(run_keys[j], key_of(part[j]))
        held = 0
        for j in range(runs):
            held = _insert(run_keys[j], j, keys, found, held)
        least = keys[count - 1] if held == count else MIN_KEY
        held = 0
        for j in range(runs):
            if run_keys[j] >= least:
                for k in range(j, width, runs):
                    held = _insert(key_of(row[k]), k, keys, found, held)


def largest(scores: Tensor, places: Tensor) -> None:
    """A place that is found is put among the others, one by one: fast for a few of them."""
    (_largest_few if places.shape[1] <= _FEW else passes_torch.largest)(scores, places)


@_pass
def assign(scores, precision, codes, entropy):
    precision = _f32(precision)
    for i in range(len(scores)):
        row = scores[i]
        max_score = largest_of(row)
        codes[i] = first(row, max_score)
        norm = _f32(0.0)
        moment = _f32(0.0)
        for k in range(len(row)):
            x = max((row[k] - max_score) * precision, _MIN_LOGIT)
            p = exp(x)
            norm += p
            moment += p * x
        entropy[i] = _f32(math.log(norm)) - moment / norm


@_pass
def sample(scores, precision, hashes, codes):
    precision = _f32(precision)
    code_hashes = hashes.codes
    for i in range(len(scores)):
        row = scores[i]
        max_score = largest_of(row)
        key = MIN_KEY
        for k in range(len(row)):
            x = max((row[k] - max_score) * precision, _MIN_LOGIT)
            noisy = x - log_exponential(hashes.rows[i], code_hashes[k])
            key = max(key, key_of(noisy))
            row[k] = noisy
        codes[i] = first(row, score_of(key))


@inline
def _relax(row, code_hashes, row_hash, max_score, precision, inv_temperature):
    """Turns scores into w = (x + g) / τ; returns its largest value, log Σ exp x and the entropy."""
    norm = _f32(0.0)
    moment = _f32(0.0)
    key = MIN_KEY
    for k in range(len(row)):
        x = max((row[k] - max_score) * precision, _MIN_LOGIT)
        p = exp(x)
        norm += p
        moment += p * x
        w = (x - log_exponential(row_hash, code_hashes[k])) * inv_temperature
        key = max(key, key_of(w))
        row[k] = w
    log_norm = _f32(math.log(norm))
    return score_of(key), log_norm, log_norm - moment / norm


@_pass
def forward(scores, scale, hashes, stats):
    precision = _f32(scale.precision)
    inv_temperature = _f32(scale.inv_temperature)
    code_hashes = hashes.codes
    for i in range(len(scores)):
        row = scores[i]
        max_score = largest_of(row)
        stats.max_score[i] = max_score
        stats.codes[i] = first(row, max_score)
        max_w, stats.log_norm_p[i], stats.entropy[i] = _relax(
            row, code_hashes, hashes.rows[i], max_score, precision, inv_temperature
        )
        norm = _f32(0.0)
        for k in range(len(row)):
            y = exp(row[k] - max_w)
            norm += y
            row[k] = y
        stats.log_norm_y[i] = max_w + _f32(math.log(norm))
        inv_norm = _f32(1.0) / norm
        for k in range(len(row)):
            row[k] *= inv_norm


@_pass
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
            w = (x - log_exponential(row_hash, code_hashes[k])) * inv_temperature
            y = exp(w - log_norm_y)
            grad_logit = y * (grad_row[k] - delta) * inv_temperature
            grad_logit -= grad_entropy * exp(log_p) * (log_p + entropy)
            moment += grad_logit * x
            grad_score = grad_logit * precision
            row[k] = y
            grad_row[k] = grad_score
            grad_bias[k] += grad_score
        grads.log_s2[i] = -moment
