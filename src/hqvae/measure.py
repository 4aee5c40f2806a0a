"""A model and signals → distortion, bound, and use and ablation of every layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.data import SignalUnit
from hqvae.metrics import Mean, Metric, Usage, psnr
from hqvae.model import HQVAE, LayerPlace, Losses
from hqvae.quantize import Noise, Stream

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

    @property
    def name(self) -> str:
        return f"level {self.level} layer {self.layer}"

    def reachable_codes(self, items: int) -> int:
        """How many codes so many signals could choose at most."""
        return min(self.codebook_size, self.positions * items)


@dataclass(frozen=True)
class Measures:
    """A model over a split.

    items: signals that were measured
    figures: of the metrics, by name: rmse in the signals' own unit, psnr, ssim, …
    bits_per_dim: −ELBO by true draws, per stored sample (8-bit for images), with σ² fitted to the
        split and uniform dequantization; of continuous signals the density's, per unit
    bits_per_dim_deterministic: the same with nearest codes for the posterior's draws, as files
        would have it
    bits_per_point: rate per pixel, or per sample point
    bits_per_second: rate per second; None for signals without time
    loss: the training objective in evaluation mode
    shuffled_items: how many signals the ablation used
    """

    items: int
    figures: dict[str, float]
    bits_per_dim: float
    bits_per_dim_deterministic: float
    bits_per_point: float
    bits_per_second: float | None
    sigma2: float
    loss: float
    shuffled_items: int
    layers: tuple[LayerMeasures, ...]

    @property
    def psnr(self) -> float:
        return self.figures["psnr"]

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON: the figures stand beside the rest."""
        entry = asdict(self)
        return {**entry.pop("figures"), **entry}


@torch.no_grad()
def measure(
    model: HQVAE,
    batches: Iterable[Tensor],
    unit: SignalUnit,
    metrics: Sequence[Metric],
    shuffle_items: int = 1000,
    seed: int = 0,
) -> Measures:
    """Measure a model (put into evaluation mode); sums over the processes of a distributed run.

    Args:
        model: of any posterior
        batches: signals [B, C, *S] in [−1, 1]
        unit: what signals stand for
        metrics: of originals and clamped reconstructions; `psnr` and `rmse` among them
        shuffle_items: limits the ablation, which costs one decoding per layer
        seed: of the posterior's draws and of the ablation

    Nothing depends on how the signals are cut into batches, beyond rounding. Raises ValueError
    where there is no signal.
    """
    model.eval()
    bound = _Bound(model, seed)
    layers = [_Layer(place) for place in model.config.layers]
    ablation = _Ablation(model, layers, seed, shuffle_items)
    points = 0
    for x in batches:
        features = model.features(x)
        losses = model(x, features=features)
        error = _mse(x, losses.reconstruction)
        for metric in metrics:
            metric.add(x, losses.reconstruction.float().clamp(-1, 1))
        bound.add(x, losses, features, error)
        for index, layer in enumerate(layers):
            layer.add(model, x, losses, index, error)
        ablation.add(x, losses.codes, error)
        points = x[0, 0].numel()
    ablation.finish()
    if not bound.size:
        raise ValueError("no signal to measure on")
    rate = bound.uniform_rate_nats / math.log(2) / points
    return Measures(
        items=bound.mse.global_count(),
        figures={name: value for metric in metrics for name, value in metric.values().items()},
        bits_per_dim=bound.bits_per_dim(bound.drawn_mse.value(), bound.latent.value(), unit),
        bits_per_dim_deterministic=bound.bits_per_dim(
            bound.mse.value(), bound.uniform_rate_nats, unit
        ),
        bits_per_point=rate,
        bits_per_second=rate * unit.per_second if unit.per_second else None,
        sigma2=bound.drawn_mse.value() + unit.step**2 / 12,
        loss=bound.loss(),
        shuffled_items=layers[0].shuffled_mse.global_count(),
        layers=tuple(layer.measures(unit) for layer in layers),
    )


class _Bound:
    """The bound by true draws, the one by nearest codes, and the training objective."""

    def __init__(self, model: HQVAE, seed: int):
        self.model = model
        self.noise = Noise.of(seed, 0)
        self.seen = 0
        self.size = 0
        self.uniform_rate_nats = 0.0
        self.mse = Mean()
        self.drawn_mse = Mean()
        self.latent = Mean()
        self.latent_loss = Mean()
        self.entropy = Mean()
        self.spectral_mse = [Mean() for _ in model.config.spectral.weights]

    def add(self, x: Tensor, losses: Losses, features: Sequence[Tensor], error: Tensor) -> None:
        self.size = losses.size
        self.uniform_rate_nats = losses.uniform_rate_nats
        self.mse.add(error)
        self.latent_loss.add(losses.latent_loss.sum(1))
        self.entropy.add(losses.entropy.sum(1))
        for mean, spectral in zip(self.spectral_mse, losses.spectral_mse.T):
            mean.add(spectral)
        drawn = self.model.elbo_sample(x, self.noise._replace(samples=self.seen), features)
        self.latent.add(drawn.latent)
        self.drawn_mse.add(drawn.distortion / losses.size)
        self.seen += len(x)

    def bits_per_dim(self, mse: float, nats: float, unit: SignalUnit) -> float:
        """[(D/2) log 2πeσ² + nats] per stored value, σ² with uniform dequantization."""
        sigma2 = mse + unit.step**2 / 12
        gaussian = self.size / 2 * math.log(2 * math.pi * math.e * sigma2)
        return (gaussian + nats) / (self.size * math.log(2)) + math.log2(unit.per_unit)

    def loss(self) -> float:
        """The objective with σ² of the whole split."""
        likelihood, size = self.model.likelihood, self.size
        total = 0.0
        weights = [1.0, *self.model.config.spectral.weights]
        for weight, mean in zip(weights, [self.mse, *self.spectral_mse]):
            mse = torch.tensor(mean.value()).clamp(min=torch.finfo(torch.float32).tiny)
            total += weight * float(likelihood.cost(mse.view(1) * size, size, mse))
        sigma2 = torch.tensor(self.mse.value())
        in_nats = self.model.levels[0].quantizer.posterior.in_nats
        commitment = 1.0 if in_nats else float(likelihood.commitment_weight(size, sigma2))
        return total + commitment * self.latent_loss.value() - self.entropy.value()


class _Layer:
    """What is counted of one layer."""

    def __init__(self, place: LayerPlace):
        self.place = place
        self.usage = Usage(place.codebook_size)
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
            error = _mse(x, model.decode(codes, layers=index + 1, size=x.shape[2:]))
        self.mse.add(error)
        self.psnr.add(psnr(error))

    def add_shuffled(self, shuffled_error: Tensor, error: Tensor) -> None:
        self.shuffled_mse.add(shuffled_error)
        self.shuffled_psnr.add(psnr(shuffled_error))
        self.unshuffled_psnr.add(psnr(error))

    def measures(self, unit: SignalUnit) -> LayerMeasures:
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
        )


class _Ablation:
    """What is lost when a layer's codes are shuffled over a block of signals.

    Blocks do not depend on the batches that come in.
    """

    def __init__(self, model: HQVAE, layers: Sequence[_Layer], seed: int, limit: int):
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
        noise = Noise.of(self.seed, self.blocks).fold(Stream.SHUFFLE)
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
        return _mse(x, torch.cat(parts))


def _mse(x: Tensor, x_hat: Tensor) -> Float[Tensor, "B"]:
    """Of each signal, after clamping the reconstruction to the range that exists."""
    return (x - x_hat.float().clamp(-1, 1)).square().flatten(1).mean(1)
