"""Figures of a comparison: over cases, over layers, over training, and reconstructions."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hqvae.data import Dataset, examples_for_figure
from hqvae.figures import image_grid
from hqvae.run import Run

from .jobs import ComparisonDir
from .spec import RunSpec, Spec
from .summary import Estimate, Row

_DPI = 90
_STYLES = ("-", "--", ":")  # after ten systems colours come again


def over_cases(spec: Spec, rows: Sequence[Row]) -> Figure:
    """RMSE, and perplexity / K of the least used layer, against the case.

    A line per system, with bars of one standard error.
    """
    figure = Figure(figsize=(12, 3.6), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = {case: position for position, case in enumerate(spec.cases)}
    for system in spec.systems:
        own = [row for row in rows if row.system == system]
        if own:
            x = [positions[row.case] for row in own]
            _line(left, x, [row.figures["rmse"] for row in own], system, spec)
            _line(right, x, [row.figures["perplexity_share"] for row in own], system, spec)
    for axes in (left, right):
        axes.set_xticks(range(len(positions)), list(positions), fontsize=8)
    titles = (f"RMSE ({rows[0].unit})", "perplexity / K of the least used layer")
    _finish(figure, titles)
    return figure


def by_layer(spec: Spec, rows: Sequence[Row]) -> Figure:
    """PSNR when decoding from the first layers only, and perplexity / K of every layer.

    A line per system; `rows` are those of one case.
    """
    figure = Figure(figsize=(12, 3.4), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        numbers = list(range(1, len(row.layers) + 1))
        _line(left, numbers, [layer.psnr_cumulative for layer in row.layers], row.system, spec)
        shares = [layer.perplexity.scaled(1 / layer.codebook_size) for layer in row.layers]
        _line(right, numbers, shares, row.system, spec)
    for axes in (left, right):
        axes.set_xticks(range(1, max(len(row.layers) for row in rows) + 1))
        axes.set_xlabel("layer", fontsize=8)
    _finish(figure, ("PSNR dB, decoding from the layers so far", "perplexity / K"))
    return figure


def usage_history(runs: Sequence[tuple[str, Run]]) -> Figure:
    """Perplexity / K of every layer over training, a panel per system: who collapses, and when."""
    figure = Figure(figsize=(max(4.0, 2.2 * len(runs)), 2.3), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, (name, run) in zip(panels, runs):
        levels = run.config.model.levels
        sizes = [level.codebook_size for level in levels for _ in range(level.layers)]
        _history(axes, run, "perplexity", np.array(sizes))
        axes.set_title(textwrap.fill(name, 24), fontsize=7)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("perplexity / K", fontsize=7)
    panels[0].legend(fontsize=5)
    return figure


def annealing_history(runs: Sequence[tuple[str, Run]]) -> Figure | None:
    """s² and the entropy of P̂ of every layer over training, two panels per stochastic system.

    None where there is no such system.
    """
    stochastic = [(name, run) for name, run in runs if run.config.model.quantizer.stochastic]
    if not stochastic:
        return None
    figure = Figure(figsize=(7, 2.3 * len(stochastic)), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(stochastic), 2, squeeze=False)
    for (variance, entropy), (name, run) in zip(panels, stochastic):
        _history(variance, run, "s2")
        _history(entropy, run, "entropy")
        variance.set_yscale("log")
        variance.set_ylabel(textwrap.fill(name, 24), fontsize=7)
        variance.set_title("s²", fontsize=7)
        entropy.set_title("entropy of P̂ (nats per signal)", fontsize=7)
    figure.axes[0].legend(fontsize=5)
    return figure


@torch.no_grad()
def reconstructions(runs: Sequence[tuple[str, Run]], dataset: Dataset) -> Figure:
    """Originals, and a row of reconstructions per system."""
    modality = dataset.modality
    x = dataset.signal(examples_for_figure(dataset, modality.figure_columns))
    rows: list[tuple[str, Tensor]] = [("original", dataset.picture(x))]
    for name, run in runs:
        rows.append((name, dataset.picture(run.load_model()(x).reconstruction)))
    return image_grid(rows, spectra=modality.spectra)


def finished_runs(
    specs: Sequence[RunSpec], results: Sequence[Mapping[str, Any]], folder: ComparisonDir, case: str
) -> list[tuple[str, Run]]:
    """(system, run) of a case: a finished one of each system, of the first seed that is there."""
    done = {(result["case"], result["system"], result["seed"]) for result in results}
    runs: dict[str, Run] = {}
    for spec in specs:
        is_done = (spec.case, spec.system, spec.seed) in done
        if spec.case == case and is_done and folder.run(spec).is_dir():
            runs.setdefault(spec.system, Run.open(folder.run(spec)))
    return list(runs.items())


def _history(axes: Axes, run: Run, name: str, scale: np.ndarray | float = 1.0) -> None:
    """Every layer's log entries against the step, divided by `scale`."""
    entries = [entry for entry in run.entries("train") if name in entry]
    steps = [entry["step"] for entry in entries]
    values = np.array([entry[name] for entry in entries]) / scale
    for layer in range(values.shape[1]):
        axes.plot(steps, values[:, layer], linewidth=1, label=f"layer {layer + 1}")
    axes.tick_params(which="both", labelsize=6)
    axes.set_xlabel("step", fontsize=6)
    axes.grid(alpha=0.3)


def _line(
    axes: Axes, x: Sequence[int], estimates: Sequence[Estimate], system: str, spec: Spec
) -> None:
    number = list(spec.systems).index(system)
    axes.errorbar(
        x,
        [estimate.mean for estimate in estimates],
        [estimate.error or 0.0 for estimate in estimates],
        label=system,
        marker=".",
        capsize=2,
        color=f"C{number % 10}",
        linestyle=_STYLES[number // 10 % len(_STYLES)],
        linewidth=2.2 if system == spec.reference_system else 1.0,
    )


def _finish(figure: Figure, titles: Sequence[str]) -> None:
    """Titles, shares up to 1, and the legend beside the panels, where it hides no line."""
    for axes, title in zip(figure.axes, titles):
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[1].set_ylim(0, 1)
    handles, names = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(name, 36) for name in names]
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")
