"""A view: what lays the codes of an item out for a language model, and takes them back exactly."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from hqvae.integers import integers

from .layout import LayerPlace, Layout
from .vocabulary import Vocabulary, token_offsets


class Plan(NamedTuple):
    """Where codes and special tokens stand in the sequence of one shape."""

    template: Int64[Tensor, "..."]
    """The sequence with its special tokens; what stands at the places of codes is of no meaning."""
    places: Int64[Tensor, "N"]
    """The place in the flattened sequence of every code: layer by layer, each in raster order."""
    special: Int64[Tensor, "M"]
    """The places of the special tokens."""


@dataclass(frozen=True)
class View(ABC):
    """One order of the codes of an item, and its exact inverse. A new order is a subclass.

    The codes of an item are L arrays [*S_l] of integers, coarse to fine, without a batch axis.
    `shape` is that of the coarsest level, which a flat sequence does not tell. The first k layers
    have a sequence of their own, which is that of a model of k layers with the same tokens; every
    method takes `layers=k` for it, and None for all layers.

    Args:
        layout: where the codes stand
        vocabulary: which gives each layer tokens of its own; None leaves codes as they are

    Raises InputError for a vocabulary of other codebooks than those of the layout.
    """

    layout: Layout
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        token_offsets(self.layout, self.vocabulary)

    def forward(self, codes: Any, layers: SupportsIndex | None = None) -> Int64[Tensor, "..."]:
        """The sequence of an item's codes, on the device of the codes.

        Args:
            codes: a list of one array [*S_l] per layer, of any integer type, torch or numpy
            layers: how many of the first layers; the others may be missing

        Raises ValueError for another number of layers, shapes that do not fit each other, and
        values that are no codes of their layer.
        """
        layout = self._first(layers)
        arrays = _codes(layout, codes, most=len(self.layout.layers))
        plan = _plan(self, tuple(arrays[0].shape), len(layout.layers))
        tokens = [
            of_layer.flatten() + offset
            for of_layer, offset in zip(arrays, token_offsets(layout, self.vocabulary))
        ]
        sequence = plan.template.to(arrays[0].device, copy=True)
        sequence.view(-1)[plan.places.to(sequence.device)] = torch.cat(tokens)
        return sequence

    def inverse(
        self, tokens: Any, shape: Any, layers: SupportsIndex | None = None
    ) -> tuple[Int64[Tensor, "..."], ...]:
        """The codes [*S_l] of every layer, from their sequence.

        Args:
            tokens: as `forward` gives them, of any integer type, torch or numpy
            shape: of the coarsest level
            layers: how many of the first layers the sequence is of

        Raises ValueError for a sequence of another length, a token that is no code of the layer
        which stands at its place, and another token than the special one of its place.
        """
        layout = self._first(layers)
        sides = _sides(shape, layout.axes)
        plan = _plan(self, sides, len(layout.layers))
        tokens = integers(tokens, "tokens")
        if tokens.shape != plan.template.shape:
            raise ValueError(
                f"tokens have shape {list(tokens.shape)}; expected {list(plan.template.shape)}: "
                f"{len(layout.layers)} layer(s), the coarsest of shape {list(sides)}"
            )
        _check_special(tokens, plan)
        places = plan.places.to(tokens.device).split(layout.positions(sides))
        codes = []
        for layer, offset in enumerate(token_offsets(layout, self.vocabulary)):
            _check_tokens(tokens, places[layer], offset, layout.layers[layer])
            of_layer = tokens.flatten()[places[layer]] - offset
            codes.append(of_layer.view(layout.shapes(sides)[layer]))
        return tuple(codes)

    def length(self, shape: Any, layers: SupportsIndex | None = None) -> int:
        """Steps of the sequence; a sequence with an axis of layers has L tokens in each."""
        layout = self._first(layers)
        return self._steps(layout, _sides(shape, layout.axes))

    def layers(self, shape: Any, layers: SupportsIndex | None = None) -> Int64[Tensor, "..."]:
        """Which layer each token of the sequence is a code of; −1 for special tokens.

        So a model is kept to tokens that can stand where it writes, by a mask of its logits:

        >>> from hqvae.tokens import ByLayer, LayerPlace
        >>> layout = Layout((LayerPlace(0, 0, 8, 3), LayerPlace(1, 0, 4, 2)), axes=1)
        >>> vocabulary = Vocabulary(layout, special=("eos",))
        >>> layers = ByLayer(layout, vocabulary, eos=True).layers([1])
        >>> layers
        tensor([ 0,  1,  1, -1])
        >>> (layers[:, None] == vocabulary.layer_of(torch.arange(vocabulary.size))).int()
        tensor([[1, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 0],
                [0, 0, 0, 1, 1, 0],
                [0, 0, 0, 0, 0, 1]], dtype=torch.int32)
        """
        layout = self._first(layers)
        sides = _sides(shape, layout.axes)
        plan = _plan(self, sides, len(layout.layers))
        numbers = torch.arange(len(layout.layers))
        of_token = torch.full_like(plan.template, -1)
        of_token.view(-1)[plan.places] = numbers.repeat_interleave(
            torch.tensor(layout.positions(sides))
        )
        return of_token

    def _first(self, layers: SupportsIndex | None) -> Layout:
        return self.layout if layers is None else self.layout.first(layers)

    @abstractmethod
    def _steps(self, layout: Layout, shape: tuple[int, ...]) -> int:
        """Steps of the sequence of a layout of the first layers."""

    @abstractmethod
    def _template(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "..."]:
        """A sequence with its special tokens, and anything where codes will stand."""

    @abstractmethod
    def _places(self, layout: Layout, shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
        """As `Plan.places`."""


@lru_cache(maxsize=32)
def _plan(view: View, shape: tuple[int, ...], layers: int) -> Plan:
    """The plan of a view for one shape. It is shared, so nobody changes its tensors."""
    layout = view.layout.first(layers)
    template = view._template(layout, shape)
    places = view._places(layout, shape)
    special = torch.ones(template.numel(), dtype=torch.bool)
    special[places] = False
    return Plan(template, places, special.nonzero().flatten())


def _sides(shape: Any, axes: int, what: str = "shape") -> tuple[int, ...]:
    """A shape of the coarsest level as whole numbers; raises ValueError for one that is none."""
    try:
        sides = tuple(map(operator.index, shape))
    except TypeError:
        sides = None
    if sides is None or len(sides) != axes or min(sides, default=1) < 1:
        raise ValueError(f"{what} is {shape}; expected {axes} whole number(s), each at least 1")
    return sides


def _codes(layout: Layout, codes: Any, most: int) -> list[Tensor]:
    """Codes of the layers of a layout as int64, checked.

    Those of more layers, `most` in all, may follow and are left out.
    """
    count = len(layout.layers)
    if isinstance(codes, str) or not isinstance(codes, Sequence):
        raise ValueError(
            f"codes are of type {type(codes).__name__}; expected a list of {count} arrays, "
            "one for each layer"
        )
    if not count <= len(codes) <= most:
        raise ValueError(f"codes of {len(codes)} layers; expected {count}, one array for each")
    arrays = [integers(codes[layer], f"codes of layer {layer}") for layer in range(count)]
    what = f"the shape of the codes of {layout.layers[0].name}"
    coarsest = _sides(list(arrays[0].shape), layout.axes, what)
    for place, of_layer, shape in zip(layout.layers, arrays, layout.shapes(coarsest)):
        if of_layer.shape != shape:
            raise ValueError(
                f"codes of {place.name} have shape {list(of_layer.shape)}; expected "
                f"{list(shape)}, as those of the coarsest have {list(coarsest)}"
            )
        wrong = _first_true((of_layer < 0) | (of_layer >= place.codebook_size))
        if wrong is not None:
            raise ValueError(
                f"code {int(of_layer.flatten()[wrong])} of {place.name} at position "
                f"{_indices(wrong, shape)}; expected 0 to {place.codebook_size - 1}"
            )
    return arrays


def _check_tokens(tokens: Tensor, places: Tensor, offset: int, of: LayerPlace) -> None:
    """Raises ValueError unless tokens of this layer stand at these places of the sequence."""
    there = tokens.flatten()[places]
    last = offset + of.codebook_size - 1
    wrong = _first_true((there < offset) | (there > last))
    if wrong is not None:
        raise ValueError(
            f"token {int(there[wrong])} at place {_indices(int(places[wrong]), tokens.shape)}; "
            f"expected {offset} to {last}, a code of {of.name}"
        )


def _check_special(tokens: Tensor, plan: Plan) -> None:
    """Raises ValueError unless the special tokens stand where the plan has them."""
    expected = plan.template.flatten()[plan.special]
    given = tokens.flatten()[plan.special.to(tokens.device)].cpu()
    wrong = _first_true(given != expected)
    if wrong is not None:
        place = _indices(int(plan.special[wrong]), tokens.shape)
        raise ValueError(
            f"token {int(given[wrong])} at place {place}; "
            f"expected {int(expected[wrong])}, the special token that stands there"
        )


def _first_true(values: Bool[Tensor, "..."]) -> int | None:
    """The number of the first that is true in raster order; None if none is."""
    return int(values.flatten().nonzero()[0]) if values.any() else None


def _indices(place: int, shape: Sequence[int]) -> int | list[int]:
    """A place in a flattened tensor, as one would index the tensor."""
    if len(shape) == 1:
        return place
    return [int(index) for index in np.unravel_index(place, tuple(shape))]
