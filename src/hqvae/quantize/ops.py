"""The one door to stochastic quantization and the nearest-code search: checks, dtypes, and the implementation of the device.

Each is an operator of torch, so that `torch.compile` takes a whole model without a break, and knows its gradient.

    a CPU             blocked.py, in one pass over each block with Numba, else in plain torch
    CUDA, float32     kernels.py, in Triton, for D up to 256
    anything else     blocked.py in plain torch
"""

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hqvae.errors import NonFiniteError

from . import blocked
from .noise import code_bits, row_bits
from .passes import Bits, Rows

LOG_S2_RANGE = 35.0  # of |log s²|: gradients have 1/s⁴, which float32 bears to 44, and what it multiplies needs room too


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of every row of z: argmin_k ‖z − b_k‖², int64 [N]."""
    z, codebook = _exact(z.detach(), codebook.detach())
    return _nearest(z, codebook)


def nearest_sum(z: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    """One code of each codebook, int64 [N, L], so that ‖z − Σ_l b^l‖² is small: beam search, of the `width` best partial sums.

    Width 1 takes the nearest code to what is left, codebook after codebook. Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"width={width}: expected at least 1")
    exact = [_exact(z.detach(), codebook.detach()) for codebook in codebooks]
    return _nearest_sum(exact[0][0], [codebook.to(exact[0][0]) for _, codebook in exact], width)


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats), without gradient and without noise: what evaluation needs."""
    z, codebook = _exact(z.detach(), codebook.detach())
    return _assign(z, codebook, _bounded(log_s2.detach(), z))


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor | int, first_row: int = 0) -> Tensor:
    """One hard draw per row from P̂ (Gumbel-max), int64 [N]."""
    z, codebook = _exact(z.detach(), codebook.detach())
    return _sample(z, codebook, _bounded(log_s2.detach(), z), torch.as_tensor(seed), first_row)


def quantize(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor | float, seed: Tensor | int, first_row: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(relaxed sample [N, D], exact entropy [N] in nats, nearest codes [N]); gradients reach z, codebook and log_s2.

    `first_row` is the number of rows of the global batch that come before these. Computed in float32 under any autocast,
    in float64 where z or the codebook is float64. log s² outside ±35 counts as ±35 and has no gradient.

    Raises ValueError for z [N, D] and codebook [K, D] of different D, NonFiniteError on a CPU for values that are not.
    """
    z, codebook = _exact(z, codebook)
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    out, codes, _, entropy, *_ = _quantize(z, codebook, _bounded(log_s2, z), temperature, torch.as_tensor(seed), first_row)
    return out, entropy, codes


def _exact(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f"z has shape {list(z.shape)} and the codebook {list(codebook.shape)}; expected [N, D] and [K, D] with one D")
    dtype = torch.float64 if torch.float64 in (z.dtype, codebook.dtype) else torch.float32
    return z.to(dtype), codebook.to(dtype)


def _bounded(log_s2: Tensor, like: Tensor) -> Tensor:
    return log_s2.to(like.dtype).clamp(-LOG_S2_RANGE, LOG_S2_RANGE)


def _refuse_broken(figures: Tensor, z: Tensor, codebook: Tensor) -> None:
    """Raises NonFiniteError when a figure of some row, and so its row or a code, is not finite. One sum over [N], and on a CPU only:
    a GPU would have to be waited for."""
    if z.device.type != "cpu" or torch.isfinite(figures.sum()):
        return
    for name, values in (("z", z), ("the codebook", codebook)):
        broken = int((~values.isfinite().all(1)).sum())
        if broken:
            raise NonFiniteError(f"{name} has {broken} of {len(values)} rows with values that are not finite")
    raise NonFiniteError("the distances between z and the codebook overflow float32; scale z down")


def _size(values: Tensor) -> Tensor:
    """A norm of all values, finite where they are and their squares are; codes alone would not tell."""
    return torch.linalg.vector_norm(values) if values.device.type == "cpu" else values.new_zeros(())


@cache
def _kernels() -> ModuleType | None:
    try:
        return importlib.import_module("hqvae.quantize.kernels")
    except ImportError:  # no Triton for this platform
        return None


def _on(z: Tensor) -> ModuleType:
    """The implementation for z's device, dtype and width."""
    kernels = _kernels() if z.device.type == "cuda" and z.dtype == torch.float32 else None
    return kernels if kernels is not None and z.shape[1] <= kernels.WIDEST else blocked


# ---------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("hqvae::nearest", mutates_args=())
def _nearest(z: Tensor, codebook: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        _refuse_broken(_size(z) + _size(codebook), z, codebook)
        return _on(z).nearest(z.contiguous(), codebook.contiguous())


@_nearest.register_fake
def _(z, codebook):
    return z.new_empty(len(z), dtype=torch.long)


@torch.library.custom_op("hqvae::nearest_sum", mutates_args=())
def _nearest_sum(z: Tensor, codebooks: list[Tensor], width: int) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        for codebook in codebooks:
            _refuse_broken(_size(z) + _size(codebook), z, codebook)
        return blocked.nearest_sum(z.contiguous(), [codebook.contiguous() for codebook in codebooks], width)


@_nearest_sum.register_fake
def _(z, codebooks, width):
    return z.new_empty(len(z), len(codebooks), dtype=torch.long)


@torch.library.custom_op("hqvae::assign", mutates_args=())
def _assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        codes, entropy = _on(z).assign(z.contiguous(), codebook.contiguous(), log_s2)
        _refuse_broken(entropy, z, codebook)
        return codes, entropy


@_assign.register_fake
def _(z, codebook, log_s2):
    return z.new_empty(len(z), dtype=torch.long), z.new_empty(len(z))


@torch.library.custom_op("hqvae::sample", mutates_args=())
def _sample(z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor, first_row: int) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        _refuse_broken(_size(z) + _size(codebook), z, codebook)
        return _on(z).sample(z.contiguous(), codebook.contiguous(), log_s2, _bits(z, codebook, seed, first_row))


@_sample.register_fake
def _(z, codebook, log_s2, seed, first_row):
    return z.new_empty(len(z), dtype=torch.long)


def _bits(z: Tensor, codebook: Tensor, seed: Tensor, first_row: int) -> Bits:
    return Bits(row_bits(seed, first_row, len(z), z.device), code_bits(seed, len(codebook), z.device))


@torch.library.custom_op("hqvae::quantize", mutates_args=())
def _quantize(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, seed: Tensor, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(z, codes, top, entropy, log_norm, log_mass): the relaxed sample and `Rows`."""
    z, codebook = z.contiguous(), codebook.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        out, known = _on(z).forward(z, codebook, log_s2, temperature, _bits(z, codebook, seed, first_row))
        _refuse_broken(known.entropy, z, codebook)
        return out, *known


@_quantize.register_fake
def _(z, codebook, log_s2, temperature, seed, first_row):
    return z.new_empty(z.shape), z.new_empty(len(z), dtype=torch.long), *(z.new_empty(len(z)) for _ in range(4))


@torch.library.custom_op("hqvae::quantize_backward", mutates_args=())
def _quantize_backward(
    grad_out: Tensor, grad_entropy: Tensor, inputs: list[Tensor], first_row: int, saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    z, codebook, log_s2, temperature, seed = inputs
    z, codebook, grads = z.contiguous(), codebook.contiguous(), (grad_out.contiguous(), grad_entropy.contiguous())
    bits, result = _bits(z, codebook, seed, first_row), (saved[0], Rows(*saved[1:]))
    with torch.autocast(z.device.type, enabled=False):
        return _on(z).backward(grads, z, codebook, log_s2, temperature, bits, result)


@_quantize_backward.register_fake
def _(grad_out, grad_entropy, inputs, first_row, saved):
    z, codebook, log_s2, *_ = inputs
    return z.new_empty(z.shape), codebook.new_empty(codebook.shape), log_s2.new_empty(())


def _keep(ctx, inputs, output):
    ctx.first_row = inputs[-1]
    ctx.save_for_backward(*inputs[:-1], *output)
    ctx.mark_non_differentiable(*output[1:3], *output[4:])


def _differentiate(ctx, grad_out, grad_codes, grad_top, grad_entropy, *_):
    inputs, output = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    return *_quantize_backward(grad_out, grad_entropy, list(inputs), ctx.first_row, list(output)), None, None, None


_quantize.register_autograd(_differentiate, setup_context=_keep)
