"""Batches in an order that is a function of (seed, step) alone: resuming needs no state, and every process finds its share."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from .items import Items


@dataclass(frozen=True)
class Order:
    """An endless stream over `count` items: one shuffle after another, each a function of (seed, epoch).

    The global batch of a step is `batch` consecutive items of the stream, so no item is dropped at an epoch's end.
    """

    count: int
    batch: int
    seed: int

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices [batch], draws [batch, 2] in [0, 1)) of a step's global batch."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs = places // self.count
        indices = np.concatenate([_shuffle(self.count, self.seed, int(e))[places[epochs == e] % self.count] for e in np.unique(epochs)])
        return indices, np.random.default_rng((self.seed, 1, step)).random((self.batch, 2))


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


class _Share:
    """The part [first, first + size) of every global batch from step `start` on, as keys of `Items`."""

    def __init__(self, order: Order, start: int, stop: int, parts: Sequence[slice]):
        self.order, self.start, self.stop, self.parts = order, start, stop, parts

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.parts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(self.start, self.stop):
            indices, draws = self.order.at(step)
            for part in self.parts:
                yield indices[part], draws[part]


def training_batches(items: Items, order: Order, start: int, stop: int, parts: Sequence[slice]) -> Iterator[Shaped[Tensor, "B C *S"]]:
    """For each step from `start` to `stop`, the given parts of its global batch (one per accumulated batch of this process)."""
    workers = 0 if items.cache is not None else items.config.workers
    generator = torch.Generator()  # their own, or to begin would move the global one, which some quantizers draw from
    return iter(
        torch.utils.data.DataLoader(
            items, sampler=_Share(order, start, stop, parts), batch_size=None, num_workers=workers,
            prefetch_factor=4 if workers else None, pin_memory=torch.cuda.is_available(), generator=generator,
            worker_init_fn=_leave_stopping_to_the_parent if workers else None,
        )
    )  # fmt: skip


def _leave_stopping_to_the_parent(worker: int) -> None:
    """A terminal's Ctrl-C and a scheduler's kill reach the whole group; the parent needs its workers to finish its step first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def in_order(items: Items, batch: int, limit: int | None = None, rank: int = 0, world: int = 1) -> Iterator[Shaped[Tensor, "B C *S"]]:
    """Items in order, each exactly once, dealt to `world` processes; the last batch may be short.

    With a `limit`, so many of them, spread evenly over the split: neighbours are often alike.
    """
    mine = np.linspace(0, len(items) - 1, min(len(items), limit or len(items))).round().astype(int)[rank::world]
    for start in range(0, len(mine), batch):
        yield items[mine[start : start + batch], None]
