"""What the passes of `passes_numba.py` do to single scores, and to rows of them.

exp and log are polynomials without branches, so that LLVM turns the loops over codes into vector
instructions. A maximum of floats is taken over their bits as integers: it vectorises without
promising the compiler that nothing is NaN, and a NaN comes out on top.
"""

import math

import numpy as np
from numba import njit

from ..noise import LARGEST, MUL1, MUL2, SMALLEST

FAST = {"reassoc", "nsz", "contract", "arcp"}  # sums in any order; NaN and infinity keep meaning
MIN_KEY = np.int32(-2147483648)
_f32 = np.float32
_i32 = np.int32
_u32 = np.uint32
_LN2 = _f32(math.log(2))
_LOG2E = _f32(1 / math.log(2))
_SMALLEST = _f32(SMALLEST)
_REST = _f32(1 - LARGEST)
_SCALE = _f32(2.0**-31)
_SQRT_HALF = _i32(0x3F3504F3)  # the bits of √½
_MUL1 = _u32(MUL1)
_MUL2 = _u32(MUL2)
inline = njit(fastmath=FAST, inline="always")


@inline
def exp(x):
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
def log_exponential(row_hash, code_hash):
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
def key_of(x):
    """An integer that orders as the float does."""
    bits = _f32(x).view(_i32)
    return _i32(bits ^ _i32(_i32(bits >> _i32(31)) & _i32(0x7FFFFFFF)))


@inline
def score_of(key):
    return _i32(key ^ _i32(_i32(key >> _i32(31)) & _i32(0x7FFFFFFF))).view(_f32)


@inline
def largest_of(row):
    key = MIN_KEY
    for k in range(len(row)):
        key = max(key, key_of(row[k]))
    return score_of(key)


@inline
def first(row, value):
    """The first index where row equals value; 0 where none does (NaN)."""
    index = _i32(0x7FFFFFFF)
    for k in range(len(row)):
        index = min(index, _i32(k) if row[k] == value else _i32(0x7FFFFFFF))
    return index if index < len(row) else _i32(0)
