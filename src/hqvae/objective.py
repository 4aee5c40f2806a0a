"""Elbo, the objective's terms under their names, and Bound, one true draw of the evidence bound.

    J = (D/2)·log σ²  +  Σ_r ‖Z̃_r − Σ_{l∈r} Z_l‖² / (2 Σ_{l∈r} s_l²)  −  Σ_l H(P̂_{s_l²}(Z_l | Z̃_l))            (HQ)

Sums over positions and codes, mean over the batch only: a mean over positions would make the latent terms 10³ times too weak,
and the codebook collapses. The deterministic systems have the same shape, with other terms in the three places. Views of sounds
(`likelihood.py`) and a progressive reconstruction add costs like the first term.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Elbo(NamedTuple):
    """The terms of one batch.

    Shape:
        loss: [], mean over the batch, what training descends
        distortion: [B], ‖x − x̂‖², summed over elements
        views: [B, V], mean squared difference of every view (log spectra of sounds; V = 0 without)
        fit: [B, levels], nats (stochastic) or weighted commitment (deterministic)
        entropy: [B, L], nats
        variance: [L], s_l²
        sigma2: [1 + V] or [2 + 2V], decoder variances (in training mode of the global batch): of the reconstruction and its views, then
            of the progressive one's
        reconstruction: [B, C, *S]
        codes: L × [B, *S_l], nearest codes
        z_e: L × [B, D, *S_l], what each layer quantized, without gradient
        size: D, elements of one signal
        capacity: Σ_l |S_l| log K_l, nats
    """

    loss: Tensor
    distortion: Tensor
    views: Tensor
    fit: Tensor
    entropy: Tensor
    variance: Tensor
    sigma2: Tensor
    reconstruction: Tensor
    codes: tuple[Tensor, ...]
    z_e: tuple[Tensor, ...]
    size: int
    capacity: float

    def bits_per_dim(self, per_unit: float = 127.5) -> Tensor:
        """The objective with its constants, as bits per stored sample. From relaxed samples: a training signal, no bound.

        [(D/2) log 2πeσ² + fit − H + Σ|S_l| log K_l] / (D log 2) + log2 `per_unit`, the stored values in one unit of the signal:
        127.5 for 8 bits in [−1, 1].
        """
        noise = 0.5 * self.size * torch.log(2 * math.pi * math.e * self.sigma2[0])
        stochastic = bool((self.variance > 0).any())
        latent = self.capacity + ((self.fit.sum(1) - self.entropy.sum(1)).mean() if stochastic else 0.0)
        return (noise + latent) / (self.size * math.log(2)) + math.log2(per_unit)

    def log(self, per_unit: float = 127.5) -> dict[str, float | list[float]]:
        """The terms as plain numbers: bits per dimension, PSNR of the batch, per-layer entropies and variances."""
        mean_square = float(self.distortion.mean()) / self.size
        return {
            "loss": float(self.loss.detach()),
            "bits_per_dim": float(self.bits_per_dim(per_unit)),
            "psnr": -10 * math.log10(max(mean_square, 1e-20) / 4),
            "sigma2": float(self.sigma2[0]),
            "fit": self.fit.mean(0).tolist(),
            "entropy": self.entropy.mean(0).tolist(),
            "s2": self.variance.tolist(),
        }


class Bound(NamedTuple):
    """One true draw of the evidence bound: `distortion` [B] = ‖x − x̂‖², and `latent` [B], everything else but the Gaussian's
    σ², in nats with all constants."""

    distortion: Tensor
    latent: Tensor

    def nats(self, sigma2: float, size: int) -> Tensor:
        """−ELBO [B] at decoder variance σ²: (D/2) log 2πσ² + ‖x − x̂‖²/2σ² + latent."""
        return size / 2 * math.log(2 * math.pi * sigma2) + self.distortion / (2 * sigma2) + self.latent
