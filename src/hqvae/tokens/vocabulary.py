"""One vocabulary for the codes of all layers, and for what a language model wants beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hqvae.errors import InputError, nearest_name
from hqvae.integers import integers

from .layout import Layout


@dataclass(frozen=True)
class Vocabulary:
    """Every code of every layer as a token of its own; special tokens stand after all codes.

        token = offsets[l] + code    offsets[l] = K_0 + … + K_{l−1}

    Args:
        layout: of all layers of the model; views of its first layers keep these tokens
        special: names of the special tokens, all different; there may be none

    Raises InputError for a special name given twice.

    >>> from hqvae.tokens import LayerPlace
    >>> layout = Layout((LayerPlace(0, 0, 8, 256), LayerPlace(1, 0, 4, 512)), axes=2)
    >>> vocabulary = Vocabulary(layout)
    >>> vocabulary.size, vocabulary.offsets, vocabulary.special_ids
    (771, (0, 256), {'pad': 768, 'bos': 769, 'eos': 770})
    >>> vocabulary.layer_of(torch.tensor([255, 256, 770]))
    tensor([ 0,  1, -1])
    """

    layout: Layout
    special: tuple[str, ...] = ("pad", "bos", "eos")

    def __post_init__(self) -> None:
        if isinstance(self.special, str):
            raise InputError(f"special={self.special!r}: expected names, as in ({self.special!r},)")
        if len(set(self.special)) < len(self.special):
            raise InputError(f"special={list(self.special)}: expected names that all differ")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_l of every layer."""
        return tuple(place.codebook_size for place in self.layout.layers)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The token of code 0 of every layer."""
        return tuple(accumulate(self.codebook_sizes[:-1], initial=0))

    @property
    def code_count(self) -> int:
        """Tokens that stand for codes; the first special token, if there is one."""
        return sum(self.codebook_sizes)

    @property
    def size(self) -> int:
        """V, special tokens included."""
        return self.code_count + len(self.special)

    @property
    def special_ids(self) -> dict[str, int]:
        """The token of every special name."""
        return {name: self.code_count + index for index, name in enumerate(self.special)}

    def id(self, name: str) -> int:
        """The token of a special name; raises InputError, which says the nearest, for no such."""
        if not self.special:
            raise InputError(f"no special token {name!r}: this vocabulary has none")
        if name not in self.special:
            raise InputError(f"no special token {name!r}; {nearest_name(name, self.special)}")
        return self.special_ids[name]

    def layer_of(self, tokens: Any) -> Int64[Tensor, "..."]:
        """Which layer each token is a code of; −1 for special tokens.

        Args:
            tokens: a tensor or an array of integers of any shape, or one integer (gives [])

        Raises ValueError for a token outside 0 … V − 1, and for tokens that are no integers.
        """
        one = isinstance(tokens, int | np.integer) and not isinstance(tokens, bool)
        tokens = integers(torch.tensor(tokens) if one else tokens, "tokens")
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.size):
            raise ValueError(
                f"tokens range from {int(tokens.min())} to {int(tokens.max())}; "
                f"this vocabulary has tokens 0 to {self.size - 1}"
            )
        ends = torch.tensor([*self.offsets[1:], self.code_count], device=tokens.device)
        layers = torch.bucketize(tokens, ends, right=True)
        return layers.where(layers < len(self.offsets), -1)

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary in plain values, as a JSON file takes them, for readers without hqvae.

        >>> from hqvae.tokens import LayerPlace
        >>> layout = Layout((LayerPlace(0, 0, 8, 256), LayerPlace(0, 1, 8, 256)), axes=1)
        >>> said = Vocabulary(layout, special=("pad",)).to_dict()
        >>> said["size"], said["special"]
        (513, {'pad': 512})
        >>> said["layers"][1]
        {'name': 'level 0 layer 1', 'offset': 256, 'codebook_size': 256}
        """
        layers = [
            {"name": place.name, "offset": offset, "codebook_size": place.codebook_size}
            for place, offset in zip(self.layout.layers, self.offsets)
        ]
        return {"size": self.size, "layers": layers, "special": self.special_ids}


def token_offsets(layout: Layout, vocabulary: Vocabulary | None) -> Sequence[int]:
    """The token of code 0 of every layer: 0 for all without a vocabulary.

    Raises InputError for a vocabulary of other codebooks than those of the layout.
    """
    sizes = [place.codebook_size for place in layout.layers]
    if vocabulary is None:
        return [0] * len(sizes)
    if list(vocabulary.codebook_sizes[: len(sizes)]) != sizes:
        raise InputError(
            f"the vocabulary is of codebooks of {list(vocabulary.codebook_sizes)} codes; "
            f"those of the layout have {sizes}"
        )
    return vocabulary.offsets[: len(sizes)]
