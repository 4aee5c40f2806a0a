"""Signals of any size through windows of a few fixed sizes.

A model computes in the same few shapes whatever it is given. So nothing depends on what else is
coded, and when: libraries round products of another shape in another way, and a code at equal
distance from two would flip.

    signal      one window where it is small enough, behind its ends masked
                several where it is not, each with a margin of what the networks can see beyond it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

_EXACT = 16  # coarsest positions up to which a window is as long as its signal


@dataclass(frozen=True)
class Window:
    """A piece of a signal as the networks see it; all numbers are coarsest positions per axis."""

    starts: tuple[int, ...]
    """Where it begins in the signal."""
    sides: tuple[int, ...]
    """Its size."""
    ends: tuple[int, ...]
    """Where the signal ends in it, at most `sides`."""
    first: tuple[int, ...]
    """Where in it begins what is kept."""
    last: tuple[int, ...]
    """Where that ends."""

    def inside(self, scale: int) -> tuple[Any, ...]:
        """What is kept of the window, an index of the last axes; in `scale`ths of a position."""
        kept = zip(self.first, self.last)
        return (..., *(slice(first * scale, last * scale) for first, last in kept))

    def within(self, scale: int) -> tuple[Any, ...]:
        """Where that lies in the whole signal, likewise."""
        kept = zip(self.starts, self.first, self.last)
        moved = ((start + first, start + last) for start, first, last in kept)
        return (..., *(slice(first * scale, last * scale) for first, last in moved))


@dataclass(frozen=True)
class Windows:
    """How signals are cut.

    stride: samples of a coarsest position
    margin: coarsest positions that windows overlap on each side
    largest: coarsest positions of a window along an axis, at most; more than two margins
    usual: the size of a signal that gets a window of just its size; None where there is none
    exact: whether every signal gets a window of just its size, however large

    >>> windows = Windows(stride=4, margin=2, largest=16)
    >>> [window.sides for window in windows.of((30, 200))]
    [(8, 16), (8, 16), (8, 16), (8, 16)]
    """

    stride: int
    margin: int
    largest: int
    usual: tuple[int, ...] | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.largest <= 2 * self.margin:
            raise ValueError(
                f"largest={self.largest}: expected more than two margins of {self.margin}"
            )

    def of(self, size: Sequence[int]) -> tuple[Window, ...]:
        """The windows of a signal of this size in samples; what they keep tiles it."""
        return _windows(self, tuple(size))


@lru_cache(maxsize=1024)
def _windows(windows: Windows, size: tuple[int, ...]) -> tuple[Window, ...]:
    if not size:
        return (Window((), (), (), (), ()),)
    counts = [-(-side // windows.stride) for side in size]
    if windows.exact or size == windows.usual:
        spans = [[(0, count, count, 0, count)] for count in counts]
    else:
        spans = [_spans(windows, count) for count in counts]
    return tuple(Window(*(tuple(values) for values in zip(*axes))) for axes in product(*spans))


_Span = tuple[int, int, int, int, int]  # of `Window`, along one axis


def _spans(windows: Windows, count: int) -> list[_Span]:
    side = window_side(count)
    if side <= windows.largest:
        return [(0, side, count, 0, count)]
    side = windows.largest
    if count <= side:
        return [(0, side, count, 0, count)]
    spans = []
    done = 0
    while done < count:
        start = min(max(0, done - windows.margin), count - side)
        stop = count if start + side == count else start + side - windows.margin
        spans.append((start, side, side, done - start, stop - start))
        done = stop
    return spans


def window_side(count: int) -> int:
    """The length of the window for a signal of so many positions: one of four per octave.

    >>> [window_side(count) for count in (7, 16, 17, 20, 21, 33, 100)]
    [7, 16, 20, 20, 24, 40, 112]
    """
    if count <= _EXACT:
        return count
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


def take(signal: Shaped[Tensor, "C *S"], window: Window, stride: int) -> Shaped[Tensor, "C *W"]:
    """The window's part of a signal, whose last samples are repeated behind its ends."""
    for axis, (start, side) in enumerate(zip(window.starts, window.sides), 1):
        first = start * stride
        wanted = side * stride
        there = signal.shape[axis]
        if first or wanted != there:
            place = torch.arange(first, first + wanted, device=signal.device)
            place = place.clamp_(max=there - 1)
            signal = signal.index_select(axis, place)
    return signal


def put(
    whole: Shaped[Tensor, "*_"] | None,
    piece: Shaped[Tensor, "*_"],
    window: Window,
    scale: int,
    shape: Sequence[int],
) -> Shaped[Tensor, "*_"]:
    """The whole, of this shape, with what is kept of a window's piece in its place.

    `whole` is None before its first piece; a piece that is all of it is not copied.
    """
    kept = piece[window.inside(scale)]
    if whole is None:
        if tuple(kept.shape) == tuple(shape):
            return kept
        whole = piece.new_zeros(tuple(shape))
    place = whole[window.within(scale)]
    place.copy_(kept[tuple(map(slice, place.shape))])
    return whole
