"""What every metric can do, and the mean that most of them are made of."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from hqvae.ranks import all_sum


class Metric(ABC):
    """Figures of originals and reconstructions, over all batches and all processes.

    Every process calls `add` for its batches, then every process calls `values` once.
    """

    @abstractmethod
    def add(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> None:
        """A batch of originals and reconstructions, both in [−1, 1]: clamping is the caller's.

        A metric ignores signals that it cannot measure, such as images below its window.
        """

    @abstractmethod
    def values(self) -> dict[str, float]:
        """The figures by name, of all processes; only those that could be measured."""


class Mean:
    """A mean over signals, in double precision, over all batches and all processes.

    >>> mean = Mean()
    >>> mean.add(torch.tensor([1.0, 2.0]))
    >>> mean.add(torch.tensor([6.0]))
    >>> mean.value()
    3.0
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def add(self, values: Float[Tensor, "B"]) -> None:
        """One value per signal of a batch."""
        self.total += float(values.double().sum())
        self.count += len(values)

    def value(self) -> float:
        """The mean over all processes; NaN of no signals."""
        sums = torch.tensor([self.total, self.count], dtype=torch.float64)
        total, count = all_sum(sums).tolist()
        return total / count if count else math.nan

    def global_count(self) -> int:
        """How many signals all processes have added."""
        return int(all_sum(torch.tensor(self.count)))


def measured(figures: dict[str, float]) -> dict[str, float]:
    """Without the figures of no signals."""
    return {name: figure for name, figure in figures.items() if not math.isnan(figure)}
