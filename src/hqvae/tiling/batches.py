"""Windows of many signals in batches of fixed shapes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from .windows import Window, Windows

_FULL_VECTORS = 64  # signals of which a batch has whole vectors of the processor, whatever its size
_FEWEST = 8  # signals of a batch; with fewer, filling up would cost too much

Piece = tuple[int, Window]  # the number of a signal, and one of its windows


@dataclass(frozen=True)
class Batch:
    """Windows of one size that are computed at a time.

    pieces: at most `batch_size` of them
    rows: of the batch, with what fills it up
    """

    pieces: tuple[Piece, ...]
    rows: int

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the windows, in coarsest positions."""
        return self.pieces[0][1].sides

    def filled(self, parts: Sequence[Shaped[Tensor, "*_"]]) -> Shaped[Tensor, "rows *_"]:
        """One for each piece, stacked; the last again until the batch is full."""
        return torch.stack([*parts, *[parts[-1]] * (self.rows - len(parts))])

    @property
    def ends(self) -> Shaped[Tensor, "rows A"]:
        """Where the signals end, in coarsest positions."""
        return self.filled([torch.tensor(window.ends) for _, window in self.pieces])


def batch_size(sides: Sequence[int], points: int) -> int:
    """Signals of such a size in samples that are computed at a time, for so many points in all.

    >>> [batch_size((side, side), 2**16) for side in (8, 32, 33, 64, 128)]
    [1024, 64, 60, 16, 1]
    """
    count = points // math.prod(sides)
    if count >= _FULL_VECTORS:
        return count - count % _FULL_VECTORS
    return count if count >= _FEWEST else 1


def rows_of(count: int) -> int:
    """Rows of a batch of so many signals.

    Processors compute a batch's last values in another way where they fill no vector. So one more
    row stands behind, which nobody uses.

    >>> [rows_of(count) for count in (1, 16, 64)]
    [1, 17, 64]
    """
    return count if count == 1 or count % _FULL_VECTORS == 0 else count + 1


def batches(windows: Windows, sizes: Sequence[tuple[int, ...]], points: int) -> Iterator[Batch]:
    """All windows of signals of these sizes, those of one size together."""
    waiting: dict[tuple[int, ...], list[Piece]] = {}

    def batch(pieces: list[Piece]) -> Batch:
        return Batch(tuple(pieces), rows_of(count_of(pieces[0][1])))

    def count_of(window: Window) -> int:
        return batch_size([side * windows.stride for side in window.sides], points)

    for item, size in enumerate(sizes):
        for window in windows.of(size):
            pieces = waiting.setdefault(window.sides, [])
            pieces.append((item, window))
            if len(pieces) == count_of(window):
                yield batch(waiting.pop(window.sides))
    yield from map(batch, waiting.values())
