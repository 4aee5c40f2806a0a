"""Pictures: originals beside reconstructions from 1 … L layers, and how every layer fared during training."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_ROW_INCHES = 0.9


def grid(rows: Sequence[tuple[str, Tensor]], spectra: bool = False) -> Figure:
    """One labelled row of images `[B, C, H, W]` in [−1, 1] per entry, pixels shown as they are; `spectra` with low bands at the bottom."""
    columns, (height, width) = len(rows[0][1]), rows[0][1].shape[2:]
    shape = min(4.0, max(2.0 if spectra else 0.0, width / height))  # spectra stretch
    figure = Figure(figsize=(1.3 + _ROW_INCHES * columns * shape, 0.1 + _ROW_INCHES * len(rows)), dpi=120)
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for (label, images), line in zip(rows, axes):
        pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
        for picture, place in zip(pixels, line):
            place.imshow(
                picture if picture.shape[2] == 3 else picture[..., 0], cmap="magma" if spectra else "gray", vmin=0, vmax=1,
                interpolation="nearest", origin="lower" if spectra else "upper", aspect="auto" if spectra else "equal",
            )  # fmt: skip
            place.set_axis_off()
        line[0].text(-0.08, 0.5, textwrap.fill(label, 18), transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=1.3 / figure.get_figwidth(), right=0.995, bottom=0.005, top=0.995)
    return figure


def layer_history(entries: Sequence[dict], names: Sequence[str], codebook_sizes: Sequence[int], positions: Sequence[int]) -> Figure:
    """Hard perplexity, s², entropy and bits of every layer against the step, from the run's log entries."""
    steps = [entry["step"] for entry in entries]
    panels = {
        "hard perplexity / K": np.array([entry["perplexity"] for entry in entries]) / np.array(codebook_sizes),
        "s²": np.array([entry["s2"] for entry in entries]),
        "entropy of P̂ (bits per position)": np.array([entry["entropy"] for entry in entries]) / np.array(positions) / np.log(2),
        "information of the choices (bits per position)": np.log2(np.maximum(1, [entry["perplexity"] for entry in entries])),
    }
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    for (title, values), place in zip(panels.items(), figure.subplots(2, 2).flat):
        for index, name in enumerate(names):
            place.plot(steps, values[:, index], label=name, marker="." if len(steps) < 3 else None)
        place.set_title(title, fontsize=9)
        place.tick_params(labelsize=8)
        place.grid(alpha=0.3)
        if title == "s²" and (values > 0).all():
            place.set_yscale("log")
        if title.startswith("hard"):
            place.set_ylim(0, 1)
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("step", fontsize=9)
    return figure
