"""The backend for float32 on CUDA: the interface of `blocked.py` over the kernels in Triton.

Nothing here waits for the GPU.
"""

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .passes_torch import Hashes, RowStats

MAX_DIM = 256  # of the codes: for wider ones a small GPU's memory holds no tile
_MIN_PROGRAMS = 512  # of `backward_codes`: rows are cut into chunks until there are as many


def _sizes(dim: int) -> dict[str, int]:
    """Tile sizes: a tile of codes and two of rows fit into a multiprocessor's memory (99 KiB)."""
    padded = max(16, triton.next_power_of_2(dim))
    if padded <= 64:
        rows, codes = 64, 64
    elif padded <= 128:
        rows, codes = 32, 32
    else:
        rows, codes = 16, 32
    return {"ROWS": rows, "CODES": codes, "DIM": padded, "num_stages": 2}


def _scale(log_s2: Tensor, temperature: Tensor, z: Tensor) -> Tensor:
    """[1/s², 1/τ], made on the device."""
    inv_temperature = 1 / temperature.to(z.device, non_blocking=True)
    return torch.stack([torch.exp(-log_s2), inv_temperature]).to(z.device, torch.float32)


def _empty_codes(z: Tensor) -> Tensor:
    return torch.empty(len(z), dtype=torch.long, device=z.device)


def _run_search(z: Tensor, codebook: Tensor, scale: Tensor, hashes: Hashes | None) -> Tensor:
    codes = _empty_codes(z)
    if len(z):
        sizes = _sizes(z.shape[1])
        grid = (triton.cdiv(len(z), sizes["ROWS"]),)
        unread = Hashes(codes, codes)  # a pointer is needed even where nothing is read
        inputs = (z, codebook, scale, *(hashes or unread))
        shape = (len(z), len(codebook), z.shape[1])
        triton_kernels.search[grid](*inputs, codes, *shape, NOISE=hashes is not None, **sizes)
    return codes


def _run_forward(
    z: Tensor, codebook: Tensor, scale: Tensor, hashes: Hashes | None
) -> tuple[Tensor, RowStats]:
    out = torch.empty_like(z)
    stats = RowStats(_empty_codes(z), *(z.new_empty(len(z)) for _ in RowStats._fields[1:]))
    if len(z):
        sizes = _sizes(z.shape[1])
        grid = (triton.cdiv(len(z), sizes["ROWS"]),)
        unread = Hashes(stats.codes, stats.codes)
        inputs = (z, codebook, scale, *(hashes or unread))
        shape = (len(z), len(codebook), z.shape[1])
        triton_kernels.forward[grid](
            *inputs, out, *stats, *shape, RELAX=hashes is not None, **sizes
        )
    return out, stats


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    return _run_search(z, codebook, z.new_ones(2), None)


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    stats = _run_forward(z, codebook, _scale(log_s2, log_s2.new_ones(()), z), None)[1]
    return stats.codes, stats.entropy


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, hashes: Hashes) -> Tensor:
    return _run_search(z, codebook, _scale(log_s2, log_s2.new_ones(()), z), hashes)


def forward(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, hashes: Hashes
) -> tuple[Tensor, RowStats]:
    return _run_forward(z, codebook, _scale(log_s2, temperature, z), hashes)


def backward(
    grads: tuple[Tensor, Tensor],
    z: Tensor,
    codebook: Tensor,
    log_s2: Tensor,
    temperature: Tensor,
    hashes: Hashes,
    output: tuple[Tensor, RowStats],
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(z):
        return torch.zeros_like(z), torch.zeros_like(codebook), torch.zeros_like(log_s2)
    grad_out, grad_entropy = grads
    out, stats = output
    row_values = torch.stack([*stats[1:], (grad_out * out).sum(1), grad_entropy], 1)
    inputs = (z, codebook, grad_out, _scale(log_s2, temperature, z), row_values, *hashes)
    shape = (len(z), len(codebook), z.shape[1])
    sizes = _sizes(z.shape[1])
    row_tiles = triton.cdiv(len(z), sizes["ROWS"])
    grad_z = torch.empty_like(z)
    grad_log_s2 = z.new_empty(len(z))
    triton_kernels.backward_rows[(row_tiles,)](*inputs, grad_z, grad_log_s2, *shape, **sizes)
    code_tiles = triton.cdiv(len(codebook), sizes["CODES"])
    chunks = min(triton.cdiv(_MIN_PROGRAMS, code_tiles), triton.cdiv(row_tiles, 4))
    chunk = triton.cdiv(triton.cdiv(len(z), chunks), sizes["ROWS"]) * sizes["ROWS"]
    partial = z.new_zeros(chunks, *codebook.shape)
    triton_kernels.backward_codes[(code_tiles, chunks)](*inputs, partial, *shape, chunk, **sizes)
    return grad_z, partial.sum(0), grad_log_s2.sum()
