"""Figures: rows of images, and how every layer fared during training."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_ROW_INCHES = 0.9
_LABEL_INCHES = 1.3
_GAP = 0.03  # between images, of a row's height


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
        unit_range = (images.detach().float().cpu().clamp(-1, 1) + 1) / 2
        for column, pixels in enumerate(unit_range.permute(0, 2, 3, 1).numpy()):
            axes.imshow(
                pixels if pixels.shape[2] == 3 else pixels[..., 0],
                cmap="magma" if spectra else "gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
                origin="lower" if spectra else "upper",
                extent=(column * aspect, (column + 1) * aspect - _GAP, bottom, bottom + 1 - _GAP),
            )
        words = textwrap.fill(label, 18)
        axes.text(-0.08, bottom + 0.5, words, ha="right", va="center", fontsize=8)
    axes.set(xlim=(0, count * aspect), ylim=(0, len(rows)), aspect="auto")
    return figure


def layer_history(
    entries: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    codebook_sizes: Sequence[int],
    positions: Sequence[int],
) -> Figure:
    """Hard perplexity, s², entropy and information of every layer against the step.

    Args:
        entries: of the run's log, each with `step`, and `perplexity`, `s2` and `entropy` per layer
        names: of the layers
        codebook_sizes: K of every layer
        positions: how many codes a signal has in every layer
    """
    perplexity = np.array([entry["perplexity"] for entry in entries])
    entropy_bits = np.array([entry["entropy"] for entry in entries]) / np.log(2)
    panels = {
        "hard perplexity / K": perplexity / np.array(codebook_sizes),
        "s²": np.array([entry["s2"] for entry in entries]),
        "entropy of P̂ (bits per position)": entropy_bits / np.array(positions),
        "information of the choices (bits per position)": np.log2(np.maximum(1, perplexity)),
    }
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(9, 6), dpi=110)
    for (title, values), axes in zip(panels.items(), figure.subplots(2, 2).flat):
        for layer, name in enumerate(names):
            marker = "." if len(steps) < 3 else None
            axes.plot(steps, values[:, layer], label=name, marker=marker)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if title == "s²" and (values > 0).all():
            axes.set_yscale("log")
        if title.startswith("hard"):
            axes.set_ylim(0, 1)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=9)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.09, top=0.95, hspace=0.25)
    return figure
