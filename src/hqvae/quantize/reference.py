"""Stochastic quantization as the formulas read, with every N x K array: what the fast versions are tested and timed against.

    P̂(b_k | z̃) ∝ exp(−‖z̃ − b_k‖² / 2s²)                                                      (SQ-VAE, eq. 7)
    z = Σ_k y_k b_k,   y = softmax((log P̂ + g) / τ),   g ~ Gumbel(0, 1)                       (the relaxed sample)
    H = −Σ_k p_k log p_k,   p = P̂, without noise                                              (exact entropy)

Rows are flat: z [N, D], codebook [K, D]. Computes in the dtype it is given; gradients are autograd's.
"""

import torch
from torch import Tensor

from .noise import code_bits, log_exponential, row_bits


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    """‖z − b_k‖² [N, K]."""
    return z.square().sum(1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(1)


def gumbel(z: Tensor, codebook: Tensor, seed: Tensor, first_row: int) -> Tensor:
    """g [N, K], the noise that every implementation draws."""
    rows, codes = row_bits(seed, first_row, len(z), z.device), code_bits(seed, len(codebook), z.device)
    return -log_exponential(rows, codes).to(z.dtype)


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k ‖z − b_k‖², int64 [N]."""
    return distances(z, codebook).argmin(1)


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats)."""
    square = distances(z, codebook)
    log_p = torch.log_softmax(-square / (2 * log_s2.exp()), 1)
    return square.argmin(1), -(log_p.exp() * log_p).sum(1)


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, seed: Tensor, first_row: int = 0) -> Tensor:
    """One hard draw per row from P̂ (Gumbel-max), int64 [N]."""
    return (-distances(z, codebook) / (2 * log_s2.exp()) + gumbel(z, codebook, seed, first_row)).argmax(1)


def quantize(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: float, seed: Tensor, first_row: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(relaxed sample [N, D], exact entropy [N] in nats, nearest codes [N]); gradients reach z, codebook and log_s2."""
    square = distances(z, codebook)
    log_p = torch.log_softmax(-square / (2 * log_s2.exp()), 1)
    y = torch.softmax((log_p + gumbel(z, codebook, seed, first_row)) / temperature, 1)
    return y @ codebook, -(log_p.exp() * log_p).sum(1), square.argmin(1)
