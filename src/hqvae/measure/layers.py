"""What is measured of one layer: use, rate, prefix decoding, and ablation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.data import SignalUnit
from hqvae.metrics import Mean, Usage
from hqvae.model import HQVAE, LayerPlace, Losses
from hqvae.quantize import Noise, Stream
from hqvae.ranks import rank

_BLOCK = 64  # signals among which codes are shuffled, at least where there are so many


@dataclass(frozen=True)
class LayerMeasures:
    """One quantization layer over a split.

    positions: |S_l|
    perplexity, used: of the nearest codes over the whole split
    entropy_bits: of the posterior P̂, mean per position
    rmse_cumulative, psnr_cumulative: when decoding from this layer and those before it
    rmse_shuffled, ablation_drop_db: with this layer's codes shuffled over blocks of 64 signals or
        more, all other layers' as they are
    perplexity_free: where codes pay for their bits, the perplexity if they did not; else None
    """

    level: int
    layer: int
    stride: int
    positions: int
    codebook_size: int
    perplexity: float
    used: int
    entropy_bits: float
    s2: float
    rmse_cumulative: float
    psnr_cumulative: float
    rmse_shuffled: float
    ablation_drop_db: float
    perplexity_free: float | None = None

    @property
    def name(self) -> str:
        return f"level {self.level} layer {self.layer}"

    def reachable_codes(self, items: int) -> int:
        """How many codes so many signals could choose at most."""
        return min(self.codebook_size, self.positions * items)


class LayerSums:
    """What is counted of one layer."""

    def __init__(self, place: LayerPlace, unit: SignalUnit):
        self.place = place
        self.unit = unit
        self.usage = Usage(place.codebook_size)
        self.free: Usage | None = None
        self.positions = 0
        self.s2 = 0.0
        self.entropy = Mean()
        self.mse = Mean()
        self.psnr = Mean()
        self.shuffled_mse = Mean()
        self.shuffled_psnr = Mean()
        self.unshuffled_psnr = Mean()

    def add(self, model: HQVAE, x: Tensor, losses: Losses, index: int, error: Tensor) -> None:
        codes = losses.codes
        self.usage.add(codes[index])
        self.positions = codes[index][0].numel()
        self.s2 = float(losses.variance[index])
        self.entropy.add(losses.entropy[:, index] / self.positions)
        if index < len(codes) - 1:
            error = self.unit.mse(x, model.decode(codes, layers=index + 1, size=x.shape[2:]))
        self.mse.add(error)
        self.psnr.add(self.unit.decibels(error))

    def add_free(self, codes: Tensor) -> None:
        """Codes of the same signals, chosen as if they paid nothing."""
        self.free = self.free or Usage(self.place.codebook_size)
        self.free.add(codes)

    def add_shuffled(self, shuffled_error: Tensor, error: Tensor) -> None:
        self.shuffled_mse.add(shuffled_error)
        self.shuffled_psnr.add(self.unit.decibels(shuffled_error))
        self.unshuffled_psnr.add(self.unit.decibels(error))

    def measures(self) -> LayerMeasures:
        unit = self.unit
        return LayerMeasures(
            level=self.place.level,
            layer=self.place.layer,
            stride=self.place.stride,
            positions=self.positions,
            codebook_size=self.place.codebook_size,
            perplexity=self.usage.perplexity(),
            used=self.usage.used(),
            entropy_bits=self.entropy.value() / math.log(2),
            s2=self.s2,
            rmse_cumulative=unit.scale * math.sqrt(self.mse.value()),
            psnr_cumulative=self.psnr.value(),
            rmse_shuffled=unit.scale * math.sqrt(self.shuffled_mse.value()),
            ablation_drop_db=self.unshuffled_psnr.value() - self.shuffled_psnr.value(),
            perplexity_free=None if self.free is None else self.free.perplexity(),
        )


class Ablation:
    """What is lost when a layer's codes are shuffled over a block of signals.

    Blocks do not depend on the batches that come in.
    """

    def __init__(self, model: HQVAE, layers: Sequence[LayerSums], seed: int, limit: int):
        self.model = model
        self.layers = layers
        self.seed = seed
        self.room = limit
        self.waiting: list[Tensor] = []  # signals, their errors, and the codes of every layer
        self.batch_size = 1
        self.blocks = 0

    def add(self, x: Tensor, codes: Sequence[Tensor], error: Tensor) -> None:
        """A batch, until there have been `limit` signals."""
        more = [part[: self.room] for part in (x, error, *codes)]
        self.room -= len(more[0])
        self.batch_size = max(self.batch_size, len(x))
        if self.waiting:
            more = [torch.cat(pair) for pair in zip(self.waiting, more)]
        self.waiting = more
        while len(self.waiting[0]) >= 2 * _BLOCK:  # so that the last block is no small one
            self._shuffle([part[:_BLOCK] for part in self.waiting])
            self.waiting = [part[_BLOCK:] for part in self.waiting]

    def finish(self) -> None:
        if self.waiting and len(self.waiting[0]):
            self._shuffle(self.waiting)

    def _shuffle(self, block: Sequence[Tensor]) -> None:
        x, error, *codes = block
        noise = Noise.of(self.seed, self.blocks, rank()).fold(Stream.SHUFFLE)
        self.blocks += 1
        for index, layer in enumerate(self.layers):
            flat = codes[index].flatten()
            generator = noise.fold(index).generator()
            order = torch.randperm(len(flat), generator=generator).to(flat.device)
            shuffled = [*codes]
            shuffled[index] = flat[order].view_as(codes[index])
            layer.add_shuffled(self._errors(x, shuffled), error)

    def _errors(self, x: Tensor, codes: Sequence[Tensor]) -> Float[Tensor, "B"]:
        """Of the decoded codes, so many at once as fitted before."""
        parts = [
            self.model.decode(part, size=x.shape[2:])
            for part in zip(*[layer.split(self.batch_size) for layer in codes])
        ]
        return self.layers[0].unit.mse(x, torch.cat(parts))
