"""Integers from outside: codes and tokens of any type, as tensors."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

_NOT_INTEGERS = {torch.bool, torch.complex32, torch.complex64, torch.complex128}


def integers(values: Any, what: str = "codes") -> Int64[Tensor, "..."]:
    """Values of any integer type, torch or numpy, as int64; they stay on their device.

    Raises ValueError for anything else; `what` says in the message what they are.

    >>> integers(np.array([3, 65535], dtype=np.uint16), "tokens")
    tensor([    3, 65535])
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        values = torch.from_numpy(values.astype(np.int64))
    not_integers = not isinstance(values, Tensor) or values.dtype in _NOT_INTEGERS
    if not_integers or values.is_floating_point():
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{what} are of type {kind}; expected a tensor or an array of integers")
    return values.long()
