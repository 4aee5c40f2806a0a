"""Stochastic quantization and nearest codes as functions of rows: shapes, dtypes, checks, centring.

Rows and codes go to the operators less the codebook's mean. That changes no distance. But distances
come from products, and products of vectors far from zero would round the distances away.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import operators

# Bound of |log s²|. Gradients have 1/s⁴, which float32 holds up to 44; their factors need room too.
LOG_S2_RANGE = 35.0


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
    promoted = [_promote(z.detach(), codebook.detach()) for codebook in codebooks]
    z = promoted[0][0]
    centres = [_mean(codebook.to(z)) for _, codebook in promoted]
    centred = [codebook.to(z) - centre for (_, codebook), centre in zip(promoted, centres)]
    return operators.beam_search(z, centred, centres, beam_size)


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


def _mean(codebook: Tensor) -> Tensor:
    """[D], a constant for gradients; zero where it is not finite, so that checks name the codes."""
    return codebook.detach().mean(0).nan_to_num(0.0, 0.0, 0.0)


def _centre(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z less the codebook's mean, the codebook less it, the mean)."""
    centre = _mean(codebook)
    return z - centre, codebook - centre, centre


def _clamp(log_s2: Tensor, like: Tensor) -> Tensor:
    return log_s2.to(like.dtype).clamp(-LOG_S2_RANGE, LOG_S2_RANGE)
