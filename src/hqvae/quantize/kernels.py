"""Stochastic quantization in Triton, for float32 on CUDA: never more than a tile of rows x codes, in registers.

    _forward      rows' tiles     over all codes: running maxima, sums and the relaxed sample, as flash attention keeps them
    _pull_rows    rows' tiles     over all codes: ∂L/∂z and ∂L/∂log s²
    _pull_codes   codes' tiles    over a share of the rows: ∂L/∂b, one partial sum for each share

The backward kernels compute scores and noise again. The interface is that of `blocked.py`, the formulas are in `reference.py`, the
names of a row's figures in `passes.py`. Nothing here waits for the GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .noise import LARGEST, MUL1, MUL2, SMALLEST
from .passes import FLOOR, Bits, Rows

# Three TF32 products for one: float32's accuracy on the tensor cores, which plain float32 products do not use.
PRECISION = tl.constexpr("tf32x3")
_FLOOR, _MUL1, _MUL2 = tl.constexpr(FLOOR), tl.constexpr(MUL1), tl.constexpr(MUL2)
_SMALLEST, _REST, _LOWEST = tl.constexpr(SMALLEST), tl.constexpr(1 - LARGEST), tl.constexpr(-3e38)
_NEAREST, _ASSIGN, _SAMPLE, _RELAX = (tl.constexpr(mode) for mode in range(4))
WIDEST = 256  # of the codes: for wider ones a small GPU's memory holds no tile
_PROGRAMS = 512  # of `_pull_codes`, at least: rows are shared out until there are as many


@triton.jit
def _log_exponential(rows, codes):
    """As in noise.py: the hashes of rows and codes, made log E."""
    bits = (rows[:, None] ^ codes[None, :]).to(tl.uint32, bitcast=True)
    bits = bits * _MUL1
    bits = bits ^ (bits >> 15)
    bits = bits * _MUL2
    bits = bits ^ (bits >> 16)
    u = tl.maximum((bits & 0x7FFFFFFF).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10, _SMALLEST)
    # log(1 − u) loses a small u's bits, and small u are the noise that decides: there the series, elsewhere the logarithm.
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7)))))))
    return tl.log(tl.where(u < 0.06, series, -tl.log(tl.maximum(1 - u, _REST))))


@triton.jit
def _tile(pointer, rows, columns, count, width):
    """[rows, columns] of a contiguous [count, width], zero outside."""
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None].to(tl.int64) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _scores(z, b, k, codes):
    """z·b − ‖b‖²/2 [rows, codes], the lowest number outside the codebook."""
    scores = tl.dot(z, tl.trans(b), input_precision=PRECISION) - (tl.sum(b * b, 1) / 2)[None, :]
    return tl.where((k < codes)[None, :], scores, _LOWEST)


@triton.jit
def _forward(
    z_ptr, codebook_ptr, scale_ptr, row_bits_ptr, code_bits_ptr, out_ptr, codes_ptr, top_ptr, entropy_ptr, log_norm_ptr, log_mass_ptr,
    count, codes, width, MODE: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    valid = n < count
    z = _tile(z_ptr, n, d, count, width)
    precision, sharpness = tl.load(scale_ptr), tl.load(scale_ptr + 1)
    if MODE >= _SAMPLE:
        hashes = tl.load(row_bits_ptr + n, mask=valid, other=0)
    top, best = tl.full([ROWS], _LOWEST, tl.float32), tl.zeros([ROWS], tl.int32)
    total, moment = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    shift, mass = tl.full([ROWS], _LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    relaxed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, codes, CODES):
        k = first + tl.arange(0, CODES)
        b = _tile(codebook_ptr, k, d, codes, width)
        scores = _scores(z, b, k, codes)
        high, where = tl.max(scores, 1, return_indices=True)
        if MODE != _SAMPLE:
            best = tl.where(high > top, first + where, best)
        if MODE != _NEAREST:
            raised = tl.maximum(top, high)
            rise = tl.maximum((top - raised) * precision, _FLOOR)  # ≤ 0: what the sums so far lose
            x = tl.maximum((scores - raised[:, None]) * precision, _FLOOR)
            p = tl.exp(x)
            moment = tl.exp(rise) * tl.where(total > 0, moment + rise * total, 0.0) + tl.sum(p * x, 1)
            total = tl.exp(rise) * total + tl.sum(p, 1)
            if MODE >= _SAMPLE:
                noise = _log_exponential(hashes, tl.load(code_bits_ptr + k, mask=k < codes, other=0))
                w = tl.where((k < codes)[None, :], (x - noise) * sharpness, _LOWEST)
                lowered = tl.maximum(shift + rise * sharpness, _LOWEST)
                peak, where = tl.max(w, 1, return_indices=True)
                if MODE == _SAMPLE:
                    best = tl.where(peak > lowered, first + where, best)
                shift = tl.maximum(lowered, peak)
                if MODE == _RELAX:
                    y = tl.exp(w - shift[:, None])
                    fade = tl.exp(lowered - shift)
                    mass = fade * mass + tl.sum(y, 1)
                    relaxed = fade[:, None] * relaxed + tl.dot(y, b, input_precision=PRECISION)
        top = tl.maximum(top, high)
    tl.store(codes_ptr + n, best.to(tl.int64), mask=valid)
    if MODE != _NEAREST and MODE != _SAMPLE:
        tl.store(entropy_ptr + n, tl.log(total) - moment / total, mask=valid)
    if MODE == _RELAX:
        inside = valid[:, None] & (d < width)[None, :]
        tl.store(out_ptr + n[:, None].to(tl.int64) * width + d[None, :], relaxed / mass[:, None], mask=inside)
        tl.store(top_ptr + n, top, mask=valid)
        tl.store(log_norm_ptr + n, tl.log(total), mask=valid)
        tl.store(log_mass_ptr + n, shift + tl.log(mass), mask=valid)


@triton.jit
def _slopes(
    z,
    grad_out,
    b,
    k,
    codes,
    hashes,
    n,
    count,
    scale_ptr,
    code_bits_ptr,
    top_ptr,
    entropy_ptr,
    log_norm_ptr,
    log_mass_ptr,
    inner_ptr,
    grad_ptr,
):
    """(y, ∂L/∂logits, x) of a tile, the first two zero where there is no row or no code."""
    scores, pull = _scores(z, b, k, codes), tl.dot(grad_out, tl.trans(b), input_precision=PRECISION)
    precision, sharpness = tl.load(scale_ptr), tl.load(scale_ptr + 1)
    row = n < count
    top, norm = tl.load(top_ptr + n, mask=row, other=0.0)[:, None], tl.load(log_norm_ptr + n, mask=row, other=0.0)[:, None]
    mass, entropy = tl.load(log_mass_ptr + n, mask=row, other=0.0)[:, None], tl.load(entropy_ptr + n, mask=row, other=0.0)[:, None]
    inner, grad = tl.load(inner_ptr + n, mask=row, other=0.0)[:, None], tl.load(grad_ptr + n, mask=row, other=0.0)[:, None]
    inside = row[:, None] & (k < codes)[None, :]
    x = tl.minimum(tl.maximum((scores - top) * precision, _FLOOR), 0.0)
    p = tl.exp(x - norm)
    noise = _log_exponential(hashes, tl.load(code_bits_ptr + k, mask=k < codes, other=0))
    y = tl.where(inside, tl.exp((x - noise) * sharpness - mass), 0.0)
    slope = y * (pull - inner) * sharpness - grad * p * (x - norm + entropy)
    return y, tl.where(inside, slope, 0.0), x


@triton.jit
def _pull_rows(
    z_ptr, codebook_ptr, grad_out_ptr, scale_ptr, row_bits_ptr, code_bits_ptr, top_ptr, entropy_ptr, log_norm_ptr, log_mass_ptr, inner_ptr,
    grad_ptr, grad_z_ptr, grad_log_s2_ptr, count, codes, width, ROWS: tl.constexpr, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    z, grad_out = _tile(z_ptr, n, d, count, width), _tile(grad_out_ptr, n, d, count, width)
    hashes = tl.load(row_bits_ptr + n, mask=n < count, other=0)
    grad_z, moment = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS], tl.float32)
    for first in range(0, codes, CODES):
        k = first + tl.arange(0, CODES)
        b = _tile(codebook_ptr, k, d, codes, width)
        _, slope, x = _slopes(
            z, grad_out, b, k, codes, hashes, n, count, scale_ptr, code_bits_ptr, top_ptr, entropy_ptr, log_norm_ptr, log_mass_ptr,
            inner_ptr, grad_ptr,
        )  # fmt: skip
        moment += tl.sum(slope * x, 1)
        grad_z += tl.dot(slope, b, input_precision=PRECISION)
    inside = (n < count)[:, None] & (d < width)[None, :]
    tl.store(grad_z_ptr + n[:, None].to(tl.int64) * width + d[None, :], grad_z * tl.load(scale_ptr), mask=inside)
    tl.store(grad_log_s2_ptr + n, -moment, mask=n < count)


@triton.jit
def _pull_codes(
    z_ptr, codebook_ptr, grad_out_ptr, scale_ptr, row_bits_ptr, code_bits_ptr, top_ptr, entropy_ptr, log_norm_ptr, log_mass_ptr, inner_ptr,
    grad_ptr, partial_ptr, count, codes, width, share, ROWS: tl.constexpr, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    k, d = tl.program_id(0) * CODES + tl.arange(0, CODES), tl.arange(0, WIDTH)
    b = _tile(codebook_ptr, k, d, codes, width)
    from_y, from_slope, column = tl.zeros([CODES, WIDTH], tl.float32), tl.zeros([CODES, WIDTH], tl.float32), tl.zeros([CODES], tl.float32)
    start = tl.program_id(1) * share
    for first in range(start, tl.minimum(start + share, count), ROWS):
        n = first + tl.arange(0, ROWS)
        z, grad_out = _tile(z_ptr, n, d, count, width), _tile(grad_out_ptr, n, d, count, width)
        hashes = tl.load(row_bits_ptr + n, mask=n < count, other=0)
        y, slope, _ = _slopes(
            z, grad_out, b, k, codes, hashes, n, count, scale_ptr, code_bits_ptr, top_ptr, entropy_ptr, log_norm_ptr, log_mass_ptr,
            inner_ptr, grad_ptr,
        )  # fmt: skip
        from_y += tl.dot(tl.trans(y), grad_out, input_precision=PRECISION)
        from_slope += tl.dot(tl.trans(slope), z, input_precision=PRECISION)
        column += tl.sum(slope, 0)
    grad = from_y + (from_slope - b * column[:, None]) * tl.load(scale_ptr)
    inside = (k < codes)[:, None] & (d < width)[None, :]
    place = (tl.program_id(1).to(tl.int64) * codes + k[:, None]) * width + d[None, :]
    tl.store(partial_ptr + place, grad, mask=inside)


# ---------------------------------------------------------------------------------------------------- as blocked.py


def _sizes(width: int) -> dict[str, int]:
    """Tile sizes: a tile of codes and two of rows, as wide as a code, must fit into a multiprocessor's memory (99 KiB on small ones)."""
    padded = max(16, triton.next_power_of_2(width))
    rows, codes = (64, 64) if padded <= 64 else (32, 32) if padded <= 128 else (16, 32)
    return {"ROWS": rows, "CODES": codes, "WIDTH": padded, "num_stages": 2}


def _scale(log_s2: Tensor, temperature: Tensor, z: Tensor) -> Tensor:
    """[1/s², 1/τ], made on the device."""
    return torch.stack([torch.exp(-log_s2), 1 / temperature.to(z.device, non_blocking=True)]).to(device=z.device, dtype=torch.float32)


def _launch(mode: tl.constexpr, z: Tensor, codebook: Tensor, scale: Tensor, bits: Bits | None) -> tuple[Tensor, Rows]:
    known = Rows(torch.empty(len(z), dtype=torch.long, device=z.device), *(z.new_empty(len(z)) for _ in range(4)))
    out, bits = torch.empty_like(z), bits or Bits(known.codes, known.codes)  # without noise nothing is read there
    sizes = _sizes(z.shape[1])
    if len(z):
        grid = (triton.cdiv(len(z), sizes["ROWS"]),)
        _forward[grid](z, codebook, scale, *bits, out, *known, len(z), len(codebook), z.shape[1], MODE=mode.value, **sizes)
    return out, known


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    return _launch(_NEAREST, z, codebook, z.new_ones(2), None)[1].codes


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    known = _launch(_ASSIGN, z, codebook, _scale(log_s2, log_s2.new_ones(()), z), None)[1]
    return known.codes, known.entropy


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, bits: Bits) -> Tensor:
    return _launch(_SAMPLE, z, codebook, _scale(log_s2, log_s2.new_ones(()), z), bits)[1].codes


def forward(z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, bits: Bits) -> tuple[Tensor, Rows]:
    return _launch(_RELAX, z, codebook, _scale(log_s2, temperature, z), bits)


def backward(
    grads: tuple[Tensor, Tensor], z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, bits: Bits, output: tuple[Tensor, Rows]
) -> tuple[Tensor, Tensor, Tensor]:
    out, known = output
    if not len(z):
        return torch.zeros_like(z), torch.zeros_like(codebook), torch.zeros_like(log_s2)
    sizes, scale, inner = _sizes(z.shape[1]), _scale(log_s2, temperature, z), (grads[0] * out).sum(1)
    given = (z, codebook, grads[0], scale, *bits, *known[1:], inner, grads[1])
    shape = (len(z), len(codebook), z.shape[1])
    grad_z, grad_log_s2 = torch.empty_like(z), z.new_empty(len(z))
    _pull_rows[(triton.cdiv(len(z), sizes["ROWS"]),)](*given, grad_z, grad_log_s2, *shape, **sizes)
    tiles = triton.cdiv(len(codebook), sizes["CODES"])
    shares = min(triton.cdiv(_PROGRAMS, tiles), triton.cdiv(len(z), 4 * sizes["ROWS"]))
    share = triton.cdiv(triton.cdiv(len(z), shares), sizes["ROWS"]) * sizes["ROWS"]
    partial = z.new_zeros(shares, *codebook.shape)
    _pull_codes[(tiles, shares)](*given, partial, *shape, share, **sizes)
    return grad_z, partial.sum(0), grad_log_s2.sum()
