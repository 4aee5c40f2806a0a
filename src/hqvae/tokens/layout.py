"""Where codes stand: the layers of a model, and how many positions each has."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer stands: its level, its number within the level, and what both have."""

    level: int
    layer: int
    stride: int
    codebook_size: int

    @property
    def name(self) -> str:
        return f"level {self.level} layer {self.layer}"


@dataclass(frozen=True)
class Layout:
    """The layers of a model, coarse to fine, and the number of axes of their positions.

    >>> layout = Layout((LayerPlace(0, 0, 8, 256), LayerPlace(1, 0, 4, 512)), axes=2)
    >>> layout.shapes((2, 3))
    ((2, 3), (4, 6))
    >>> layout.positions((2, 3))
    (6, 24)
    """

    layers: tuple[LayerPlace, ...]
    axes: int

    @property
    def stride(self) -> int:
        """Of the coarsest level."""
        return self.layers[0].stride

    @property
    def ratios(self) -> tuple[int, ...]:
        """Positions of each layer along an axis, for one of the coarsest."""
        return tuple(self.stride // place.stride for place in self.layers)

    def first(self, layers: SupportsIndex) -> "Layout":
        """The layout of the first layers alone.

        Raises ValueError for a number of layers that this layout does not have.
        """
        count = operator.index(layers)
        if not 1 <= count <= len(self.layers):
            raise ValueError(
                f"layers={layers}: expected a whole number from 1 to {len(self.layers)}"
            )
        return Layout(self.layers[:count], self.axes)

    def shapes(self, coarsest: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """*S_l of every layer, from that of the coarsest level."""
        return tuple(tuple(side * ratio for side in coarsest) for ratio in self.ratios)

    def positions(self, coarsest: Sequence[int]) -> tuple[int, ...]:
        """|S_l| of every layer, from the shape of the coarsest level."""
        return tuple(map(math.prod, self.shapes(coarsest)))

    def coarsest(self, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of the coarsest level for a signal of such a size."""
        return tuple(-(-side // self.stride) for side in size)
