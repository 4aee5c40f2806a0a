"""How Numba compiles: once per machine, into functions that take tensors."""

import functools
from collections.abc import Callable
from typing import Any

from numba import njit
from torch import Tensor

_FAST = {"reassoc", "nsz", "contract", "arcp"}  # sums in any order; NaN and infinity keep meaning
inline = njit(fastmath=_FAST, inline="always")
"""Compile into whatever calls it."""


def compiled_pass(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a pass, once per machine, and have it take tensors."""
    compiled = njit(fastmath=_FAST, nogil=True, error_model="numpy", cache=True)(function)

    @functools.wraps(function)
    def on_tensors(*arguments: Any) -> None:
        compiled(*map(_arrays, arguments))

    return on_tensors


def _arrays(value: Any) -> Any:
    """NumPy's views of tensors, and of those in named tuples."""
    if isinstance(value, tuple):
        return type(value)(*map(_arrays, value))
    return value.numpy() if isinstance(value, Tensor) else value
