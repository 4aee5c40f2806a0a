"""Torch's operators: the fastest backend for each device, gradients, and shapes for torch.compile.

    a CPU             `blocked.py`, in one pass over each block with Numba, else in plain torch
    CUDA, float32     `triton_gpu.py`, for D up to 256
    anything else     `blocked.py` in plain torch

Because they are operators, `torch.compile` takes a whole model as one graph.
"""

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hqvae.errors import NonFiniteError

from ..noise import code_hashes, row_hashes
from . import blocked
from .passes_torch import Hashes, RowStats


@cache
def _triton() -> ModuleType | None:
    try:
        return importlib.import_module("hqvae.quantize.kernels.triton_gpu")
    except ImportError:  # no Triton for this platform
        return None


def _backend(z: Tensor) -> ModuleType:
    """The implementation for z's device, dtype and width."""
    triton = _triton() if z.device.type == "cuda" and z.dtype == torch.float32 else None
    return triton if triton is not None and z.shape[1] <= triton.MAX_DIM else blocked


def _check_finite(values: Tensor, z: Tensor, codebook: Tensor) -> None:
    """Raises NonFiniteError when one of `values`, and so a row of z or a code, is not finite.

    One sum over [N], and on a CPU only: a GPU would have to be waited for.
    """
    if z.device.type != "cpu" or torch.isfinite(values.sum()):
        return
    for name, vectors in (("z", z), ("the codebook", codebook)):
        broken = int((~vectors.isfinite().all(1)).sum())
        if broken:
            raise NonFiniteError(
                f"{name} has {broken} of {len(vectors)} rows with values that are not finite"
            )
    raise NonFiniteError("the distances between z and the codebook overflow float32; scale z down")


def _norm(values: Tensor) -> Tensor:
    """A norm of all values, finite where they and their squares are; codes would not tell."""
    on_cpu = values.device.type == "cpu"
    return torch.linalg.vector_norm(values) if on_cpu else values.new_zeros(())


def _hashes(z: Tensor, codebook: Tensor, seed: Tensor, first_row: int) -> Hashes:
    rows = row_hashes(seed, first_row, len(z), z.device)
    return Hashes(rows, code_hashes(seed, len(codebook), z.device))


@torch.library.custom_op("hqvae::nearest", mutates_args=())
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        _check_finite(_norm(z) + _norm(codebook), z, codebook)
        return _backend(z).nearest(z.contiguous(), codebook.contiguous())


@nearest.register_fake
def _(z, codebook):
    return z.new_empty(len(z), dtype=torch.long)


@torch.library.custom_op("hqvae::beam_search", mutates_args=())
def beam_search(
    z: Tensor, codebooks: list[Tensor], centres: list[Tensor], beam_size: int, count: int = 1
) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        for codebook in codebooks:
            _check_finite(_norm(z) + _norm(codebook), z, codebook)
        contiguous = [codebook.contiguous() for codebook in codebooks]
        return blocked.beam_search(z.contiguous(), contiguous, centres, beam_size, count)


@beam_search.register_fake
def _(z, codebooks, centres, beam_size, count=1):
    return z.new_empty(len(z), count, len(codebooks), dtype=torch.long)


@torch.library.custom_op("hqvae::assign", mutates_args=())
def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        codes, entropy = _backend(z).assign(z.contiguous(), codebook.contiguous(), log_s2)
        _check_finite(entropy, z, codebook)
        return codes, entropy


@assign.register_fake
def _(z, codebook, log_s2):
    return z.new_empty(len(z), dtype=torch.long), z.new_empty(len(z))


@torch.library.custom_op("hqvae::sample", mutates_args=())
def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor, first_row: int) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        _check_finite(_norm(z) + _norm(codebook), z, codebook)
        hashes = _hashes(z, codebook, seed, first_row)
        return _backend(z).sample(z.contiguous(), codebook.contiguous(), log_s2, hashes)


@sample.register_fake
def _(z, codebook, log_s2, seed, first_row):
    return z.new_empty(len(z), dtype=torch.long)


@torch.library.custom_op("hqvae::quantize", mutates_args=())
def quantize(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, seed: Tensor, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The relaxed sample, and the fields of `RowStats`."""
    z = z.contiguous()
    codebook = codebook.contiguous()
    hashes = _hashes(z, codebook, seed, first_row)
    with torch.autocast(z.device.type, enabled=False):
        out, stats = _backend(z).forward(z, codebook, log_s2, temperature, hashes)
        _check_finite(stats.entropy, z, codebook)
        return out, *stats


@quantize.register_fake
def _(z, codebook, log_s2, temperature, seed, first_row):
    codes = z.new_empty(len(z), dtype=torch.long)
    return z.new_empty(z.shape), codes, *(z.new_empty(len(z)) for _ in RowStats._fields[1:])


@torch.library.custom_op("hqvae::quantize_backward", mutates_args=())
def quantize_backward(
    grad_out: Tensor,
    grad_entropy: Tensor,
    inputs: list[Tensor],
    first_row: int,
    output: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    z, codebook, log_s2, temperature, seed = inputs
    z = z.contiguous()
    codebook = codebook.contiguous()
    grads = (grad_out.contiguous(), grad_entropy.contiguous())
    hashes = _hashes(z, codebook, seed, first_row)
    out, *stats = output
    result = (out, RowStats(*stats))
    with torch.autocast(z.device.type, enabled=False):
        return _backend(z).backward(grads, z, codebook, log_s2, temperature, hashes, result)


@quantize_backward.register_fake
def _(grad_out, grad_entropy, inputs, first_row, output):
    z, codebook, log_s2, *_ = inputs
    return z.new_empty(z.shape), codebook.new_empty(codebook.shape), log_s2.new_empty(())


def _setup_context(ctx, inputs, output):
    *tensors, ctx.first_row = inputs
    ctx.inputs = len(tensors)
    ctx.save_for_backward(*tensors, *output)
    _out, codes, max_score, _entropy, *log_norms = output
    ctx.mark_non_differentiable(codes, max_score, *log_norms)


def _differentiate(ctx, grad_out, grad_codes, grad_max_score, grad_entropy, *_):
    saved = list(ctx.saved_tensors)  # read once: checkpoints give each saved tensor back once
    inputs = saved[: ctx.inputs]
    output = saved[ctx.inputs :]
    grads = quantize_backward(grad_out, grad_entropy, inputs, ctx.first_row, output)
    return *grads, None, None, None  # temperature, seed and first_row have none


quantize.register_autograd(_differentiate, setup_context=_setup_context)
