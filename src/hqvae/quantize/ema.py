"""The deterministic quantizer of VQ-VAE, VQ-VAE-2 and RQ-VAE: nearest code, straight-through, codebook by moving averages.

    N_k ← γ N_k + (1 − γ) n_k      m_k ← γ m_k + (1 − γ) Σ_{z→k} z      b_k = m_k / N_k        (VQ-VAE, appendix A.1)

with Laplace smoothing of N. A code whose N_k falls below 1 can be put back on a random feature of the batch (RQ-VAE, sec. 3); in small
batches, that have few features for each code, below an eighth of its even share: or every code would be put back at every step.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.ranks import all_sum, rows_before_mine

from .base import DataStart, NormalStart, OwnStart, Quantized, Quantizer, Start
from .noise import Noise

_SMOOTHING = 1e-5  # Laplace smoothing of the counts, as in the VQ-VAE authors' code


@config(frozen=True, config=ConfigDict(extra="forbid"))
class EMAConfig:
    """`beta` weighs the commitment, `decay` is γ, `restart` puts unused codes back on features of the batch."""

    kind: Literal["ema"] = "ema"
    beta: float = Field(default=0.25, ge=0)
    decay: float = Field(default=0.99, gt=0, lt=1)
    restart: bool = False
    start: Start | OwnStart = Field(default_factory=NormalStart, discriminator="kind")


class EMAQuantizer(Quantizer):
    """Nearest code with a straight-through gradient; `update` moves the codebook, `forward` never does.

    Args:
        dim: width D of a code
        codebook_size: K ≥ 2
        config: commitment, decay, restart and start

    Shape:
        z_e [B, D, *S] → z [B, D, *S], codes [B, *S], entropy [B] = 0, variance [] = 0
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, dim: int, codebook_size: int, config: EMAConfig = EMAConfig()):
        super().__init__(dim, codebook_size)
        self.config = config
        codebook = torch.randn(codebook_size, dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codebook.clone())

    @property
    def variance(self) -> Tensor:
        """s² = 0: the assignment is deterministic."""
        return self.counts.new_zeros(())

    def sibling(self) -> "EMAQuantizer":
        """The same quantizer: layers that share a codebook share its counts and sums too."""
        return self

    def forward(self, z_e: Float[Tensor, "B D *S"], temperature: Tensor | float = 1.0, noise: Noise | None = None) -> Quantized:
        """Quantize; temperature and noise belong to the contract and have no effect here."""
        codes = self.nearest(z_e)
        z = self.embed(codes)
        if self.training:
            z = z_e + (z - z_e).detach()
        return Quantized(z, codes, self.variance.expand(len(z_e)), self.variance)

    def draw(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> Quantized:
        """The nearest code: a posterior with all its mass on one code has one draw."""
        codes = self.nearest(z_e)
        return Quantized(self.embed(codes), codes, self.variance.expand(len(z_e)), self.variance)

    def fit(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """β/L Σ_l mean ‖H − sg[Σ_{l'≤l} Z_l']‖²: commitment on every partial sum (RQ-VAE, eq. 7; one layer: VQ-VAE, eq. 3).

        The mean over the layers is what the RQ-VAE authors' code trains; by the equation's plain sum deep stacks commit so hard that
        features of little variance follow their codes to a point.
        """
        partial, total = torch.zeros_like(target), target.new_zeros(len(target), dtype=torch.float32)
        for layer in layers:
            partial = partial + layer.z.detach()
            total = total + (target - partial).float().square().flatten(1).mean(1)
        return self.config.beta * total / len(layers)

    def surplus(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """Zero: with a deterministic assignment the latent's cost is its rate alone."""
        return target.new_zeros(len(target), dtype=torch.float32)

    def start_from(self, z_e: Float[Tensor, "B D *S"], noise: Noise, keep_codes: bool = False, steps: int = 1) -> None:
        """Codes, and what one step counts, from the batches of `steps`; with a `NormalStart`, or to keep the codes, nothing."""
        if isinstance(self.config.start, DataStart | OwnStart) and not keep_codes:
            codes, counts = self._data_codes(z_e, self.config.start, noise)
            self.codebook.copy_(codes)
            self.counts.copy_((counts / steps).clamp(min=1))  # those of all steps would keep the averages from moving at first
            self.sums.copy_(codes * self.counts.unsqueeze(1))

    @torch.no_grad()
    def update(self, z_e: Float[Tensor, "N D"], codes: Int[Tensor, "N"], noise: Noise) -> int:
        """One step of the moving averages with all processes' rows, then the restarts; returns how many codes were restarted.

        Restart comes last and sets vector, count and sum together, so that the averages cannot overwrite it.
        """
        gamma, rows = self.config.decay, z_e.to(self.sums)
        used = all_sum(torch.bincount(codes, minlength=self.codebook_size).to(rows))
        self.counts.mul_(gamma).add_(used, alpha=1 - gamma)
        self.sums.mul_(gamma).add_(all_sum(torch.zeros_like(self.sums).index_add_(0, codes, rows)), alpha=1 - gamma)
        total = self.counts.sum()
        smoothed = (self.counts + _SMOOTHING) / (total + self.codebook_size * _SMOOTHING) * total
        self.codebook.copy_(self.sums / smoothed.unsqueeze(1))
        return self._restart(rows, noise, below=min(1.0, float(used.sum()) / (8 * self.codebook_size))) if self.config.restart else 0

    def _restart(self, rows: Tensor, noise: Noise, below: float) -> int:
        """Codes with N_k < `below` become random rows of the global batch. Every process draws the same row numbers."""
        unused = torch.nonzero(self.counts < below).squeeze(1)
        before, total = rows_before_mine(len(rows), rows.device)
        generator = noise.generator()
        chosen = torch.randint(total, (self.codebook_size,), generator=generator).to(rows.device)[: len(unused)] - before
        mine = (chosen >= 0) & (chosen < len(rows))
        vectors = rows.new_zeros(len(unused), self.dim)
        vectors[mine] = rows[chosen[mine]]
        vectors = all_sum(vectors)
        self.codebook[unused], self.sums[unused], self.counts[unused] = vectors, vectors, 1.0
        return len(unused)


def rows_and_codes(z_e: Sequence[Tensor], codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """([N, D], [N]) of the layers that share one codebook, pooled, as `EMAQuantizer.update` takes them.

    Sample by sample, and only then layer by layer: the processes' rows one after the other are then those of one process.
    """
    rows = torch.cat([z.detach().movedim(1, -1).flatten(1, -2) for z in z_e], 1)
    return rows.flatten(0, 1), torch.cat([c.flatten(1) for c in codes], 1).flatten()
