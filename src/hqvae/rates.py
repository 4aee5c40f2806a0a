"""Error against bits of one model: `encode` at several weights of a learned prior."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hqvae.console import print_table
from hqvae.data import SignalUnit
from hqvae.errors import InputError
from hqvae.metrics import Mean, Usage
from hqvae.model import HQVAE, learned_priors
from hqvae.topdown import NearestCodes, walk

MEASURED_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)


def check_has_rates(model: HQVAE, run: str) -> None:
    """Raises InputError for a model that has no rate but its own."""
    if model.config.prior == "uniform":
        raise InputError(
            f"rate_weight: the prior of run {run!r} is uniform, so all codes have as many "
            "bits; train with model.prior=learned"
        )


@dataclass(frozen=True)
class RatePoint:
    """What codes cost and give at one weight.

    rate_weight: w of the prior
    rmse: in the signals' unit
    bits_per_point: Σ_l |S_l| H_l per pixel or sample point
    prior_bits_per_point: −log2 p by the model's own prior, as it was fitted to training items at w
    entropy_bits: H_l, of the histogram of each layer's codes over the split, bits a code
    fitted: whether the prior is fitted to more weights than its own, as the end of training does
    """

    rate_weight: float
    rmse: float
    bits_per_point: float
    prior_bits_per_point: float
    entropy_bits: tuple[float, ...]
    fitted: bool

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class _Sums:
    def __init__(self, model: HQVAE, weight: float):
        self.model = model
        self.weight = weight
        self.mse = Mean()
        self.usages = [Usage(place.codebook_size) for place in model.config.layers]
        priors = learned_priors(model)
        self.nats = [prior.nats(i, weight) for prior in priors for i in range(len(prior.counts))]
        self.positions = [0] * len(self.usages)
        self.points = 0

    def add(self, x: Tensor, features: Sequence[Tensor], unit: SignalUnit) -> None:
        _, outputs = walk(self.model.levels, NearestCodes(features, self.weight))
        codes = [layer for output in outputs for layer in output.quantized.codes.unbind(1)]
        self.mse.add(unit.mse(x, self.model.decode(codes, size=x.shape[2:])))
        self.points = x[0, 0].numel()
        for layer, (usage, own) in enumerate(zip(self.usages, codes)):
            usage.add(own)
            self.positions[layer] = own[0].numel()

    def point(self, unit: SignalUnit) -> RatePoint:
        entropies = [math.log2(usage.perplexity()) for usage in self.usages]
        by_prior = [
            float(usage.shares() @ nats.double()) / math.log(2)
            for usage, nats in zip(self.usages, self.nats)
        ]
        return RatePoint(
            self.weight,
            unit.scale * math.sqrt(self.mse.value()),
            self._per_point(entropies),
            self._per_point(by_prior),
            tuple(entropies),
            any(bool(prior.shifts.any()) for prior in learned_priors(self.model)),
        )

    def _per_point(self, bits: Sequence[float]) -> float:
        return sum(map(math.prod, zip(self.positions, bits))) / self.points


@torch.no_grad()
def measure_rates(
    model: HQVAE, batches: Iterable[Tensor], unit: SignalUnit, weights: Sequence[float]
) -> list[RatePoint]:
    """A model of a learned prior over a split, at each of the weights.

    Args:
        model: put into evaluation mode
        batches: signals [B, C, *S], at least one
        unit: what signals stand for
        weights: of the prior, from 0 up
    """
    model.eval()
    sums = [_Sums(model, weight) for weight in weights]
    for x in batches:
        features = model.features(x)
        for one in sums:
            one.add(x, features, unit)
    return [one.point(unit) for one in sums]


def print_rates(points: Sequence[RatePoint], unit: str, point: str) -> None:
    """A table on standard output: weight, error, bits, and bits of each layer's codes."""
    layers = range(len(points[0].entropy_bits))
    heads = ["rate weight", f"RMSE ({unit})", f"bits/{point}", "by the prior"]
    heads += [f"layer {i}" for i in layers]
    rows = [
        [
            f"{one.rate_weight:g}",
            f"{one.rmse:.{2 if one.rmse > 2 else 4}f}",
            f"{one.bits_per_point:.4f}",
            f"{one.prior_bits_per_point:.4f}",
            *[f"{bits:.2f}" for bits in one.entropy_bits],
        ]
        for one in points
    ]
    title = "error against the codes' entropy, of each layer in bits a code"
    unfitted = "" if points[0].fitted else "; the end of training will fit the prior to weights"
    print_table(title + unfitted, heads, rows)
