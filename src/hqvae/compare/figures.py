"""Figures of a comparison: over cases, over layers, over training, and reconstructions."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from torch import Tensor

from hqvae.data import Dataset, examples_for_figure
from hqvae.figures import ENTROPY, USE, VARIANCE, draw_history, history_panels
from hqvae.run import Run

from .jobs import ComparisonDir
from .spec import RunSpec, Spec
from .summary import Estimate, Row

_DPI = 90
_WIDTH = 12.0  # inches; one for all figures of a report
_PANELS = 4  # in a row
_MARGIN = 0.08  # of the means' range, around them


def over_cases(spec: Spec, rows: Sequence[Row]) -> Figure:
    """RMSE, and perplexity / K of the least used layer, against the case.

    A line per system, with bars of one standard error.
    """
    figure = Figure(figsize=(_WIDTH, 3.8), dpi=_DPI, layout="constrained")
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
    """PSNR, or SNR, when decoding from the first layers only, and perplexity / K of every layer.

    A line per system; `rows` are those of one case.
    """
    figure = Figure(figsize=(_WIDTH, 3.8), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        numbers = list(range(1, len(row.layers) + 1))
        _line(left, numbers, [layer.psnr_cumulative for layer in row.layers], row.system, spec)
        shares = [layer.perplexity.scaled(1 / layer.codebook_size) for layer in row.layers]
        _line(right, numbers, shares, row.system, spec)
    for axes in (left, right):
        axes.set_xticks(range(1, max(len(row.layers) for row in rows) + 1))
        axes.set_xlabel("layer", fontsize=8)
    _finish(figure, (f"{rows[0].ratio} dB, decoding from the layers so far", "perplexity / K"))
    return figure


def usage_history(runs: Sequence[tuple[str, Run]], space: Sequence[int]) -> Figure:
    """Perplexity / K of every layer over training, a panel per system: who collapses, and when.

    `space` is the size of a signal.
    """
    columns = min(_PANELS, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(_WIDTH, 2.4 * rows), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (name, run) in zip(panels.flat, runs):
        _draw(axes, USE, run, _history(run, space))
        axes.set_title(textwrap.fill(name, 40), fontsize=8)
        axes.set_xlabel("step", fontsize=8)
    for axes in panels.flat[len(runs) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("perplexity / K", fontsize=8)
    longest = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    figure.legend(*longest.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return figure


def annealing_history(runs: Sequence[tuple[str, Run]], space: Sequence[int]) -> Figure | None:
    """s² and the entropy of P̂ of every layer over training, two panels per stochastic system.

    Both end where codes become the nearest ones. `space` is the size of a signal. None where the
    log of no system has them.
    """
    stochastic = [(name, run) for name, run in runs if VARIANCE in _history(run, space)]
    if not stochastic:
        return None
    figure = Figure(figsize=(_WIDTH, 2.6 * len(stochastic)), dpi=_DPI, layout="constrained")
    rows = figure.subfigures(len(stochastic), 1, squeeze=False)[:, 0]
    for row, (name, run) in zip(rows, stochastic):
        panels = _history(run, space)
        row.suptitle(name, fontsize=9)
        for title, axes in zip((VARIANCE, ENTROPY), row.subplots(1, 2)):
            _draw(axes, title, run, panels)
            axes.set_xlabel("step", fontsize=8)
        handles, names = row.axes[0].get_legend_handles_labels()
        row.legend(handles, names, fontsize=7, loc="outside right upper")
    return figure


@torch.no_grad()
def reconstructions(runs: Sequence[tuple[str, Run]], dataset: Dataset) -> Figure:
    """Originals, and a row of reconstructions per system."""
    x = dataset.signal(examples_for_figure(dataset, dataset.modality.figure_columns))
    rows: list[tuple[str, Tensor]] = [("original", x)]
    for name, run in runs:
        rows.append((name, run.load_model()(x).reconstruction))
    return dataset.figure(rows)


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


def with_history(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, Run]]:
    """Those whose log is there."""
    return [(name, run) for name, run in runs if run.entries("train")]


def _history(run: Run, space: Sequence[int]) -> dict[str, np.ndarray]:
    config = run.config.model
    sizes = [layer.codebook_size for layer in config.layers]
    return history_panels(run.entries("train"), sizes, config.positions(space))


def _draw(axes: Axes, title: str, run: Run, panels: Mapping[str, np.ndarray]) -> None:
    names = [layer.name for layer in run.config.model.layers]
    draw_history(axes, title, panels[title], run.entries("train"), names)


def _line(
    axes: Axes, x: Sequence[int], estimates: Sequence[Estimate], system: str, spec: Spec
) -> None:
    """A system's means, with thin bars of one standard error."""
    number = list(spec.systems).index(system)
    is_reference = system == spec.reference_system
    axes.errorbar(
        x,
        [estimate.mean for estimate in estimates],
        [estimate.error or 0.0 for estimate in estimates],
        label=system,
        marker="o" if is_reference else ".",
        markersize=4 if is_reference else 6,
        capsize=2,
        elinewidth=0.7,
        color=_colour(number, len(spec.systems)),
        linewidth=2.2 if is_reference else 1.0,
        zorder=3 if is_reference else 2,
    )


def _colour(number: int, count: int) -> Any:
    """The colour of a system, which no other one of so many has."""
    if count <= 10:
        return colormaps["tab10"](number)
    return colormaps["tab20"](number) if count <= 20 else colormaps["turbo"](number / (count - 1))


def _frame_means(axes: Axes) -> None:
    """Limits by means: bars longer than all of their range are cut off, and drown nothing."""
    drawn = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    means = np.concatenate([bars.lines[0].get_ydata() for bars in drawn])
    low = np.nanmin(means)
    high = np.nanmax(means)
    least, most = axes.dataLim.intervaly
    room = high - low
    if room > 0:
        bottom = max(low - room, min(low, least))
        top = min(high + room, max(high, most))
        axes.set_ylim(bottom - _MARGIN * room, top + _MARGIN * room)


def _finish(figure: Figure, titles: Sequence[str]) -> None:
    """Titles, shares up to 1, and the legend beside the panels, where it hides no line."""
    for axes, title in zip(figure.axes, titles):
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    _frame_means(figure.axes[0])
    figure.axes[1].set_ylim(0, 1)
    handles, names = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(name, 36) for name in names]
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")
