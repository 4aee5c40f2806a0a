"""Four ways to lay codes out for a language model, each with its exact inverse."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Int64
from torch import Tensor

from hqvae.errors import InputError

from .layout import Layout
from .view import View


@dataclass(frozen=True)
class PerLayer(View):
    """The layers side by side: [L, *S], for layers of one stride.

    Layers of several strides have no such form but the tuple of their codes itself.

    Raises InputError for layers of several strides.

    >>> from hqvae.tokens import LayerPlace
    >>> view = PerLayer(Layout((LayerPlace(0, 0, 8, 9), LayerPlace(0, 1, 8, 9)), axes=1))
    >>> view.forward([torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])])
    tensor([[1, 2, 3],
            [4, 5, 6]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        strides = [place.stride for place in self.layout.layers]
        if len(set(strides)) > 1:
            raise InputError(
                f"layers of strides {strides} do not stack; use ByLayer or ByPosition, "
                "or the tuple of codes as it is, with one array per layer"
            )

    def _steps(self, layout: Layout, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def _template(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "L *S"]:
        return torch.zeros(len(layout.layers), *shape, dtype=torch.int64)

    def _places(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        return torch.arange(sum(layout.positions(shape)))


@dataclass(frozen=True)
class Flat(View):
    """A view of one token after the other: [N], between `bos` and `eos` if wanted.

    Args:
        layout, vocabulary: as `View`
        bos: the special token `bos` stands first
        eos: the special token `eos` stands last, after the first k layers too

    Raises InputError for `bos` or `eos` that the vocabulary does not have.
    """

    bos: bool = False
    eos: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = [name for name, on in (("bos", self.bos), ("eos", self.eos)) if on]
        if wanted and self.vocabulary is None:
            raise InputError(
                f"{' and '.join(wanted)} without a vocabulary: raw codes leave no token for it; "
                "give a Vocabulary"
            )
        if self.vocabulary is not None:
            for name in wanted:
                self.vocabulary.id(name)

    def _steps(self, layout: Layout, shape: tuple[int, ...]) -> int:
        return sum(layout.positions(shape)) + self.bos + self.eos

    def _template(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        template = torch.zeros(self._steps(layout, shape), dtype=torch.int64)
        if self.vocabulary is not None and self.bos:
            template[0] = self.vocabulary.id("bos")
        if self.vocabulary is not None and self.eos:
            template[-1] = self.vocabulary.id("eos")
        return template

    def _places(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        return self._order(layout, shape) + int(self.bos)

    @abstractmethod
    def _order(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        """As `Plan.places`, in a sequence without `bos` and `eos`."""


@dataclass(frozen=True)
class ByLayer(Flat):
    """All of layer 0 in raster order, then all of layer 1, …: [N].

    A model of it writes the coarse picture first and refines it; the sequence of the first k
    layers is the beginning of the whole one (less `eos`).

    >>> from hqvae.tokens import LayerPlace, Vocabulary
    >>> layout = Layout((LayerPlace(0, 0, 8, 10), LayerPlace(1, 0, 4, 10)), axes=1)
    >>> codes = [torch.tensor([1, 2]), torch.tensor([3, 4, 5, 6])]
    >>> ByLayer(layout).forward(codes)
    tensor([1, 2, 3, 4, 5, 6])
    >>> ByLayer(layout, Vocabulary(layout), bos=True).forward(codes)
    tensor([21,  1,  2, 13, 14, 15, 16])
    """

    def _order(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        return torch.arange(sum(layout.positions(shape)))


@dataclass(frozen=True)
class ByPosition(Flat):
    """Position by position of the coarsest level, each with all that stands under it: [N].

    For every coarsest position in raster order: its layers of the coarsest level, and then, level
    by level, the block of finer positions under it in raster order, each with all layers of that
    level. With one level this is the usual interleaving of residual codes.

    >>> from hqvae.tokens import LayerPlace
    >>> layout = Layout((LayerPlace(0, 0, 8, 10), LayerPlace(1, 0, 4, 10)), axes=1)
    >>> ByPosition(layout).forward([torch.tensor([1, 2]), torch.tensor([3, 4, 5, 6])])
    tensor([1, 3, 4, 2, 5, 6])
    """

    def _order(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        axes = layout.axes
        blocks = torch.arange(sum(layout.positions(shape))).view(*shape, -1)
        # Of the axes [*S, *r]: each coarse one beside the fine one within it, for raster order.
        raster = [axis + fine for axis in range(axes) for fine in (0, axes)]
        places = []
        start = 0
        for _, level in groupby(layout.layers, key=lambda place: place.level):
            members = list(level)
            ratio = layout.stride // members[0].stride
            end = start + ratio**axes * len(members)
            block = blocks[..., start:end].reshape(*shape, *[ratio] * axes, len(members))
            places += [block[..., index].permute(raster).flatten() for index in range(len(members))]
            start = end
        return torch.cat(places)


@dataclass(frozen=True)
class Delay(View):
    """The delay pattern of residual codes: [L, T + L − 1], layer l shifted right by l.

    T positions in raster order. At each step a model writes one code of every layer, and sees
    those of the layers above at the same position. Source: Copet et al., Simple and Controllable
    Music Generation (MusicGen), NeurIPS 2023; its implementation adds one more step of holes in
    front, as a start.

    Args:
        layout: of one level
        vocabulary: as `View`
        hole: the token where no code stands. By default the special token `pad` of the
            vocabulary; without one K, the first id past the codes of the largest layer, as in
            MusicGen. A negative one serves as a label that a loss ignores.

    Raises InputError for several levels, and for a hole that is a code.

    >>> from hqvae.tokens import LayerPlace
    >>> view = Delay(Layout((LayerPlace(0, 0, 8, 9), LayerPlace(0, 1, 8, 9)), axes=1))
    >>> view.forward([torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])])
    tensor([[1, 2, 3, 9],
            [9, 4, 5, 6]])
    """

    hole: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len({place.level for place in self.layout.layers})
        if levels > 1:
            raise InputError(
                f"a delay pattern is of the layers of one level, and these are of {levels}; "
                "use ByLayer or ByPosition"
            )
        if 0 <= self.hole_token < self._code_count:
            raise InputError(
                f"hole={self.hole}: a code has this token; "
                f"expected {self._code_count} or more, or a negative number"
            )

    @property
    def hole_token(self) -> int:
        """The token where no code stands."""
        if self.hole is not None:
            return self.hole
        return self._code_count if self.vocabulary is None else self.vocabulary.id("pad")

    @property
    def _code_count(self) -> int:
        """Tokens that stand for codes."""
        if self.vocabulary is not None:
            return self.vocabulary.code_count
        return max(place.codebook_size for place in self.layout.layers)

    def _steps(self, layout: Layout, shape: tuple[int, ...]) -> int:
        return math.prod(shape) + len(layout.layers) - 1

    def _template(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "L _"]:
        return torch.full((len(layout.layers), self._steps(layout, shape)), self.hole_token)

    def _places(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        # Layer l begins at [l, l]: a row and a step further than the layer above.
        starts = torch.arange(len(layout.layers)) * (self._steps(layout, shape) + 1)
        return (starts[:, None] + torch.arange(math.prod(shape))).flatten()


VIEWS: dict[str, type[View]] = {
    "per_layer": PerLayer,
    "by_layer": ByLayer,
    "by_position": ByPosition,
    "delay": Delay,
}
"""The views by name, for a command line; each is called with a layout and a vocabulary or None."""
