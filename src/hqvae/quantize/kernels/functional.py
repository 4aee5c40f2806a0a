"""Stochastic quantization and nearest codes as functions of rows: shapes, dtypes, checks, centring.

Rows and codes go to the operators less the codebook's mean. That changes no distance. But distances
come from products, and products of vectors far from zero would round the distances away.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import operators

# Bound of |log s²|. Gradients have 1/s⁴, which float32 holds up to 44; their factors need room too.
LOG_S2_RANGE = 35.0
_ERROR_ELEMENTS = 1 << 24  # rows x sums x D whose errors are computed at once


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of every row of z: argmin_k ‖z − b_k‖², int64 [N].

    Shape: z [N, D], codebook [K, D].

    Raises ValueError for z and codebook of different D, NonFiniteError on a CPU for values that are
    not finite.
    """
    z, codebook, _ = _centre(*_promote(z.detach(), codebook.detach()))
    return operators.nearest(z, codebook)


def beam_search(z: Tensor, codebooks: Sequence[Tensor], beam_size: int) -> Tensor:
    """One code of each codebook, int64 [N, L], so that ‖z − Σ_l b^l‖² is small.

    After each codebook the `beam_size` best partial sums are kept. A beam of 1 takes the nearest
    code to what is left, codebook after codebook.

    Shape: z [N, D], codebooks L times [K_l, D].

    Raises ValueError for a `beam_size` below 1, and as `nearest` does.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size}: expected at least 1")
    return _search(*_promote_all(z, codebooks), beam_size, 1).squeeze(1)


def candidates(
    z: Tensor, codebooks: Sequence[Tensor], count: int, beam_size: int = 1
) -> tuple[Tensor, Tensor]:
    """The sums that a beam ends with, as (codes [N, B, L], ‖z − Σ_l b^l‖² [N, B]), nearest first.

    B is `count`, or the number of all sums where that is less. The beam keeps `beam_size` partial
    sums, and never fewer than `count`: one that holds all sums orders them all. Of one codebook
    these are the nearest codes.

    Errors are of the sum itself, not of the search's products. Where two are equal, the smaller
    codes come first.

    Shape: z [N, D], codebooks L times [K_l, D].

    Raises ValueError for a `count` below 1, and as `nearest` does.

    >>> codes, errors = candidates(torch.tensor([[0.2]]), [torch.tensor([[0.0], [1.0], [2.0]])], 2)
    >>> codes.tolist(), [round(error, 4) for error in errors[0].tolist()]
    ([[[0], [1]]], [0.04, 0.64])
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1")
    z, codebooks = _promote_all(z, codebooks)
    kept = min(max(beam_size, count), math.prod(map(len, codebooks)))
    codes = _search(z, codebooks, kept, kept)
    errors = z.new_empty(codes.shape[:2])
    rows = max(1, _ERROR_ELEMENTS // (kept * z.shape[1]))
    for start in range(0, len(z), rows):
        block = slice(start, start + rows)
        errors[block] = _square_errors(z[block], codebooks, codes[block])
    order = _nearest_first(codes, errors)[:, :count]
    return codes.gather(1, order.unsqueeze(2).expand(-1, -1, len(codebooks))), errors.gather(
        1, order
    )


def _search(z: Tensor, codebooks: Sequence[Tensor], beam_size: int, count: int) -> Tensor:
    """The codes [N, count, L] of the best sums."""
    centres = [_mean(codebook) for codebook in codebooks]
    centred = [codebook - centre for codebook, centre in zip(codebooks, centres)]
    return operators.beam_search(z, centred, centres, beam_size, count)


def _square_errors(z: Tensor, codebooks: Sequence[Tensor], codes: Tensor) -> Tensor:
    """‖z − Σ_l b^l‖² [N, B]; summed in float64, so that the order, and the batch, has no say."""
    total = codebooks[0][codes[:, :, 0]]
    for codebook, of_layer in zip(codebooks[1:], codes.unbind(2)[1:]):
        total = total + codebook[of_layer]
    return (z.unsqueeze(1) - total).double().square().sum(2).to(z.dtype)


def _nearest_first(codes: Tensor, errors: Tensor) -> Tensor:
    """The order of each row's sums: by error, then by codes from the first layer on."""
    order = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
    for key in (*codes.unbind(2)[::-1], errors):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats), without gradient and without noise.

    Shape: z [N, D], codebook [K, D], log_s2 [].

    Raises as `nearest` does.
    """
    z, codebook, _ = _centre(*_promote(z.detach(), codebook.detach()))
    return operators.assign(z, codebook, _clamp(log_s2.detach(), z))


def sample(
    z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor | int, first_row: int = 0
) -> Tensor:
    """One hard sample per row from P̂ (Gumbel-max), int64 [N].

    Shape: z [N, D], codebook [K, D], log_s2 [].

    `first_row` is the number of rows of the global batch that come before these. Raises as
    `nearest` does.
    """
    z, codebook, _ = _centre(*_promote(z.detach(), codebook.detach()))
    log_s2 = _clamp(log_s2.detach(), z)
    return operators.sample(z, codebook, log_s2, torch.as_tensor(seed), first_row)


def quantize(
    z: Tensor,
    codebook: Tensor,
    log_s2: Tensor,
    temperature: Tensor | float,
    seed: Tensor | int,
    first_row: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(relaxed sample [N, D], exact entropy [N] in nats, nearest codes [N]).

    Gradients reach z, codebook and log_s2. Computed in float32 under any autocast, in float64 where
    z or the codebook is float64. log s² outside ±35 counts as ±35 and has no gradient.

    Args:
        z: [N, D]
        codebook: [K, D]
        log_s2: []
        temperature: τ of the relaxed sample
        seed: of the noise
        first_row: the number of rows of the global batch that come before these

    Raises as `nearest` does.

    >>> z, codebook, log_s2 = torch.randn(10, 4), torch.randn(32, 4), torch.zeros(())
    >>> out, entropy, codes = quantize(z, codebook, log_s2, temperature=0.5, seed=0)
    >>> out.shape, entropy.shape, codes.shape
    (torch.Size([10, 4]), torch.Size([10]), torch.Size([10]))
    """
    z, codebook, centre = _centre(*_promote(z, codebook))
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    log_s2 = _clamp(log_s2, z)
    seed = torch.as_tensor(seed)
    out, codes, _, entropy, *_ = operators.quantize(
        z, codebook, log_s2, temperature, seed, first_row
    )
    return out + centre, entropy, codes


def _promote(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where one is, else in float32."""
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"z has shape {list(z.shape)} and the codebook {list(codebook.shape)}; "
            "expected [N, D] and [K, D] with one D"
        )
    dtype = torch.float64 if torch.float64 in (z.dtype, codebook.dtype) else torch.float32
    return z.to(dtype), codebook.to(dtype)


def _promote_all(z: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All without gradient, in one dtype."""
    promoted = [_promote(z.detach(), codebook.detach()) for codebook in codebooks]
    z = promoted[0][0]
    return z, [codebook.to(z) for _, codebook in promoted]


def _mean(codebook: Tensor) -> Tensor:
    """[D], a constant for gradients; zero where it is not finite, so that checks name the codes."""
    return codebook.detach().mean(0).nan_to_num(0.0, 0.0, 0.0)


def _centre(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z less the codebook's mean, the codebook less it, the mean)."""
    centre = _mean(codebook)
    return z - centre, codebook - centre, centre


def _clamp(log_s2: Tensor, like: Tensor) -> Tensor:
    return log_s2.to(like.dtype).clamp(-LOG_S2_RANGE, LOG_S2_RANGE)
