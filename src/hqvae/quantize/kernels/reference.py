"""Stochastic quantization as the formulas read, with every N x K array.

    P̂(b_k | z̃) ∝ exp(−‖z̃ − b_k‖² / 2s²)                              (SQ-VAE, eq. 7)
    z = Σ_k y_k b_k,   y = softmax((log P̂ + g) / τ),   g ~ Gumbel(0, 1)   (relaxed sample)
    H = −Σ_k p_k log p_k,   p = P̂, without noise                      (exact entropy)

The fast implementations are tested and timed against this one. Rows are flat: z [N, D], codebook
[K, D]. Computes in the dtype it is given; gradients are autograd's.
"""

import torch
from torch import Tensor

from ..noise import code_hashes, log_exponential, row_hashes


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    """‖z − b_k‖² [N, K]; with both less the codebook's mean, little of them is rounded away."""
    centre = codebook.detach().mean(0)
    z = z - centre
    codebook = codebook - centre
    z_norm = z.square().sum(1, keepdim=True)
    return z_norm - 2 * z @ codebook.T + codebook.square().sum(1)


def log_posterior(z: Tensor, codebook: Tensor, log_s2: Tensor) -> Tensor:
    """log P̂(b_k | z) [N, K]."""
    return torch.log_softmax(-distances(z, codebook) / (2 * log_s2.exp()), 1)


def gumbel(z: Tensor, codebook: Tensor, seed: Tensor, first_row: int) -> Tensor:
    """g [N, K], the noise that every implementation draws."""
    rows = row_hashes(seed, first_row, len(z), z.device)
    codes = code_hashes(seed, len(codebook), z.device)
    return -log_exponential(rows, codes).to(z.dtype)


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k ‖z − b_k‖², int64 [N]."""
    return distances(z, codebook).argmin(1)


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats)."""
    log_p = log_posterior(z, codebook, log_s2)
    return nearest(z, codebook), -(log_p.exp() * log_p).sum(1)


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor, first_row: int = 0) -> Tensor:
    """One hard sample per row from P̂ (Gumbel-max), int64 [N]."""
    log_p = log_posterior(z, codebook, log_s2)
    return (log_p + gumbel(z, codebook, seed, first_row)).argmax(1)


def quantize(
    z: Tensor,
    codebook: Tensor,
    log_s2: Tensor,
    temperature: float,
    seed: Tensor,
    first_row: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(relaxed sample [N, D], exact entropy [N] in nats, nearest codes [N]), differentiable."""
    square = distances(z, codebook)
    log_p = torch.log_softmax(-square / (2 * log_s2.exp()), 1)
    y = torch.softmax((log_p + gumbel(z, codebook, seed, first_row)) / temperature, 1)
    centre = codebook.detach().mean(0)  # Σ y = 1
    out = y @ (codebook - centre) + centre
    return out, -(log_p.exp() * log_p).sum(1), square.argmin(1)
