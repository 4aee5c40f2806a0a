"""What is drawn while an autoencoder trains."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from hqvae.data import Dataset, examples_for_figure
from hqvae.figures import image_grid, layer_history
from hqvae.model import HQVAE, LayerPlace


@torch.no_grad()
def before_and_after(model: HQVAE, data: Dataset, step: int, device: torch.device) -> Figure:
    """Originals and their reconstructions."""
    x = data.signal(examples_for_figure(data, data.modality.figure_columns), device)
    x_hat = model(x).reconstruction
    rows = [("original", data.picture(x)), (f"step {step}", data.picture(x_hat))]
    return image_grid(rows, spectra=data.modality.spectra)


def layers_figure(
    places: Sequence[LayerPlace], positions: Sequence[int], entries: Sequence[dict[str, Any]]
) -> Figure:
    """Use, s² and entropy of every layer against the step; `positions` are |S_r| of the levels."""
    return layer_history(
        entries,
        [place.name for place in places],
        [place.codebook_size for place in places],
        [positions[place.level] for place in places],
    )
