"""Triton kernels of stochastic quantization: never more than a tile of rows x codes, in registers.

    search            tiles of rows     over all codes: the nearest code, or a hard sample
    forward           tiles of rows     over all codes: running maxima, sums and relaxed sample, as
                                        in flash attention
    backward_rows     tiles of rows     over all codes: ∂L/∂z and ∂L/∂log s²
    backward_codes    tiles of codes    over a chunk of the rows: ∂L/∂b, one partial sum per chunk

The backward kernels compute scores and noise again. The formulas are in `reference.py`, the names
of a row's values in `passes_torch.py`; `triton_gpu.py` launches the kernels.
"""

import triton
import triton.language as tl

from ..noise import LARGEST, MUL1, MUL2, SMALLEST
from .passes_torch import MIN_LOGIT

# Three TF32 products for one: the accuracy of float32 on tensor cores, which have no float32.
PRECISION = tl.constexpr("tf32x3")
_MIN_LOGIT = tl.constexpr(MIN_LOGIT)
_LOWEST = tl.constexpr(-3e38)
_MUL1 = tl.constexpr(MUL1)
_MUL2 = tl.constexpr(MUL2)
_SMALLEST = tl.constexpr(SMALLEST)
_REST = tl.constexpr(1 - LARGEST)

# Kernels take pointers and sizes one by one, hence the long argument lists: inputs, outputs, sizes.
# Rows are n, codes k, dimensions d.


@triton.jit
def _log_exponential(row_hashes, code_hashes):
    """log E from the hashes of rows and codes, as in noise.py."""
    bits = (row_hashes[:, None] ^ code_hashes[None, :]).to(tl.uint32, bitcast=True)
    bits = bits * _MUL1
    bits = bits ^ (bits >> 15)
    bits = bits * _MUL2
    bits = bits ^ (bits >> 16)
    u = (bits & 0x7FFFFFFF).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10
    u = tl.maximum(u, _SMALLEST)
    # log(1 − u) loses the bits of small u, and they are the noise that decides: there the series.
    series = 1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7)))
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * series)))
    return tl.log(tl.where(u < 0.06, series, -tl.log(tl.maximum(1 - u, _REST))))


@triton.jit
def _offsets(rows, columns, width):
    return rows[:, None].to(tl.int64) * width + columns[None, :]


@triton.jit
def _inside(rows, columns, num_rows, num_columns):
    return (rows < num_rows)[:, None] & (columns < num_columns)[None, :]


@triton.jit
def _load_tile(pointer, rows, d, num_rows, dim):
    """[rows, d] of a contiguous [num_rows, dim], zero outside."""
    inside = _inside(rows, d, num_rows, dim)
    return tl.load(pointer + _offsets(rows, d, dim), mask=inside, other=0.0)


@triton.jit
def _scores(z, b, k, num_codes):
    """z·b − ‖b‖²/2 [n, k], the lowest number outside the codebook."""
    scores = tl.dot(z, tl.trans(b), input_precision=PRECISION) - (tl.sum(b * b, 1) / 2)[None, :]
    return tl.where((k < num_codes)[None, :], scores, _LOWEST)


@triton.jit
def _add_noise(x, row_hashes, code_hashes_ptr, k, num_codes, inv_temperature):
    """(x + g) / τ, the lowest number outside the codebook."""
    code_hashes = tl.load(code_hashes_ptr + k, mask=k < num_codes, other=0)
    w = (x - _log_exponential(row_hashes, code_hashes)) * inv_temperature
    return tl.where((k < num_codes)[None, :], w, _LOWEST)


@triton.jit
def _running_argmax(values, first, max_value, best):
    """The largest value of each row so far and its code, with a tile that begins at `first`."""
    tile_max, index = tl.max(values, 1, return_indices=True)
    best = tl.where(tile_max > max_value, first + index, best)
    return tl.maximum(max_value, tile_max), best


@triton.jit
def search(
    z_ptr, codebook_ptr, scale_ptr, row_hashes_ptr, code_hashes_ptr, codes_ptr,
    num_rows, num_codes, dim,
    NOISE: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    z = _load_tile(z_ptr, n, d, num_rows, dim)
    best = tl.zeros([ROWS], tl.int32)
    max_score = tl.full([ROWS], _LOWEST, tl.float32)
    if NOISE:
        precision = tl.load(scale_ptr)
        row_hashes = tl.load(row_hashes_ptr + n, mask=n < num_rows, other=0)
        max_w = tl.full([ROWS], _LOWEST, tl.float32)
    for first in range(0, num_codes, CODES):
        k = first + tl.arange(0, CODES)
        scores = _scores(z, _load_tile(codebook_ptr, k, d, num_codes, dim), k, num_codes)
        if NOISE:
            new_max = tl.maximum(max_score, tl.max(scores, 1))
            x = tl.maximum((scores - new_max[:, None]) * precision, _MIN_LOGIT)
            w = _add_noise(x, row_hashes, code_hashes_ptr, k, num_codes, 1.0)
            shift = tl.maximum((max_score - new_max) * precision, _MIN_LOGIT)
            max_w, best = _running_argmax(w, first, tl.maximum(max_w + shift, _LOWEST), best)
            max_score = new_max
        else:
            max_score, best = _running_argmax(scores, first, max_score, best)
    tl.store(codes_ptr + n, best.to(tl.int64), mask=n < num_rows)


@triton.jit
def _add_to_p(scores, max_score, new_max, precision, norm, moment):
    """(x of a tile, what earlier x lose, Σ exp x, Σ x exp x), relative to the new largest score."""
    shift = tl.maximum((max_score - new_max) * precision, _MIN_LOGIT)
    x = tl.maximum((scores - new_max[:, None]) * precision, _MIN_LOGIT)
    p = tl.exp(x)
    shifted = tl.where(norm > 0, moment + shift * norm, 0.0)
    moment = tl.exp(shift) * shifted + tl.sum(p * x, 1)
    return x, shift, tl.exp(shift) * norm + tl.sum(p, 1), moment


@triton.jit
def _add_to_y(w, b, max_w, norm, out):
    """(largest w, Σ exp w, Σ exp w · b), the sums relative to the largest, with a tile's w."""
    new_max = tl.maximum(max_w, tl.max(w, 1))
    y = tl.exp(w - new_max[:, None])
    fade = tl.exp(max_w - new_max)
    out = fade[:, None] * out + tl.dot(y, b, input_precision=PRECISION)
    return new_max, fade * norm + tl.sum(y, 1), out


@triton.jit
def forward(
    z_ptr, codebook_ptr, scale_ptr, row_hashes_ptr, code_hashes_ptr,
    out_ptr, codes_ptr, max_score_ptr, entropy_ptr, log_norm_p_ptr, log_norm_y_ptr,
    num_rows, num_codes, dim,
    RELAX: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    z = _load_tile(z_ptr, n, d, num_rows, dim)
    precision = tl.load(scale_ptr)
    best = tl.zeros([ROWS], tl.int32)
    max_score = tl.full([ROWS], _LOWEST, tl.float32)
    norm_p = tl.zeros([ROWS], tl.float32)
    moment = tl.zeros([ROWS], tl.float32)
    if RELAX:
        inv_temperature = tl.load(scale_ptr + 1)
        row_hashes = tl.load(row_hashes_ptr + n, mask=n < num_rows, other=0)
        max_w = tl.full([ROWS], _LOWEST, tl.float32)
        norm_y = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(0, num_codes, CODES):
        k = first + tl.arange(0, CODES)
        b = _load_tile(codebook_ptr, k, d, num_codes, dim)
        scores = _scores(z, b, k, num_codes)
        new_max, best = _running_argmax(scores, first, max_score, best)
        x, shift, norm_p, moment = _add_to_p(scores, max_score, new_max, precision, norm_p, moment)
        max_score = new_max
        if RELAX:
            w = _add_noise(x, row_hashes, code_hashes_ptr, k, num_codes, inv_temperature)
            max_w = tl.maximum(max_w + shift * inv_temperature, _LOWEST)
            max_w, norm_y, out = _add_to_y(w, b, max_w, norm_y, out)
    tl.store(codes_ptr + n, best.to(tl.int64), mask=n < num_rows)
    tl.store(entropy_ptr + n, tl.log(norm_p) - moment / norm_p, mask=n < num_rows)
    if RELAX:
        inside = _inside(n, d, num_rows, dim)
        tl.store(out_ptr + _offsets(n, d, dim), out / norm_y[:, None], mask=inside)
        tl.store(max_score_ptr + n, max_score, mask=n < num_rows)
        tl.store(log_norm_p_ptr + n, tl.log(norm_p), mask=n < num_rows)
        tl.store(log_norm_y_ptr + n, max_w + tl.log(norm_y), mask=n < num_rows)


@triton.jit
def _row_value(row_values_ptr, index, n, num_rows):
    """Column `index` of the row values [N, 6], as [n, 1]."""
    offsets = n.to(tl.int64) * 6 + index
    return tl.load(row_values_ptr + offsets, mask=n < num_rows, other=0.0)[:, None]


@triton.jit
def _tile_grads(
    z, grad_out, b, scale_ptr, row_values_ptr, row_hashes, code_hashes_ptr,
    n, k, num_rows, num_codes,
):  # fmt: skip
    """(y, ∂L/∂logits, x) of a tile, the first two zero where there is no row or no code."""
    scores = _scores(z, b, k, num_codes)  # both products first: later, registers spill
    grad_y = tl.dot(grad_out, tl.trans(b), input_precision=PRECISION)
    precision = tl.load(scale_ptr)
    inv_temperature = tl.load(scale_ptr + 1)
    max_score = _row_value(row_values_ptr, 0, n, num_rows)
    entropy = _row_value(row_values_ptr, 1, n, num_rows)
    log_norm_p = _row_value(row_values_ptr, 2, n, num_rows)
    log_norm_y = _row_value(row_values_ptr, 3, n, num_rows)
    delta = _row_value(row_values_ptr, 4, n, num_rows)
    grad_entropy = _row_value(row_values_ptr, 5, n, num_rows)
    inside = _inside(n, k, num_rows, num_codes)
    x = tl.minimum(tl.maximum((scores - max_score) * precision, _MIN_LOGIT), 0.0)
    w = _add_noise(x, row_hashes, code_hashes_ptr, k, num_codes, inv_temperature)
    y = tl.where(inside, tl.exp(w - log_norm_y), 0.0)
    grad_logits = y * (grad_y - delta) * inv_temperature
    log_p = x - log_norm_p
    grad_logits -= grad_entropy * tl.exp(log_p) * (log_p + entropy)
    return y, tl.where(inside, grad_logits, 0.0), x


@triton.jit
def backward_rows(
    z_ptr, codebook_ptr, grad_out_ptr, scale_ptr, row_values_ptr, row_hashes_ptr, code_hashes_ptr,
    grad_z_ptr, grad_log_s2_ptr,
    num_rows, num_codes, dim,
    ROWS: tl.constexpr, CODES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    z = _load_tile(z_ptr, n, d, num_rows, dim)
    grad_out = _load_tile(grad_out_ptr, n, d, num_rows, dim)
    row_hashes = tl.load(row_hashes_ptr + n, mask=n < num_rows, other=0)
    grad_z = tl.zeros([ROWS, DIM], tl.float32)
    moment = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_codes, CODES):
        k = first + tl.arange(0, CODES)
        b = _load_tile(codebook_ptr, k, d, num_codes, dim)
        _, grad_logits, x = _tile_grads(
            z, grad_out, b, scale_ptr, row_values_ptr, row_hashes, code_hashes_ptr,
            n, k, num_rows, num_codes,
        )  # fmt: skip
        moment += tl.sum(grad_logits * x, 1)
        grad_z += tl.dot(grad_logits, b, input_precision=PRECISION)
    inside = _inside(n, d, num_rows, dim)
    tl.store(grad_z_ptr + _offsets(n, d, dim), grad_z * tl.load(scale_ptr), mask=inside)
    tl.store(grad_log_s2_ptr + n, -moment, mask=n < num_rows)


@triton.jit
def backward_codes(
    z_ptr, codebook_ptr, grad_out_ptr, scale_ptr, row_values_ptr, row_hashes_ptr, code_hashes_ptr,
    partial_ptr,
    num_rows, num_codes, dim, chunk,
    ROWS: tl.constexpr, CODES: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0) * CODES + tl.arange(0, CODES)
    d = tl.arange(0, DIM)
    b = _load_tile(codebook_ptr, k, d, num_codes, dim)
    grad_lookup = tl.zeros([CODES, DIM], tl.float32)  # through z = y B
    grad_scores = tl.zeros([CODES, DIM], tl.float32)  # through scores = z·b − ‖b‖²/2
    grad_bias = tl.zeros([CODES], tl.float32)
    start = tl.program_id(1) * chunk
    for first in range(start, tl.minimum(start + chunk, num_rows), ROWS):
        n = first + tl.arange(0, ROWS)
        z = _load_tile(z_ptr, n, d, num_rows, dim)
        grad_out = _load_tile(grad_out_ptr, n, d, num_rows, dim)
        row_hashes = tl.load(row_hashes_ptr + n, mask=n < num_rows, other=0)
        y, grad_logits, _ = _tile_grads(
            z, grad_out, b, scale_ptr, row_values_ptr, row_hashes, code_hashes_ptr,
            n, k, num_rows, num_codes,
        )  # fmt: skip
        grad_lookup += tl.dot(tl.trans(y), grad_out, input_precision=PRECISION)
        grad_scores += tl.dot(tl.trans(grad_logits), z, input_precision=PRECISION)
        grad_bias += tl.sum(grad_logits, 0)
    grad = grad_lookup + (grad_scores - b * grad_bias[:, None]) * tl.load(scale_ptr)
    offsets = tl.program_id(1).to(tl.int64) * num_codes * dim + _offsets(k, d, dim)
    tl.store(partial_ptr + offsets, grad, mask=_inside(k, d, num_codes, dim))
