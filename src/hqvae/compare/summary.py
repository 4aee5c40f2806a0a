"""Results of runs → means and standard errors over seeds, and what they say.

Differences to the reference system are paired: the same seed means the same data order, so what
both systems share cancels. They have 95 % intervals of Student's t: with three seeds these are 4.3
standard errors wide to either side, with five 2.8.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import Any

from .spec import Spec

FIGURES = (
    "rmse",
    "explained_variance",
    "own_id",
    "psnr",
    "ssim",
    "lpips",
    "rfid",
    "si_sdr",
    "stft_distance",
    "mel_distance",
    "log_mel_rmse",
    "bits_per_dim",
    "bits_per_dim_deterministic",
    "perplexity_share",
    "used_share",
    "items_per_second",
)
_CONFIDENCE = 0.95
# Student's t that holds so much of the distribution, by the degrees of freedom from 1 on.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Estimate:
    """Mean of `count` values and its standard error s/√n; no standard error of a single value.

    >>> Estimate.of([1.0, 3.0])
    Estimate(mean=2.0, error=1.0, count=2)
    """

    mean: float
    error: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Estimate":
        """The estimate from these values."""
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Estimate(mean(values), error, len(values))

    def scaled(self, factor: float) -> "Estimate":
        """The estimate of `factor` times the values."""
        error = None if self.error is None else self.error * abs(factor)
        return Estimate(self.mean * factor, error, self.count)

    @property
    def interval(self) -> float | None:
        """Half of the 95 % interval of the mean, by Student's t; None of a single value.

        >>> round(Estimate.of([1.0, 3.0]).interval, 3)
        12.706
        """
        return None if self.error is None else self.error * _students_t(self.count - 1)

    @property
    def significant(self) -> bool:
        """Whether zero is outside of the 95 % interval."""
        return self.interval is not None and abs(self.mean) > self.interval


def _students_t(freedom: int) -> float:
    """t that holds 95 % of the distribution; beyond the table by its expansion in 1/freedom."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class LayerRow:
    """One layer of a system: name, K, and means over seeds."""

    name: str
    codebook_size: int
    perplexity: Estimate
    used: Estimate
    psnr_cumulative: Estimate


@dataclass(frozen=True)
class Row:
    """One system in one case.

    unit, ratio, rate: what RMSE is in, what the ratio in dB is called, the rate with its unit
    figures: those of FIGURES that there are; `perplexity_share` and `used_share` are shares of K,
        of the layer where they are lowest
    difference: paired difference of RMSE to the reference system (positive: worse than it); None
        for the reference itself, and where no seed has both
    """

    case: str
    system: str
    unit: str
    ratio: str
    rate: str
    seeds: tuple[int, ...]
    figures: dict[str, Estimate]
    layers: tuple[LayerRow, ...]
    difference: Estimate | None


def summarise(spec: Spec, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row per case and system that has at least one result."""
    rows = []
    for case in spec.cases:
        by_seed = {(r["system"], r["seed"]): r for r in results if r["case"] == case}
        reference = _of_system(by_seed, spec.reference_system, spec.seeds)
        for system in spec.systems:
            own = _of_system(by_seed, system, spec.seeds)
            if own:
                is_reference = system == spec.reference_system
                difference = None if is_reference else _difference(own, reference)
                rows.append(_row(case, system, own, difference))
    return rows


def _of_system(
    by_seed: Mapping[tuple[str, int], Mapping[str, Any]], system: str, seeds: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    return {seed: by_seed[system, seed] for seed in seeds if (system, seed) in by_seed}


def _difference(
    own: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> Estimate | None:
    differences = [
        own[seed]["measures"]["rmse"] - reference[seed]["measures"]["rmse"]
        for seed in own
        if seed in reference
    ]
    return Estimate.of(differences) if differences else None


def _row(
    case: str, system: str, own: Mapping[int, Mapping[str, Any]], difference: Estimate | None
) -> Row:
    first = next(iter(own.values()))
    protocol = first["protocol"]
    figures = [_figures(result) for result in own.values()]
    estimates = {
        name: Estimate.of([run[name] for run in figures])
        for name in FIGURES
        if all(name in run for run in figures)
    }
    return Row(
        case=case,
        system=system,
        unit=protocol["unit"],
        ratio=protocol.get("ratio", "PSNR"),
        rate=_rate(first["measures"], protocol),
        seeds=tuple(own),
        figures=estimates,
        layers=_layers([result["measures"]["layers"] for result in own.values()]),
        difference=difference,
    )


def verdicts(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """What the rows say of the reference system, one sentence per case and question."""
    sentences = []
    for case in spec.cases:
        of_case = {row.system: row for row in rows if row.case == case}
        if spec.reference_system in of_case:
            prefix = f"{case}: " if case else ""
            sentences += [prefix + sentence for sentence in _verdicts(spec, of_case)]
    return sentences


_QUESTIONS: dict[str, Callable[[Estimate], bool]] = {
    "has lower RMSE than": lambda difference: difference.significant and difference.mean > 0,
    "has higher RMSE than": lambda difference: difference.significant and difference.mean < 0,
    "shows no clear difference to": lambda difference: not difference.significant,
}


def _verdicts(spec: Spec, rows: Mapping[str, Row]) -> list[str]:
    reference = spec.reference_system
    differences = {row.system: row.difference for row in rows.values() if row.difference}
    single = {name: value for name, value in differences.items() if value.count == 1}
    several = {name: value for name, value in differences.items() if value.count > 1}
    sentences = []
    if single:
        listed = ", ".join(f"{name} {format_difference(value)}" for name, value in single.items())
        sentences.append(
            f"RMSE above that of {reference}: {listed}; one seed, so nothing is known of chance."
        )
    for words, applies in _QUESTIONS.items():
        chosen = [
            f"{name} ({format_difference(value)})"
            for name, value in several.items()
            if applies(value)
        ]
        sentences += [f"{reference} {words} {', '.join(chosen)}."] if chosen else []
    layers = rows[reference].layers
    worst = min(layers, key=lambda layer: layer.perplexity.mean / layer.codebook_size)
    sentences.append(
        f"the layer of {reference} that uses its codebook least, {worst.name}, has a perplexity "
        f"of {worst.perplexity.mean:.0f} of {worst.codebook_size}."
    )
    return sentences


def format_estimate(estimate: Estimate | None, digits: int | None = None) -> str:
    """`24.91 ± 0.03`, the mean alone without a standard error, a dash for None.

    As many digits as the mean's size needs if `digits` is None.
    """
    if estimate is None:
        return "–"
    if digits is None:
        digits = 2 if abs(estimate.mean) >= 2 or estimate.mean == 0 else 4
    error = "" if estimate.error is None else f" ± {estimate.error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def format_difference(difference: Estimate | None) -> str:
    """A paired difference with its sign and its 95 % interval: `+0.22 ± 0.09`."""
    if difference is None:
        return "–"
    half = difference.interval
    digits = 2 if max(abs(difference.mean), half or 0.0) >= 0.05 else 4
    sign = "+" if difference.mean >= 0 else "−"
    interval = "" if half is None else f" ± {half:.{digits}f}"
    return f"{sign}{abs(difference.mean):.{digits}f}{interval}"


def _rate(measures: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    if measures.get("bits_per_second") is not None:
        return f"{measures['bits_per_second']:.0f} bits/s"
    return f"{measures['bits_per_point']:.4g} bits per {protocol.get('point', 'pixel')}"


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    measures = result["measures"]
    layers = measures["layers"]
    figures = {name: measures.get(name) for name in FIGURES}
    figures["items_per_second"] = result["items_per_second"]
    for share, count in (("perplexity_share", "perplexity"), ("used_share", "used")):
        figures[share] = min(layer[count] / layer["codebook_size"] for layer in layers)
    return {name: float(value) for name, value in figures.items() if value is not None}


def _layers(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[LayerRow, ...]:
    """The layers of one system, each over the runs of all its seeds."""

    def estimate(layers: Sequence[Mapping[str, Any]], name: str) -> Estimate:
        return Estimate.of([float(layer[name]) for layer in layers])

    return tuple(
        LayerRow(
            name=f"level {layers[0]['level']} layer {layers[0]['layer']}",
            codebook_size=layers[0]["codebook_size"],
            perplexity=estimate(layers, "perplexity"),
            used=estimate(layers, "used"),
            psnr_cumulative=estimate(layers, "psnr_cumulative"),
        )
        for layers in zip(*runs)
    )
