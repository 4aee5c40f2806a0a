"""The pictures of a comparison: figures over cases, layers side by side, how every layer fared in training, reconstructions."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hqvae.data import Items, in_order
from hqvae.figures import image_grid
from hqvae.run import Run

from .jobs import Folder
from .spec import Entry, Spec
from .summary import Estimate, Row

_DPI = 90
_PICTURES, _SPECTRA = 10, 2
_STYLES = ("-", "--", ":")  # after ten systems colours come again


def over_cases(spec: Spec, rows: Sequence[Row]) -> Figure:
    """RMSE, and perplexity / K of the least used layer, against the case: a line per system, bars of one standard error."""
    figure = Figure(figsize=(12, 3.6), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    places = {case: place for place, case in enumerate(spec.cases)}
    for system in spec.systems:
        mine = [row for row in rows if row.system == system]
        if mine:
            _line(left, [places[row.case] for row in mine], [row.figures["rmse"] for row in mine], system, spec)
            _line(right, [places[row.case] for row in mine], [row.figures["perplexity_share"] for row in mine], system, spec)
    for axes, title in ((left, f"RMSE ({rows[0].unit})"), (right, "perplexity / K of the least used layer")):
        axes.set_xticks(range(len(places)), list(places), fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    right.set_ylim(0, 1)
    _name_lines(figure)
    return figure


def by_layer(spec: Spec, rows: Sequence[Row]) -> Figure:
    """PSNR when decoding from the first layers only, and perplexity / K of every layer: a line per system of one case."""
    figure = Figure(figsize=(12, 3.4), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        numbers = list(range(1, len(row.layers) + 1))
        _line(left, numbers, [layer.psnr_after for layer in row.layers], row.system, spec)
        shares = [layer.perplexity.over(layer.codebook_size) for layer in row.layers]
        _line(right, numbers, shares, row.system, spec)
    for axes, title in ((left, "PSNR dB, decoding from the layers so far"), (right, "perplexity / K")):
        axes.set_xticks(range(1, max(len(row.layers) for row in rows) + 1))
        axes.set_xlabel("layer", fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    right.set_ylim(0, 1)
    _name_lines(figure)
    return figure


def use_in_training(runs: Sequence[tuple[str, Run]]) -> Figure:
    """Perplexity / K of every layer over training, a panel per system: who collapses, and when."""
    figure = Figure(figsize=(max(4.0, 2.2 * len(runs)), 2.3), dpi=_DPI, layout="constrained")
    for axes, (name, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs):
        sizes = [level.codebook_size for level in run.config.model.levels for _ in range(level.layers)]
        _history(axes, run, "perplexity", np.array(sizes))
        axes.set_title(textwrap.fill(name, 24), fontsize=7)
        axes.set_ylim(0, 1)
    figure.axes[0].set_ylabel("perplexity / K", fontsize=7)
    figure.axes[0].legend(fontsize=5)
    return figure


def annealing(runs: Sequence[tuple[str, Run]]) -> Figure | None:
    """s² and the entropy of P̂ of every layer over training, two panels per stochastic system; None where there is none."""
    stochastic = [(name, run) for name, run in runs if run.config.model.quantizer.kind == "stochastic"]
    if not stochastic:
        return None
    figure = Figure(figsize=(7, 2.3 * len(stochastic)), dpi=_DPI, layout="constrained")
    for (variance, entropy), (name, run) in zip(figure.subplots(len(stochastic), 2, squeeze=False), stochastic):
        _history(variance, run, "s2")
        _history(entropy, run, "entropy")
        variance.set_yscale("log")
        variance.set_ylabel(textwrap.fill(name, 24), fontsize=7)
        variance.set_title("s²", fontsize=7)
        entropy.set_title("entropy of P̂ (nats per signal)", fontsize=7)
    figure.axes[0].legend(fontsize=5)
    return figure


def _history(axes: Any, run: Run, name: str, whole: np.ndarray | float = 1.0) -> None:
    """Every layer's log entries against the step, as shares of `whole`."""
    entries = run.entries("train")
    values = np.array([entry[name] for entry in entries]) / whole
    for layer in range(values.shape[1]):
        axes.plot([entry["step"] for entry in entries], values[:, layer], linewidth=1, label=f"layer {layer + 1}")
    axes.tick_params(which="both", labelsize=6)
    axes.set_xlabel("step", fontsize=6)
    axes.grid(alpha=0.3)


@torch.no_grad()
def side_by_side(runs: Sequence[tuple[str, Run]], items: Items) -> Figure:
    """Originals, and a row of reconstructions per system."""
    count = min(_PICTURES if items.form.per_second is None else _SPECTRA, len(items))
    x = items.signal(next(in_order(items, count, count)))
    rows: list[tuple[str, Tensor]] = [("original", x)]
    for name, run in runs:
        rows.append((name, run.load_model()(x).reconstruction))
    return image_grid([(name, items.picture(signals)) for name, signals in rows], spectra=items.form.per_second is not None)


def finished(entries: Sequence[Entry], results: Sequence[dict[str, Any]], folder: Folder, case: str) -> list[tuple[str, Run]]:
    """One finished run per system of a case, that of the earliest seed whose folder is there."""
    done = {(result["case"], result["system"], result["seed"]) for result in results}
    runs: dict[str, Run] = {}
    for entry in entries:
        if entry.case == case and (case, entry.system, entry.seed) in done and folder.run(entry).is_dir():
            runs.setdefault(entry.system, Run.open(folder.run(entry)))
    return list(runs.items())


def _line(axes: Any, places: Sequence[int], estimates: Sequence[Estimate], system: str, spec: Spec) -> None:
    number = list(spec.systems).index(system)
    axes.errorbar(
        places, [e.mean for e in estimates], [e.error or 0.0 for e in estimates], label=system, marker=".", capsize=2,
        color=f"C{number % 10}", linestyle=_STYLES[number // 10 % len(_STYLES)], linewidth=2.2 if system == spec.ours else 1.0,
    )  # fmt: skip


def _name_lines(figure: Figure) -> None:
    """The legend beside the panels, where it hides no line."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, [textwrap.fill(name, 36) for name in names], fontsize=7, loc="outside right upper")
