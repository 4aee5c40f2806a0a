"""The pictures of a comparison: figures over cases, layers side by side, how every layer fared in training, reconstructions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hqvae.data import Items, in_order
from hqvae.pictures import grid
from hqvae.run import Run

from .jobs import Folder
from .spec import Entry, Spec
from .summary import Estimate, Row

_DPI = 90
_PICTURES, _SPECTRA = 10, 2


def over_cases(spec: Spec, rows: Sequence[Row]) -> Figure:
    """RMSE, and perplexity / K of the least used layer, against the case: a line per system, bars of one standard error."""
    figure = Figure(figsize=(10, 3.6), dpi=_DPI, layout="constrained")
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
    left.legend(fontsize=7)
    return figure


def by_layer(spec: Spec, rows: Sequence[Row]) -> Figure:
    """PSNR when decoding from the first layers only, and perplexity / K of every layer: a line per system of one case."""
    figure = Figure(figsize=(10, 3.4), dpi=_DPI, layout="constrained")
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
    left.legend(fontsize=7)
    return figure


def traces(runs: Sequence[tuple[str, Run]]) -> Figure:
    """Perplexity / K, s² and the entropy of P̂ of every layer over training; a column per system, s² and entropy where it has them."""
    histories = [(name, run.entries("train"), [level.codebook_size for level in run.config.model.levels for _ in range(level.layers)])
                 for name, run in runs]  # fmt: skip
    figure = Figure(figsize=(max(4.0, 2.1 * len(runs)), 5.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(3, len(runs), squeeze=False)
    for column, (name, entries, sizes) in enumerate(histories):
        steps = [entry["step"] for entry in entries]
        for row, values in enumerate(
            (_array(entries, "perplexity") / np.array(sizes), _array(entries, "s2"), _array(entries, "entropy"))
        ):  # fmt: skip
            axes = panels[row, column]
            stochastic = values.size and (row == 0 or (_array(entries, "s2") > 0).all())
            for index in range(len(sizes)) if stochastic else ():
                axes.plot(steps, values[:, index], linewidth=1, label=f"layer {index + 1}")
            axes.tick_params(which="both", labelsize=6)
            axes.grid(alpha=0.3)
            axes.set_visible(bool(stochastic))
        panels[0, column].set_title(name, fontsize=7)
        panels[0, column].set_ylim(0, 1)
        if panels[1, column].get_visible():
            panels[1, column].set_yscale("log")
    for axes in panels.flat:
        axes.set_xlabel("step", fontsize=6)
    for row, title in enumerate(("perplexity / K", "s²", "entropy of P̂ (nats per signal)")):
        shown = next((axes for axes in panels[row] if axes.get_visible()), None)
        if shown is not None:
            shown.set_ylabel(title, fontsize=7)
    if max(len(sizes) for *_, sizes in histories) > 1:
        panels[0, 0].legend(fontsize=5)
    return figure


@torch.no_grad()
def side_by_side(runs: Sequence[tuple[str, Run]], items: Items) -> Figure:
    """Originals, and a row of reconstructions per system."""
    count = min(_PICTURES if items.form.per_second is None else _SPECTRA, len(items))
    x = items.signal(next(in_order(items, count, count)))
    rows: list[tuple[str, Tensor]] = [("original", x)]
    for name, run in runs:
        rows.append((name, run.load_model()(x).reconstruction))
    return grid(rows, spectra=items.form.per_second is not None)


def finished(entries: Sequence[Entry], results: Sequence[dict[str, Any]], folder: Folder, case: str) -> list[tuple[str, Run]]:
    """One finished run per system of a case, that of the earliest seed."""
    done = {(result["case"], result["system"], result["seed"]) for result in results}
    runs: dict[str, Run] = {}
    for entry in entries:
        if entry.case == case and (case, entry.system, entry.seed) in done:
            runs.setdefault(entry.system, Run.open(folder.run(entry)))
    return list(runs.items())


def _array(entries: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([entry[name] for entry in entries])


def _line(axes: Any, places: Sequence[int], estimates: Sequence[Estimate], system: str, spec: Spec) -> None:
    axes.errorbar(
        places, [e.mean for e in estimates], [e.error or 0.0 for e in estimates], label=system, marker=".", capsize=2,
        color=f"C{list(spec.systems).index(system)}", linewidth=2.2 if system == spec.ours else 1.0,
    )  # fmt: skip
