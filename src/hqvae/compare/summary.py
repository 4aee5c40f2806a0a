"""Results of runs → means and standard errors over seeds, paired differences to the reference system, and what they say.

Differences are paired: the same seed means the same data order, so what both systems share cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from .spec import Spec

FIGURES = (
    "rmse", "psnr", "ssim", "lpips", "rfid", "si_sdr", "stft_distance", "mel_distance", "log_mel_rmse", "bits_per_dim",
    "bits_per_dim_nearest", "perplexity_share", "used_share", "images_per_second",
)  # fmt: skip
CLEAR = 2.0  # standard errors by which a difference is called one


@dataclass(frozen=True)
class Estimate:
    """Mean of `count` values and its standard error s/√n; no standard error of a single value."""

    mean: float
    error: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Estimate":
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Estimate(mean(values), error, len(values))

    def over(self, whole: int) -> "Estimate":
        """As a share of `whole`."""
        return Estimate(self.mean / whole, None if self.error is None else self.error / whole, self.count)

    @property
    def clear(self) -> bool:
        """Whether zero is more than two standard errors away."""
        return self.error is not None and abs(self.mean) > CLEAR * self.error


@dataclass(frozen=True)
class LayerRow:
    """One layer of a system: name, K, and means over seeds."""

    name: str
    codebook_size: int
    perplexity: Estimate
    used: Estimate
    psnr_after: Estimate


@dataclass(frozen=True)
class Row:
    """One system in one case.

    unit, rate: what RMSE is in, and the rate with its unit
    figures: those of FIGURES that there are; `perplexity_share` and `used_share` are of K, of the layer where it is lowest
    difference: paired difference of RMSE to the reference system (positive: worse than it); None for the reference itself, and
        where no seed has both
    """

    case: str
    system: str
    unit: str
    rate: str
    seeds: tuple[int, ...]
    figures: dict[str, Estimate]
    layers: tuple[LayerRow, ...]
    difference: Estimate | None


def summarise(spec: Spec, results: Sequence[dict[str, Any]]) -> list[Row]:
    """A row per case and system that has at least one result."""
    rows = []
    for case in spec.cases:
        by_seed = {(r["system"], r["seed"]): r for r in results if r["case"] == case}
        for system in spec.systems:
            mine = {seed: by_seed[system, seed] for seed in spec.seeds if (system, seed) in by_seed}
            if not mine:
                continue
            each = [_figures(result) for result in mine.values()]
            shared = [seed for seed in mine if (spec.ours, seed) in by_seed]
            apart = [mine[seed]["measures"]["rmse"] - by_seed[spec.ours, seed]["measures"]["rmse"] for seed in shared]
            rows.append(Row(
                case, system, *_unit_and_rate(next(iter(mine.values()))), tuple(mine),
                {name: Estimate.of([one[name] for one in each]) for name in FIGURES if all(name in one for one in each)},
                _layers([result["measures"]["layers"] for result in mine.values()]),
                Estimate.of(apart) if apart and system != spec.ours else None,
            ))  # fmt: skip
    return rows


def verdicts(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """What the rows say of the reference system, one sentence per case and question."""
    said = []
    for case in spec.cases:
        group = {row.system: row for row in rows if row.case == case}
        if spec.ours not in group:
            continue
        prefix = f"{case}: " if case else ""
        others = [row for row in group.values() if row.difference is not None]
        once = [row for row in others if row.difference is not None and row.difference.count == 1]
        if once:
            listed = ", ".join(f"{row.system} {apart(row.difference)}" for row in once)
            said.append(f"{prefix}RMSE above that of {spec.ours}: {listed}; one seed, so nothing is known of chance.")
            others = [row for row in others if row not in once]
        for words, fits in (
            ("has lower RMSE than", lambda d: d.clear and d.mean > 0),
            ("has higher RMSE than", lambda d: d.clear and d.mean < 0),
            ("shows no clear difference to", lambda d: not d.clear),
        ):
            chosen = [f"{row.system} ({apart(row.difference)})" for row in others if fits(row.difference)]
            said += [f"{prefix}{spec.ours} {words} {', '.join(chosen)}."] if chosen else []
        worst = min(group[spec.ours].layers, key=lambda layer: layer.perplexity.mean / layer.codebook_size)
        said.append(
            f"{prefix}the layer of {spec.ours} that uses its codebook least, {worst.name}, has a perplexity of "
            f"{worst.perplexity.mean:.0f} of {worst.codebook_size}."
        )
    return said


def shown(estimate: Estimate | None, digits: int | None) -> str:
    """`24.91 ± 0.03`; the mean alone where there is no standard error, a dash where there is nothing. Digits None: by the mean's size."""
    if estimate is None:
        return "–"
    if digits is None:
        digits = 2 if abs(estimate.mean) >= 2 or estimate.mean == 0 else 4
    return f"{estimate.mean:.{digits}f}" + ("" if estimate.error is None else f" ± {estimate.error:.{digits}f}")


def apart(difference: Estimate | None) -> str:
    """A paired difference with its sign."""
    if difference is None:
        return "–"
    digits = 2 if max(abs(difference.mean), difference.error or 0.0) >= 0.05 else 4
    return ("+" if difference.mean >= 0 else "−") + shown(Estimate(abs(difference.mean), difference.error, difference.count), digits)


def _unit_and_rate(result: dict[str, Any]) -> tuple[str, str]:
    measures = result["measures"]
    if measures.get("bits_per_second") is not None:
        return result["protocol"]["unit"], f"{measures['bits_per_second']:.0f} bits/s"
    return result["protocol"]["unit"], f"{measures['bits_per_pixel']:.4g} bits per pixel"


def _figures(result: dict[str, Any]) -> dict[str, float]:
    measures = result["measures"]
    found = {name: measures.get(name) for name in FIGURES}
    found["images_per_second"] = result["images_per_second"]
    found["perplexity_share"] = min(layer["perplexity"] / layer["codebook_size"] for layer in measures["layers"])
    found["used_share"] = min(layer["used"] / layer["codebook_size"] for layer in measures["layers"])
    return {name: float(value) for name, value in found.items() if value is not None}


def _layers(runs: Sequence[list[dict[str, Any]]]) -> tuple[LayerRow, ...]:
    return tuple(
        LayerRow(
            f"level {layers[0]['level']} layer {layers[0]['layer']}", layers[0]["codebook_size"],
            *(Estimate.of([float(layer[name]) for layer in layers]) for name in ("perplexity", "used", "psnr_after")),
        )
        for layers in zip(*runs)
    )  # fmt: skip
