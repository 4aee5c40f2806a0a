"""The functions of `passes.py`, compiled by Numba into one pass over each block, for float32 on a CPU.

The same names, arguments and results; arrays are NumPy's views of the tensors. exp and log are polynomials without branches, so
that LLVM turns the loops over codes into vector instructions; a maximum of floats is taken over their bits as integers, which
vectorises without promising the compiler that nothing is NaN (and a NaN comes out on top).
"""

import math

import numpy as np
from numba import njit

from .noise import LARGEST, MUL1, MUL2, SMALLEST
from .passes import FLOOR

_f32, _i32, _u32 = np.float32, np.int32, np.uint32
_LN2, _LOG2E = _f32(math.log(2)), _f32(1 / math.log(2))
_SMALLEST, _REST, _SCALE, _FLOOR = _f32(SMALLEST), _f32(1 - LARGEST), _f32(2.0**-31), _f32(FLOOR)
_SQRT_HALF = _i32(0x3F3504F3)  # the bits of √½
_MUL1, _MUL2 = _u32(MUL1), _u32(MUL2)
_FAST = {"reassoc", "nsz", "contract", "arcp"}  # sums in any order; NaN and infinity keep their meaning
_pass = njit(fastmath=_FAST, nogil=True, error_model="numpy", cache=True)
_inline = njit(fastmath=_FAST, inline="always")


@_inline
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


@_inline
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


@_inline
def _log_exponential(row, column):
    """As in noise.py: the hash of a pair, made log E."""
    bits = _u32(row ^ column)
    bits = _u32(bits * _MUL1)
    bits = _u32(bits ^ _u32(bits >> _u32(15)))
    bits = _u32(bits * _MUL2)
    bits = _u32(bits ^ _u32(bits >> _u32(16)))
    u = max(_f32(_i32(bits & _u32(0x7FFFFFFF))) * _SCALE, _SMALLEST)
    rest = _f32(max(_f32(1.0) - u, _REST))
    whole = _f32(rest).view(_i32)
    exponent = _i32(_i32(whole - _SQRT_HALF) >> _i32(23))
    mantissa = _i32(whole - _i32(exponent << _i32(23))).view(_f32)
    t = -u if exponent == 0 else mantissa - _f32(1.0)  # −u and not (1 − u) − 1: small u keep all their bits
    e = _f32(-(_f32(exponent) * _LN2 + _log1p(t)))
    whole = _f32(e).view(_i32)
    exponent = _i32(_i32(whole - _SQRT_HALF) >> _i32(23))
    mantissa = _i32(whole - _i32(exponent << _i32(23))).view(_f32)
    return _f32(exponent) * _LN2 + _log1p(mantissa - _f32(1.0))


@_inline
def _key(x):
    """An integer that orders as the float does."""
    bits = _f32(x).view(_i32)
    return _i32(bits ^ _i32(_i32(bits >> _i32(31)) & _i32(0x7FFFFFFF)))


@_inline
def _unkey(key):
    return _i32(key ^ _i32(_i32(key >> _i32(31)) & _i32(0x7FFFFFFF))).view(_f32)


@_inline
def _largest(row):
    key = _i32(-2147483648)
    for k in range(len(row)):
        key = max(key, _key(row[k]))
    return _unkey(key)


@_inline
def _first(row, value):
    """The first index where row equals value; 0 where none does (NaN)."""
    index = _i32(0x7FFFFFFF)
    for k in range(len(row)):
        index = min(index, _i32(k) if row[k] == value else _i32(0x7FFFFFFF))
    return index if index < len(row) else _i32(0)


@_pass
def nearest(scores, codes):
    for i in range(len(scores)):
        codes[i] = _first(scores[i], _largest(scores[i]))


@_pass
def assign(scores, precision, codes, entropy):
    precision = _f32(precision)
    for i in range(len(scores)):
        row = scores[i]
        top = _largest(row)
        codes[i] = _first(row, top)
        total, moment = _f32(0.0), _f32(0.0)
        for k in range(len(row)):
            x = max((row[k] - top) * precision, _FLOOR)
            p = _exp(x)
            total += p
            moment += p * x
        entropy[i] = _f32(math.log(total)) - moment / total


@_pass
def sample(scores, precision, bits, codes):
    precision, columns = _f32(precision), bits.codes
    for i in range(len(scores)):
        row = scores[i]
        top, key = _largest(row), _i32(-2147483648)
        for k in range(len(row)):
            noisy = max((row[k] - top) * precision, _FLOOR) - _log_exponential(bits.rows[i], columns[k])
            key = max(key, _key(noisy))
            row[k] = noisy
        codes[i] = _first(row, _unkey(key))


@_inline
def _relax(row, columns, hash, top, precision, sharpness):
    """Turns scores into w = (x + g) / τ; returns its largest value, log Σ exp x and the entropy."""
    total, moment, key = _f32(0.0), _f32(0.0), _i32(-2147483648)
    for k in range(len(row)):
        x = max((row[k] - top) * precision, _FLOOR)
        p = _exp(x)
        total += p
        moment += p * x
        w = (x - _log_exponential(hash, columns[k])) * sharpness
        key = max(key, _key(w))
        row[k] = w
    log_norm = _f32(math.log(total))
    return _unkey(key), log_norm, log_norm - moment / total


@_pass
def forward(scores, scale, bits, rows):
    precision, sharpness, columns = _f32(scale.precision), _f32(scale.sharpness), bits.codes
    for i in range(len(scores)):
        row = scores[i]
        top = _largest(row)
        rows.top[i], rows.codes[i] = top, _first(row, top)
        shift, rows.log_norm[i], rows.entropy[i] = _relax(row, columns, bits.rows[i], top, precision, sharpness)
        mass = _f32(0.0)
        for k in range(len(row)):
            y = _exp(row[k] - shift)
            mass += y
            row[k] = y
        rows.log_mass[i] = shift + _f32(math.log(mass))
        share = _f32(1.0) / mass
        for k in range(len(row)):
            row[k] *= share


@_pass
def backward(scores, pull, bias, scale, bits, rows, slopes):
    precision, sharpness, columns, column = _f32(scale.precision), _f32(scale.sharpness), bits.codes, slopes.column
    for i in range(len(scores)):
        row, forces, hash = scores[i], pull[i], bits.rows[i]
        top, norm, mass, entropy = rows.top[i], rows.log_norm[i], rows.log_mass[i], rows.entropy[i]
        inner, grad_entropy, moment = slopes.inner[i], slopes.entropy[i], _f32(0.0)
        for k in range(len(row)):
            x = min(max((row[k] + bias[k] - top) * precision, _FLOOR), _f32(0.0))  # `top` was rounded otherwise
            p = _exp(x - norm)
            y = _exp((x - _log_exponential(hash, columns[k])) * sharpness - mass)
            slope = y * (forces[k] - inner) * sharpness - grad_entropy * p * (x - norm + entropy)
            moment += slope * x
            slope *= precision
            row[k] = y
            forces[k] = slope
            column[k] += slope
        slopes.log_s2[i] = -moment
