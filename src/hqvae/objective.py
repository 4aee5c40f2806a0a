"""Losses, the objective's terms under their names, and ElboSample, one draw of the bound.

    J = (D/2)·log σ²  +  Σ_r ‖Z̃_r − Σ_{l∈r} Z_l‖² / (2 Σ_{l∈r} s_l²)  −  Σ_l H(P̂_{s_l²}(Z_l|Z̃_l))
        reconstruction   latent loss of level r                           entropy of layer l

Sums over positions and codes, mean over the batch only. A mean over positions would make the latent
terms 10³ times too weak, and the codebook collapses. Deterministic systems have the same shape:
their latent loss is the commitment, their entropy is zero. Spectral distances of audio and a
progressive reconstruction add costs like the first term.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Losses(NamedTuple):
    """The terms of one batch.

    Shape:
        loss: [], mean over the batch, what training descends
        distortion: [B], ‖x − x̂‖², summed over elements
        spectral_mse: [B, V], mean squared difference of every log spectrum (V = 0 without)
        latent_loss: [B, levels], in nats, or in mean squared error where `in_nats` is False
        entropy: [B, L], nats
        variance: [L], s_l²
        sigma2: [P, 1 + V], decoder variances (in training mode of the global batch): of the
            reconstruction and its spectra, then of each progressive one
        reconstruction: [B, C, *S]
        codes: L × [B, *S_l], nearest codes
        z_e: levels × [B, D, *S_r], what each level quantized, without gradient
        size: D, elements of one signal
        rate: [B, L], −log p(Z_l) in nats, |S_l| log K_l where the prior is uniform
        in_nats: whether the latent loss is part of the bound
    """

    loss: Float[Tensor, ""]
    distortion: Float[Tensor, "B"]
    spectral_mse: Float[Tensor, "B V"]
    latent_loss: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B L"]
    variance: Float[Tensor, "L"]
    sigma2: Float[Tensor, "P V1"]
    reconstruction: Float[Tensor, "B C ..."]
    codes: tuple[Int[Tensor, "B ..."], ...]
    z_e: tuple[Float[Tensor, "B ..."], ...]
    size: int
    rate: Float[Tensor, "B L"]
    in_nats: bool

    def bits_per_dim(self, per_unit: float = 127.5) -> Float[Tensor, ""]:
        """The objective with its constants, in bits per stored sample.

        [(D/2) log 2πeσ² + latent loss − H + rate] / (D log 2) + log2 `per_unit`,
        the stored values in one unit of the signal: 127.5 for 8 bits in [−1, 1]. It comes from
        relaxed samples: a training signal, no bound.
        """
        gaussian = 0.5 * self.size * torch.log(2 * math.pi * math.e * self.sigma2[0, 0])
        latent = self.rate.sum(1).mean()
        if self.in_nats:
            latent = latent + (self.latent_loss.sum(1) - self.entropy.sum(1)).mean()
        return (gaussian + latent) / (self.size * math.log(2)) + math.log2(per_unit)

    def log(self, per_unit: float = 127.5, square: float = 4.0) -> dict[str, Any]:
        """The terms as plain numbers: bits per dimension, PSNR, every layer's H and s².

        `square` is that of the peak; 1 for signals of variance 1 makes PSNR their SNR.
        """
        mean_square = float(self.distortion.mean()) / self.size
        return {
            "loss": float(self.loss.detach()),
            "bits_per_dim": float(self.bits_per_dim(per_unit)),
            "psnr": -10 * math.log10(max(mean_square, 1e-20) / square),
            "sigma2": float(self.sigma2[0, 0]),
            "latent_loss": self.latent_loss.mean(0).tolist(),
            "entropy": self.entropy.mean(0).tolist(),
            "s2": self.variance.tolist(),
        }


class ElboSample(NamedTuple):
    """One true draw of the evidence bound.

    Shape:
        distortion: [B], ‖x − x̂‖²
        latent: [B], all but the Gaussian's σ², in nats with all constants
    """

    distortion: Float[Tensor, "B"]
    latent: Float[Tensor, "B"]

    def nats(self, sigma2: float, size: int) -> Float[Tensor, "B"]:
        """−ELBO [B] at decoder variance σ²: (D/2) log 2πσ² + ‖x − x̂‖²/2σ² + latent."""
        constant = size / 2 * math.log(2 * math.pi * sigma2)
        return constant + self.distortion / (2 * sigma2) + self.latent
