"""Codes from outside, checked: what `decode` is given becomes one tensor for each level."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hqvae.integers import integers

from .config import HQVAEConfig


def codes_by_level(
    config: HQVAEConfig, codes: Sequence[Any] | Tensor, layers: SupportsIndex | None = None
) -> list[Int[Tensor, "B _ ..."]]:
    """Codes of the first layers, int64 and stacked as [B, k, *S_r] for each level.

    Args:
        config: of the model
        codes: one array per layer, coarse to fine: [B, *S_l], of any integer type, torch or numpy
        layers: how many of the first layers; all of the model's when None

    Raises ValueError for another number of layers than there is, codes that are no integers, or
    shapes that do not fit each other.

    >>> config = HQVAEConfig()  # one level of one layer, for images
    >>> codes = [torch.zeros(2, 8, 8, dtype=torch.uint8)]
    >>> [of_level.shape for of_level in codes_by_level(config, codes)]
    [torch.Size([2, 1, 8, 8])]
    """
    places = config.layers
    count = len(places) if layers is None else _whole(layers)
    if count is None or not 1 <= count <= len(places):
        raise ValueError(f"layers={layers!r}: expected a whole number from 1 to {len(places)}")
    if isinstance(codes, str) or not isinstance(codes, Sequence):
        shape = getattr(codes, "shape", None)
        what = type(codes).__name__ if shape is None else f"one array of shape {list(shape)}"
        raise ValueError(
            f"codes are {what}; "
            f"expected a list of {count} arrays, one for each layer, as `encode` gives"
        )
    if not count <= len(codes) <= len(places):
        raise ValueError(f"codes of {len(codes)} layers; expected {count}, one array for each")
    arrays = [integers(of_layer, f"codes of layer {i}") for i, of_layer in enumerate(codes)]
    _check_shapes(config, arrays[:count])
    levels: list[list[Tensor]] = [[] for _ in config.levels]
    for place, of_layer in zip(places, arrays[:count]):
        levels[place.level].append(of_layer)
    return [torch.stack(of_level, 1) for of_level in levels if of_level]


def _check_shapes(config: HQVAEConfig, codes: Sequence[Tensor]) -> None:
    """Raises ValueError unless all layers are of as many signals, of one size."""
    names = {0: "[B]", 1: "[B, T]", 2: "[B, H, W]"}[config.axes]
    first = codes[0].shape
    if len(first) != 1 + config.axes or 0 in first[1:]:
        raise ValueError(
            f"codes of layer 0 have shape {list(first)}; expected {names}, no side of them 0"
        )
    for index, (place, of_layer) in enumerate(zip(config.layers, codes)):
        finer = config.levels[0].stride // place.stride
        expected = [first[0], *[side * finer for side in first[1:]]]
        if list(of_layer.shape) != expected:
            raise ValueError(
                f"codes of layer {index} have shape {list(of_layer.shape)}; expected {expected}, "
                f"as those of layer 0 have {list(first)}"
            )


def signal_size(size: Any, longest: Sequence[int]) -> list[int]:
    """A size of signals as whole numbers.

    Raises ValueError for one that codes of `longest` samples cannot be of.
    """
    sides = list(map(_whole, size)) if isinstance(size, Sequence) else []
    whole = [side for side, most in zip(sides, longest) if side is not None and 1 <= side <= most]
    if not len(whole) == len(sides) == len(longest):
        raise ValueError(
            f"size={size}: expected {len(longest)} whole number(s), each from 1 to {list(longest)}"
        )
    return whole


def _whole(value: Any) -> int | None:
    """A whole number of any type, NumPy's too, as an int; None for anything else, and for bool."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
