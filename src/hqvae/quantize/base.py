"""What every quantizer is: features in, a `Quantized` out, and `lookup` as the way back."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor, nn

from hqvae.errors import DegenerateFeatures

from .noise import Noise, Stream
from .kernels import nearest


@config(frozen=True, config=ConfigDict(extra="forbid"))
class NormalStart:
    """Codes ~ N(0, I) and s² = `s2`, as in the official single-layer code (s² = 21 there)."""

    kind: Literal["normal"] = "normal"
    s2: float = Field(default=21.0, gt=0)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class DataStart:
    """Codes are the k-means of the features, and s² = mean ‖z̃ − b‖² / (2 · `sharpness`).

    k-means begins at random features plus `jitter` of their deviation, and takes `kmeans` rounds; 0, or no more features than
    codes, and the codes stay where it begins. A code at the mean distance starts exp(−sharpness) times as likely as one on the
    spot, in any dimension. Too soft (4) learns slowly or lets the posterior go uniform; too hard (600) is one-hot from the first
    step and collapses as a deterministic quantizer does.
    """

    kind: Literal["data"] = "data"
    sharpness: float = Field(default=16.0, gt=0)
    jitter: float = Field(default=0.1, ge=0)
    kmeans: int = Field(default=10, ge=0)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class OwnStart:
    """Codes go from where they are towards the means of the features nearest to them, by `kmeans` rounds of k-means."""

    kind: Literal["own"] = "own"
    kmeans: int = Field(default=10, ge=0)


Start = NormalStart | DataStart


@dataclass(frozen=True)
class Quantized:
    """One quantization.

    Shape:
        z: [B, D, *S], what flows on (a relaxed sample in training, `lookup(codes)` in evaluation)
        codes: [B, *S] int64, the nearest code, always
        entropy: [B], H(P̂) summed over the positions, in nats (zero where the assignment is deterministic)
        variance: [], s² (zero where the assignment is deterministic)
        cost: [B], what the quantizer adds to the objective by itself (only of quantizers that are not ours)
    """

    z: Tensor
    codes: Tensor
    entropy: Tensor
    variance: Tensor
    cost: Tensor | None = None


def rows_of(z: Tensor) -> Tensor:
    """[B, D, *S] → [N, D]: positions of one sample stay together and in order."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def grid_of(rows: Tensor, z: Tensor) -> Tensor:
    """[N, D] → [B, D, *S], the inverse of `rows_of` for a `z` of that shape."""
    return rows.reshape(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)


class Quantizer(nn.Module):
    """What the kinds have in common; `codebook` [K, D] is a parameter or a buffer of the kind.

    Every kind adds `forward(z_e, temperature, noise) -> Quantized`, `draw(z_e, noise) -> Quantized` (a true sample),
    `fit(target, layers)` (what training pays for what a level's layers miss), `surplus(target, layers)` (what the evidence
    bound pays), `start_from(z_e, noise, keep_codes, steps)`, `sibling()` and `variance`. Only `start_from` and `update` change state.

    detached: whether a residual layer of this kind takes what is left of the features with the codes so far as constants
    """

    codebook: Tensor
    detached = False

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size is {codebook_size}; a codebook needs at least 2 codes")
        if dim < 1:
            raise ValueError(f"dim is {dim}; a code needs at least 1 dimension")
        self.dim, self.codebook_size = dim, codebook_size

    def lookup(self, codes: Int[Tensor, "B *S"]) -> Float[Tensor, "B D *S"]:
        """The codes' vectors. Raises ValueError for a code outside 0 … K − 1."""
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(
                f"codes range from {int(codes.min())} to {int(codes.max())}; this codebook has codes 0 to {self.codebook_size - 1}"
            )
        return self.embed(codes)

    def embed(self, codes: Tensor) -> Tensor:
        """`lookup` of codes that are known to be in range: the check would make a GPU wait."""
        return nn.functional.embedding(codes, self.codebook).movedim(-1, 1)

    def nearest(self, z_e: Float[Tensor, "B D *S"]) -> Int[Tensor, "B *S"]:
        """argmin_k ‖z_e − b_k‖², position by position: no batch mate, mode or neighbour has a say."""
        self._check(z_e)
        return nearest(rows_of(z_e), self.codebook).reshape(z_e.shape[0], *z_e.shape[2:])

    def _check(self, z_e: Tensor) -> None:
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise ValueError(f"z_e has shape {list(z_e.shape)}; this quantizer expects [B, {self.dim}, *S]")

    def _data_codes(self, z_e: Tensor, start: DataStart | OwnStart, noise: Noise) -> tuple[Tensor, Tensor]:
        """(codes [K, D], how many rows of z_e are nearest to each [K]), by k-means from random rows with jitter, or from the own codes.

        A code that nothing is nearest to takes a row, more likely one that is far from its code. Raises DegenerateFeatures for rows that are
        all the same or not finite.
        """
        rows = rows_of(z_e.detach()).float()
        variance = rows.var(0, correction=0).mean()
        if not torch.isfinite(variance) or variance <= 0:
            raise DegenerateFeatures("no codebook can start where the features are constant or not finite")
        generator = noise.fold(7).generator()
        copies = -(-self.codebook_size // len(rows))
        chosen = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(copies)])[: self.codebook_size]
        shake = torch.randn(self.codebook_size, self.dim, generator=generator).to(rows)
        if isinstance(start, OwnStart):  # drawn all the same: docs/results.md is of this order of draws
            codes = self.codebook.float()
        else:
            codes = rows[chosen.to(rows.device)] + start.jitter * variance.sqrt() * shake
        enough = len(rows) > self.codebook_size and len(rows.unique(dim=0)) > self.codebook_size  # else every row would be a code
        for _ in range(start.kmeans if enough else 0):
            mine = nearest(rows, codes)
            counts = torch.bincount(mine, minlength=self.codebook_size).unsqueeze(1)
            missed = (rows - codes[mine]).square().sum(1)
            spare = rows[torch.multinomial(missed.cpu(), self.codebook_size, True, generator=generator).to(rows.device)]
            codes = torch.where(counts > 0, torch.zeros_like(codes).index_add_(0, mine, rows) / counts.clamp(min=1), spare)
        return codes, torch.bincount(nearest(rows, codes), minlength=self.codebook_size)


class AsTriple(nn.Module):
    """Any quantizer with the call that users of vector-quantize-pytorch know: `[..., D] → (quantized, indices, loss)`.

    The loss is a scalar in the quantizer's own unit, averaged over the first axis. With a `StochasticQuantizer` it is
    ‖z̃ − z‖²/2s² − H in nats per sample, to be added to a reconstruction loss in nats; with an `EMAQuantizer` it is β times the
    mean squared commitment, and the caller also calls `update(z, indices)` after the optimiser's step.

    >>> quantize = AsTriple(StochasticQuantizer(dim=64, codebook_size=512))
    >>> quantized, indices, loss = quantize(torch.randn(2, 100, 64))  # quantized in the dtype of the input
    """

    def __init__(self, quantizer: Any):
        super().__init__()
        self.quantizer = quantizer

    def forward(
        self, z: Float[Tensor, "B *S D"], temperature: float = 1.0
    ) -> tuple[Float[Tensor, "B *S D"], Int[Tensor, "B *S"], Float[Tensor, ""]]:
        z_e = z.movedim(-1, 1)
        quantized = self.quantizer(z_e, temperature)
        loss = (self.quantizer.fit(z_e, [quantized]) - quantized.entropy).mean()
        return quantized.z.movedim(1, -1).to(z.dtype), quantized.codes, loss

    @torch.no_grad()
    def update(self, z: Float[Tensor, "B *S D"], indices: Int[Tensor, "B *S"], noise: Noise | None = None) -> int:
        """Move a codebook that learns by moving averages with what was quantized; returns how many codes were restarted.

        `noise` (drawn from torch's generator when not given) chooses what they restart on. Nothing happens to a codebook that
        learns by gradient.
        """
        if not hasattr(self.quantizer, "update"):
            return 0
        return self.quantizer.update(z.reshape(-1, z.shape[-1]), indices.reshape(-1), noise or Noise.draw())
