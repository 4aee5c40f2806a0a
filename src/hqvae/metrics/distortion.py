"""Error metrics of any signals (MSE, RMSE, PSNR), and the structural similarity of images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Mean, Metric, measured

_SSIM_WINDOW = 11  # pixels


PEAK_SQUARE = 4.0  # of signals in [−1, 1]


def psnr(mse: Float[Tensor, "B"], square: float = PEAK_SQUARE) -> Float[Tensor, "B"]:
    """Peak signal-to-noise ratio 10 log10(4 / MSE), in dB, of signals in [−1, 1].

    With 1 for `square` it is the signal-to-noise ratio of signals of variance 1.

    >>> psnr(torch.tensor([4.0, 0.04]))
    tensor([ 0., 20.])
    """
    return 10 * torch.log10(square / mse.clamp(min=1e-12))


class Distortion(Metric):
    """MSE and RMSE over all elements, and the mean PSNR of the signals.

    `mse` and `psnr` are of signals in [−1, 1]; `rmse` is in the signals' own unit.

    Args:
        scale: how many of the unit one is: 127.5 for 8-bit images

    >>> distortion = Distortion(scale=127.5)
    >>> distortion.add(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.1))
    >>> {name: round(value, 2) for name, value in distortion.values().items()}
    {'mse': 0.01, 'rmse': 12.75, 'psnr': 26.02}
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self.mse = Mean()
        self.psnr = Mean()

    def add(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> None:
        self.add_mse((x - x_hat.float()).square().flatten(1).mean(1))

    def add_mse(self, mse: Float[Tensor, "B"]) -> None:
        """The mean squared error of each signal of a batch, where it is known already."""
        self.mse.add(mse)
        self.psnr.add(psnr(mse))

    def values(self) -> dict[str, float]:
        """`mse`, `rmse` and `psnr`."""
        mse = self.mse.value()
        figures = {"mse": mse, "rmse": self.scale * math.sqrt(mse), "psnr": self.psnr.value()}
        return measured(figures)

    def global_count(self) -> int:
        """How many signals all processes have added."""
        return self.mse.global_count()


def ssim(x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"] | None:
    """Structural similarity of each image in [−1, 1]; None for images smaller than the window.

    Gaussian window of 11 pixels, σ = 1.5  (Wang, Bovik, Sheikh and Simoncelli, 2004).
    """
    if min(x.shape[2:]) < _SSIM_WINDOW:
        return None
    # Channels last is three times faster on a CPU.
    x = x.contiguous(memory_format=torch.channels_last)
    x_hat = x_hat.contiguous(memory_format=torch.channels_last)
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(x_hat, x, data_range=2.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity.reshape(len(x))


class SSIM(Metric):
    """Mean structural similarity of images (`ssim`); signals that are no images have none.

    >>> metric, images = SSIM(), torch.rand(2, 3, 16, 16)
    >>> metric.add(images, images)
    >>> round(metric.values()["ssim"], 4)
    1.0
    """

    def __init__(self) -> None:
        self.ssim = Mean()

    def add(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> None:
        similarity = ssim(x, x_hat) if x.ndim == 4 else None
        if similarity is not None:
            self.ssim.add(similarity)

    def values(self) -> dict[str, float]:
        """`ssim`."""
        return measured({"ssim": self.ssim.value()})
