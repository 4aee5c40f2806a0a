"""float32 on GPUs: what torch does in fewer bits, or by another algorithm, unless it is told."""

import threading
from typing import Any

import torch


class FullPrecision:
    """Products and convolutions of GPUs in float32, always by the same algorithm.

    The switches are of the whole process: the last of several threads puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._switches()
                self._set("ieee", "ieee", benchmark=False, deterministic=True)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    def _switches(self) -> tuple[Any, ...]:
        backends: Any = torch.backends
        return (
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.conv.fp32_precision,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
        )

    def _set(self, products: str, convolutions: str, benchmark: bool, deterministic: bool) -> None:
        backends: Any = torch.backends
        # Not `allow_tf32`: torch refuses to answer where both ways were used.
        backends.cuda.matmul.fp32_precision = products
        backends.cudnn.conv.fp32_precision = convolutions
        backends.cudnn.benchmark = benchmark
        backends.cudnn.deterministic = deterministic


FULL_PRECISION = FullPrecision()
"""The one of this process."""
