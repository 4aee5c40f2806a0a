"""What a run's model makes of its data, to look at and to listen to."""

import math

import torch
from torch import Tensor

from hqvae.data import BrokenItem, Dataset, examples_for_figure
from hqvae.figures import panels_at_own_size
from hqvae.model import HQVAE
from hqvae.run import Run

_LARGEST_SIDE = 640  # of a picture at its own size; of larger ones the middle is shown


def save_pictures(run: Run, model: HQVAE, data: Dataset, device: torch.device) -> None:
    """All of them, in the run's report."""
    save_reconstructions(run, model, data, device)
    save_whole_picture(run, model, data, device)


@torch.no_grad()
def save_reconstructions(run: Run, model: HQVAE, data: Dataset, device: torch.device) -> None:
    """Originals and reconstructions from the first 1, 2 … L layers: a picture, and audio files."""
    count = data.modality.figure_columns
    x = data.signal(examples_for_figure(data, count), device)
    codes = model.encode(x)
    rows = [("original", x)]
    for layers in range(1, len(codes) + 1):
        label = f"{layers} layer{'s' * (layers > 1)}"
        rows.append((label, model.decode(codes, layers, size=x.shape[2:])))
    run.save_figure("reconstructions.png", data.figure(rows))
    if data.sample_rate is None:
        return
    for label, signals in rows:
        for number, waveform in enumerate(data.waveform(signals.cpu())):
            name = f"{number}-{label.replace(' ', '-')}.wav"
            run.save_audio(name, waveform[0].numpy(), data.sample_rate)


@torch.no_grad()
def save_whole_picture(run: Run, model: HQVAE, data: Dataset, device: torch.device) -> None:
    """One picture at its own size: the original, and what the first 1, 2 … L layers make of it.

    Networks are convolutional, so they take any size. Nothing is drawn for data that are no
    pictures, and where none can be read.
    """
    whole = _first_whole(data)
    if whole is None:
        return
    x = whole[None].to(device)
    codes = model.encode(x)
    panels = [("original", whole)]
    bits = 0.0
    for count, (place, layer) in enumerate(zip(model.config.layers, codes), 1):
        bits += layer[0].numel() * math.log2(place.codebook_size) / x[0, 0].numel()
        x_hat = model.decode(codes, count, size=x.shape[2:]).clamp(-1, 1)
        psnr = 10 * math.log10(4 / max(float((x - x_hat).square().mean()), 1e-10))
        head = f"up to {place.name}\n{bits:.2f} bits/pixel, {psnr:.1f} dB"
        panels.append((head, x_hat[0]))
    run.save_figure("whole-picture.png", panels_at_own_size(panels))


def _first_whole(data: Dataset) -> Tensor | None:
    """The first picture that can be read, or its middle where it is very large."""
    for i in range(len(data)):
        try:
            whole = data.whole(i)
        except BrokenItem:
            continue
        if whole is None:
            return None
        height, width = whole.shape[1:]
        top = max(0, height - _LARGEST_SIDE) // 2
        left = max(0, width - _LARGEST_SIDE) // 2
        return whole[:, top : top + _LARGEST_SIDE, left : left + _LARGEST_SIDE]
    return None
