"""Figures: rows of images, and how every layer fared during training."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_ROW_INCHES = 0.9
_LABEL_INCHES = 1.3
_GAP = 0.03  # between images, of a row's height
_PANEL_DPI = 100
_PANEL_GAP = 8  # pixels between panels
_PANEL_TITLE = 36  # pixels above a panel, for two lines
_PANEL_WIDTH = 160  # pixels that a title needs


def image_grid(rows: Sequence[tuple[str, Tensor]], spectra: bool = False) -> Figure:
    """One labelled row of images `[B, C, H, W]` in [−1, 1] per entry, pixels shown as they are.

    `spectra` are one channel each, low bands at the bottom.

    >>> import torch
    >>> figure = image_grid([("original", torch.zeros(4, 3, 8, 8))])
    """
    count = len(rows[0][1])
    height, width = rows[0][1].shape[2:]
    aspect = min(4.0, max(2.0 if spectra else 0.0, width / height))  # spectra are stretched
    total_width = _LABEL_INCHES + _ROW_INCHES * count * aspect
    figure = Figure(figsize=(total_width, _ROW_INCHES * len(rows)), dpi=120)
    # One panel for all: a panel for each image takes seconds. Its unit is the height of a row.
    left = _LABEL_INCHES / total_width
    axes = figure.add_axes((left, 0.0, 1 - left, 1.0))
    axes.set_axis_off()
    for number, (label, images) in enumerate(rows):
        bottom = len(rows) - 1 - number
        for column, image in enumerate(images):
            sides = (column * aspect, (column + 1) * aspect - _GAP, bottom, bottom + 1 - _GAP)
            _draw(axes, image, spectra, extent=sides)
        words = textwrap.fill(label, 18)
        axes.text(-0.08, bottom + 0.5, words, ha="right", va="center", fontsize=8)
    axes.set(xlim=(0, count * aspect), ylim=(0, len(rows)), aspect="auto")
    return figure


def _draw(axes: Axes, image: Tensor, spectra: bool = False, **place: Any) -> None:
    """An image `[C, H, W]` in [−1, 1], pixels as they are."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
    axes.imshow(
        pixels if pixels.shape[2] == 3 else pixels[..., 0],
        cmap="magma" if spectra else "gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        origin="lower" if spectra else "upper",
        **place,
    )


# Titles of what a log says of every layer.
USE = "hard perplexity / K"
INFORMATION = "information of the choices (bits per position)"
VARIANCE = "s²"
ENTROPY = "entropy of P̂ (bits per position)"


def draw_history(
    axes: Axes,
    title: str,
    values: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    """One of `history_panels` against the step, a line for each layer; no legend.

    A vertical line marks the step at which codes become the nearest ones.
    """
    steps = [entry["step"] for entry in entries]
    marker = "." if np.isfinite(values[:, 0]).sum() < 3 else None
    for layer, name in enumerate(names):
        axes.plot(steps, values[:, layer], label=name, marker=marker, linewidth=1.2)
    axes.set_title(title, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3)
    if title == VARIANCE:
        axes.set_yscale("log")
    if title == USE:
        axes.set_ylim(0, 1)
    nearest = _nearest(entries)
    if nearest.any() and not nearest.all():
        begins = steps[max(0, int(nearest.argmax()) - 1)]  # after the last line without them
        label = "nearest codes from here on"
        axes.axvline(begins, color="0.4", linestyle=":", linewidth=1, label=label)


def history_panels(
    entries: Sequence[Mapping[str, Any]], codebook_sizes: Sequence[int], positions: Sequence[int]
) -> dict[str, np.ndarray]:
    """Values [steps, L] by title. Those of s² and entropy end where codes are the nearest ones.

    They are left out where codes have been so from the first entry on.
    """
    perplexity = np.array([entry["perplexity"] for entry in entries])
    s2 = np.array([entry["s2"] for entry in entries], dtype=float)
    entropy_bits = np.array([entry["entropy"] for entry in entries]) / np.log(2)
    nearest = _nearest(entries)
    s2[nearest] = np.nan
    entropy_bits[nearest] = np.nan
    panels = {
        USE: perplexity / np.array(codebook_sizes),
        INFORMATION: np.log2(np.maximum(1, perplexity)),
        VARIANCE: s2,
        ENTROPY: entropy_bits / np.array(positions),
    }
    return {title: values for title, values in panels.items() if not np.isnan(values).all()}


def _nearest(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Whether codes were the nearest ones [steps]: they have no s² and no entropy."""
    return np.array([sum(entry["s2"]) == 0 for entry in entries], dtype=bool)


def layer_history(
    entries: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    codebook_sizes: Sequence[int],
    positions: Sequence[int],
) -> Figure:
    """Hard perplexity, information, s² and entropy of every layer against the step.

    Args:
        entries: of the run's log, each with `step`, and `perplexity`, `s2` and `entropy` per layer
        names: of the layers
        codebook_sizes: K of every layer
        positions: how many codes a signal has in every layer
    """
    panels = history_panels(entries, codebook_sizes, positions)
    rows = len(panels) // 2
    figure = Figure(figsize=(9, 3 * rows), dpi=110, layout="constrained")
    for (title, values), axes in zip(panels.items(), figure.subplots(rows, 2, squeeze=False).flat):
        draw_history(axes, title, values, entries, names)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=9)
    return figure


def curves(rows: Sequence[tuple[str, np.ndarray]], channels: int = 4) -> Figure:
    """Series `[B, T, C]` against time: a column for each item, a row for each channel.

    The first of `rows` are the originals, drawn below the others. Of more than `channels` channels
    those that vary most are shown.

    >>> figure = curves([("original", np.zeros((2, 50, 3)))])
    """
    originals = rows[0][1]
    items, _, count = originals.shape
    varied = np.argsort(-originals.std((0, 1)), kind="stable")[:channels]
    shown = np.sort(varied)
    size = (2.6 * items, 0.5 + 1.4 * len(shown))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(shown), items, squeeze=False, sharex=True, sharey="row")
    tints = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, max(1, len(rows) - 1)))
    for line, channel in enumerate(shown):
        for item in range(items):
            axes = panels[line, item]
            axes.plot(originals[item, :, channel], color="0.75", linewidth=3, label=rows[0][0])
            for tint, (label, series) in zip(tints, rows[1:]):
                axes.plot(series[item, :, channel], color=tint, linewidth=0.9, label=label)
            axes.tick_params(labelsize=6)
            axes.grid(alpha=0.3)
        if count > 1:
            panels[line, 0].set_ylabel(f"channel {channel}", fontsize=7)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside upper center", ncols=len(rows))
    return figure


def panels_at_own_size(panels: Sequence[tuple[str, Tensor]], columns: int = 3) -> Figure:
    """Pictures `[C, H, W]` in [−1, 1] side by side, one screen pixel for each of theirs.

    Pictures too narrow for their titles have squares of several pixels for each of theirs.

    >>> import torch
    >>> figure = panels_at_own_size([("original", torch.zeros(3, 300, 200))] * 4)
    >>> figure.get_size_inches() * figure.dpi  # 3 columns of 200 and their gaps, 2 rows of 300
    array([616., 672.])
    """
    height, width = panels[0][1].shape[1:]
    enlarged = -(-_PANEL_WIDTH // width)
    height *= enlarged
    width *= enlarged
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    total_width = columns * width + (columns - 1) * _PANEL_GAP
    total_height = rows * (height + _PANEL_TITLE)
    figure = Figure(figsize=(total_width / _PANEL_DPI, total_height / _PANEL_DPI), dpi=_PANEL_DPI)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        left = column * (width + _PANEL_GAP) / total_width
        bottom = 1 - (row + 1) * (height + _PANEL_TITLE) / total_height
        axes = figure.add_axes((left, bottom, width / total_width, height / total_height))
        _draw(axes, picture, aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, fontsize=8, pad=3)
    return figure
