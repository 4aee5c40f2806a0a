"""A split as it is coded: each example once, or each item whole."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from .broken import BrokenItem
from .dataset import Dataset
from .sources import Label

_AT_ONCE = 2**20  # points of examples that a thread reads at a time, about
_MOST_AT_ONCE = 256  # examples, of which a look at each takes its time
_MOST_STACKED = 4096  # items that are read as one array
_STACKED_VALUES = 2**22  # of these
_AHEAD = 3  # reads that wait for each thread
BlockT = TypeVar("BlockT", bound="Block")


class Item(NamedTuple):
    """One item of a split, read."""

    key: str
    """Its name, stable and of no other."""
    label: Label
    """Its class."""
    original_size: tuple[int, ...]
    """[H, W] of the picture, or [T] of the sound at the rate of the data."""
    signal: Shaped[Tensor, "C ..."]
    """As `encode` takes it, without the axis of a batch."""


@dataclass(frozen=True)
class Block(ABC):
    """Items that were read together, one after the other in their split."""

    keys: list[str]
    labels: list[Label]
    broken: list[BrokenItem]
    """Those that cannot be had; the other fields leave them out."""

    @property
    def items(self) -> int:
        """All of them."""
        return len(self.keys) + len(self.broken)

    @property
    @abstractmethod
    def points(self) -> int:
        """Of all signals together."""

    @classmethod
    def joined(cls: type[BlockT], blocks: Sequence[BlockT]) -> BlockT:
        """One of several, at least one, of the same split."""
        columns = ([getattr(one, field.name) for one in blocks] for field in fields(cls))
        return cls(*map(_chained, columns))


@dataclass(frozen=True)
class ItemBlock(Block):
    """Items of any size, each a signal of its own."""

    original_sizes: list[tuple[int, ...]]
    signals: list[Tensor]

    @property
    def points(self) -> int:
        return sum(math.prod(signal.shape[1:]) for signal in self.signals)


@dataclass(frozen=True)
class StackedBlock(Block):
    """Items of one size, read as one array."""

    signals: Shaped[Tensor, "N C ..."]

    @property
    def points(self) -> int:
        return len(self.signals) * math.prod(self.size)

    @property
    def size(self) -> tuple[int, ...]:
        """Of each signal."""
        return tuple(self.signals.shape[2:])


def _chained(column: list[Any]) -> Any:
    if isinstance(column[0], Tensor):
        return torch.cat(column)
    return list(chain.from_iterable(column))


class Items:
    """What of a split is coded.

    Args:
        dataset: the split
        whole: items at their own size; else examples, as evaluation sees them

    >>> import numpy as np
    >>> from PIL import Image
    >>> from hqvae.data import FileIndex, ImageConfig, ImageDataset
    >>> index = FileIndex(["a"], lambda i: Image.new("RGB", (24, 16)), labels=["cat"])
    >>> config = ImageConfig(size=8, cache_mb=0)
    >>> item = Items(ImageDataset(index, config, channels=3), whole=False).read(0)
    >>> item.key, item.label, item.original_size, item.signal.shape
    ('a', 'cat', (16, 24), torch.Size([3, 8, 8]))
    """

    def __init__(self, dataset: Dataset, whole: bool):
        self.dataset = dataset
        self.whole = whole

    def __len__(self) -> int:
        return len(self.dataset.keys) if self.whole else len(self.dataset)

    def read(self, i: int) -> Item:
        """The i-th. Raises BrokenItem where it cannot be had."""
        dataset = self.dataset
        raw, size = dataset.coded_raw(i, self.whole)
        label = None if dataset.labels is None else dataset.labels[self._item_of(i)]
        return Item(self._key(i), label, size, dataset.codable(raw))

    def without_examples(self) -> list[BrokenItem]:
        """Items of which nothing is asked for, since nothing can be read of them."""
        return [] if self.whole else self.dataset.without_examples()

    def read_in_order(self, start: int, stop: int, threads: int) -> Iterator[Block]:
        """All from `start` to `stop`, some at a time; threads read ahead, a little."""
        at_once = self._at_once()

        def read(first: int) -> Block:
            return self.read_block(first, min(stop, first + at_once))

        with ThreadPoolExecutor(threads) as pool:
            starts = iter(range(start, stop, at_once))
            waiting = [pool.submit(read, first) for first in islice(starts, threads * _AHEAD)]
            try:
                while waiting:
                    yield waiting.pop(0).result()
                    waiting += [pool.submit(read, first) for first in islice(starts, 1)]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def read_block(self, start: int, stop: int) -> Block:
        """Those from `start` to `stop`, at once."""
        if self.dataset.is_stacked:
            return self._read_stacked(start, stop)
        read = [self._try(i) for i in range(start, stop)]
        items = [one for one in read if isinstance(one, Item)]
        keys, labels, sizes, signals = map(list, zip(*items)) if items else ([], [], [], [])
        broken = [one for one in read if isinstance(one, BrokenItem)]
        return ItemBlock(keys, labels, broken, sizes, signals)

    def _read_stacked(self, start: int, stop: int) -> StackedBlock:
        dataset = self.dataset
        found, signals = dataset.coded_batch(np.arange(start, stop))
        numbers = found.tolist()
        labels = [None if dataset.labels is None else dataset.labels[i] for i in numbers]
        broken = [self._try(i) for i in sorted(set(range(start, stop)) - set(numbers))]
        return StackedBlock(
            [dataset.keys[i] for i in numbers],
            labels,
            [one for one in broken if isinstance(one, BrokenItem)],
            signals,
        )

    def _at_once(self) -> int:
        """Items that a thread reads at a time."""
        if self.dataset.is_stacked:
            return max(1, min(_MOST_STACKED, _STACKED_VALUES // math.prod(self.dataset.shape)))
        points = math.prod(self.dataset.shape[1:])
        return 1 if self.whole else max(1, min(_MOST_AT_ONCE, _AT_ONCE // points))

    def _try(self, i: int) -> Item | BrokenItem:
        try:
            return self.read(i)
        except BrokenItem as error:
            self.dataset.note_broken({self._item_of(i): error.reason}, "it is left out")
            return BrokenItem(self._key(i), error.reason)

    def _item_of(self, i: int) -> int:
        return i if self.whole else self.dataset.item_of(i)

    def _key(self, i: int) -> str:
        return self.dataset.keys[i] if self.whole else self.dataset.example_key(i)
