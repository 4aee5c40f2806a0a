"""Tokens: the codes of one signal."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """The codes of one signal, and its size.

    >>> import torch
    >>> Tokens((torch.zeros(2, 2, dtype=torch.long),), size=(8, 7)).shapes
    ((2, 2),)
    """

    codes: tuple[Any, ...]
    """[*S_l] of every layer, coarse to fine: int64 tensors, or arrays of any integers. Of the first
    layers alone where there are fewer."""
    size: tuple[int, ...]
    """*S of the signal, which decoding gives back."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """*S_l of every layer."""
        return tuple(tuple(layer.shape) for layer in self.codes)


def smallest_type(codebook_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds the codes of a codebook.

    >>> [smallest_type(size).name for size in (256, 257, 2**16 + 1)]
    ['uint8', 'uint16', 'uint32']
    """
    return np.min_scalar_type(codebook_size - 1)
