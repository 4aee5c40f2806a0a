"""Keys and codes that IDs can be made of."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer
from torch import Tensor

from hqvae.errors import InputError
from hqvae.integers import integers


def check_keys(keys: Sequence[str]) -> None:
    """Raises InputError for no keys, for one that is no text, and for duplicates."""
    if not len(keys):
        raise InputError("no items to give IDs to; expected at least one key")
    if len(set(keys)) < len(keys):
        twice, times = Counter(keys).most_common(1)[0]
        raise InputError(f"key {twice!r} is there {times} times; expected keys that all differ")
    for key in keys:
        if not isinstance(key, str):
            raise InputError(f"key {key!r} is of type {type(key).__name__}; expected text")
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"key {key!r} is not UTF-8 text; expected keys that are") from error


def checked_codes(
    codes: Integer[Tensor, "n ..."], sizes: tuple[int, ...], count: int
) -> Int64[np.ndarray, "n L"]:
    """Codes of so many items as an array. Raises ValueError for others."""
    array = integers(codes).cpu().numpy()
    if array.shape != (count, len(sizes)):
        raise ValueError(
            f"codes have shape {list(array.shape)}; expected {[count, len(sizes)]}: a row for each "
            "key, a column for each codebook"
        )
    wrong = (array < 0) | (array >= np.array(sizes))
    if wrong.any():
        row, layer = map(int, np.argwhere(wrong)[0])
        raise ValueError(
            f"code {array[row, layer]} of item {row}, layer {layer}; expected 0 to "
            f"{sizes[layer] - 1}"
        )
    return array
