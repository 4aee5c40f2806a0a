"""Error metrics of arrays: in the data's own unit, and as a share of their variance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.ranks import all_sum

from .base import Mean, Metric, measured
from .distortion import psnr


class ArrayError(Metric):
    """RMSE in the data's unit, explained variance, and the mean signal-to-noise ratio.

    Explained variance is 1 − Σ ‖x − x̂‖² / Σ ‖x − x̄‖² in the data's unit, x̄ the mean of what is
    measured: 0 for the mean alone, 1 for no error.

    Args:
        deviation: of every channel, by which signals were divided

    >>> error = ArrayError(deviation=[2.0, 2.0])
    >>> x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> error.add(x, 0.5 * x)
    >>> {name: round(value, 2) for name, value in error.values().items()}
    {'rmse': 1.0, 'explained_variance': 0.75, 'mse': 0.25, 'psnr': 6.02}
    """

    def __init__(self, deviation: Sequence[float]):
        self.square = torch.tensor(deviation, dtype=torch.float64).square()
        self.mse = Mean()
        self.psnr = Mean()
        # Count, Σ x, Σ x² and Σ (x − x̂)² of every channel.
        self.sums = torch.zeros(4, len(deviation), dtype=torch.float64)

    def add(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> None:
        error = x - x_hat.float()
        weights = (self.square / self.square.mean()).float().to(x.device)
        weighted = error.square() * weights.view(1, -1, *[1] * (x.ndim - 2))
        mse = weighted.flatten(1).mean(1)
        self.mse.add(mse)
        self.psnr.add(psnr(mse, 1.0))
        rows = [torch.ones_like(x), x, x.square(), error.square()]
        per_channel = [of_all.double().movedim(1, -1).flatten(0, -2).sum(0) for of_all in rows]
        self.sums += torch.stack(per_channel).cpu()

    def values(self) -> dict[str, float]:
        """`rmse`, `explained_variance`; `mse` and `psnr`, with channels weighing as they vary."""
        count, total, square, error = all_sum(self.sums)
        count = count.clamp(min=1)
        variance = (square / count - (total / count).square()) * self.square
        error = error / count * self.square
        explained = 1 - error.sum() / variance.sum() if variance.sum() > 0 else torch.tensor(1.0)
        figures = {
            "rmse": float(error.mean().sqrt()),
            "explained_variance": float(explained),
            "mse": self.mse.value(),
            "psnr": self.psnr.value(),
        }
        return measured(figures)
