"""A model and signals → distortion, bound, and use and ablation of every layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hqvae.data import SignalUnit
from hqvae.metrics import Metric
from hqvae.model import HQVAE

from .bound import Bound
from .layers import Ablation, LayerMeasures, LayerSums

__all__ = ["LayerMeasures", "Measures", "measure"]


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

    def explained(self, layer: LayerMeasures) -> float | None:
        """Of arrays, the share of variance that this layer and those before it explain."""
        share = self.figures.get("explained_variance")
        if share is None or share >= 1:
            return share
        variance = self.figures["rmse"] ** 2 / (1 - share)
        return 1 - layer.rmse_cumulative**2 / variance

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
        batches: signals [B, C, *S]
        unit: what signals stand for
        metrics: of originals and clamped reconstructions; `psnr` and `rmse` among them
        shuffle_items: limits the ablation, which costs one decoding per layer
        seed: of the posterior's draws and of the ablation

    Nothing depends on how the signals are cut into batches, beyond rounding; each process draws
    from a stream of its own. Raises ValueError
    where there is no signal.
    """
    model.eval()
    bound = Bound(model, seed)
    layers = [LayerSums(place, unit) for place in model.config.layers]
    ablation = Ablation(model, layers, seed, shuffle_items)
    points = 0
    for x in batches:
        features = model.features(x)
        losses = model(x, features=features)
        error = unit.mse(x, losses.reconstruction)
        for metric in metrics:
            metric.add(x, unit.clamp(losses.reconstruction))
        bound.add(x, losses, features, error)
        for index, layer in enumerate(layers):
            layer.add(model, x, losses, index, error)
        free = model.encode(x, rate_weight=0.0) if model.config.pays_for_bits else ()
        for layer, codes in zip(layers, free):
            layer.add_free(codes)
        ablation.add(x, losses.codes, error)
        points = x[0, 0].numel()
    ablation.finish()
    if not bound.size:
        raise ValueError("no signal to measure on")
    return _measures(bound, layers, metrics, unit, points)


def _measures(
    bound: Bound,
    layers: Sequence[LayerSums],
    metrics: Sequence[Metric],
    unit: SignalUnit,
    points: int,
) -> Measures:
    """What was summed up; `points` are those of one signal."""
    rate = sum(layer.positions * math.log2(layer.place.codebook_size) for layer in layers) / points
    return Measures(
        items=bound.mse.global_count(),
        figures={name: value for metric in metrics for name, value in metric.values().items()},
        bits_per_dim=bound.bits_per_dim(bound.drawn_mse.value(), bound.latent.value(), unit),
        bits_per_dim_deterministic=bound.bits_per_dim(bound.mse.value(), bound.rate.value(), unit),
        bits_per_point=rate,
        bits_per_second=rate * unit.per_second if unit.per_second else None,
        sigma2=bound.drawn_mse.value() + unit.step**2 / 12,
        loss=bound.loss(),
        shuffled_items=layers[0].shuffled_mse.global_count(),
        layers=tuple(layer.measures() for layer in layers),
    )
