"""What is drawn while an autoencoder trains."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hqvae.data import Dataset, examples_for_figure, to_pixels, to_signal
from hqvae.figures import image_grid, layer_history
from hqvae.model import HQVAE, HQVAEConfig

_MOST_ROWS = 8


class Reconstructions:
    """Reconstructions of the same validation examples, at steps that are spread over the run.

    Of more validations than a figure has rows, every second one is dropped but for the last.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}  # step → pictures in uint8, small enough for a checkpoint

    @torch.no_grad()
    def add(self, model: HQVAE, data: Dataset, step: int, device: torch.device) -> Figure:
        """Reconstruct as the model does now; the figure of all steps so far."""
        x = data.signal(examples_for_figure(data, data.modality.figure_columns), device)
        self.rows[step] = to_pixels(data.picture(model(x).reconstruction))
        if len(self.rows) > _MOST_ROWS:
            steps = sorted(self.rows)
            self.rows = {s: self.rows[s] for s in sorted({*steps[::2], steps[-1]})}
        rows = [(f"step {s}", to_signal(pictures)) for s, pictures in self.rows.items()]
        return image_grid([("original", data.picture(x)), *rows], spectra=data.modality.spectra)


def layers_figure(
    config: HQVAEConfig, space: Sequence[int], entries: Sequence[dict[str, Any]]
) -> Figure:
    """Use, s² and entropy of every layer against the step, for signals of such a size."""
    return layer_history(
        entries,
        [layer.name for layer in config.layers],
        [layer.codebook_size for layer in config.layers],
        config.positions(space),
    )
