"""float32 on GPUs: what torch does in fewer bits unless it is told not to."""

import threading

import torch


class _FullPrecision:
    """Products and convolutions of GPUs in float32, always by the same algorithm.

    The switches are of the whole process: the last of several threads puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[bool, ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._switches()
                self._set(products=False, convolutions=False, benchmark=False, deterministic=True)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    def _switches(self) -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        products = torch.backends.cuda.matmul.allow_tf32
        return products, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic

    def _set(
        self, products: bool, convolutions: bool, benchmark: bool, deterministic: bool
    ) -> None:
        cudnn = torch.backends.cudnn
        torch.backends.cuda.matmul.allow_tf32 = products
        cudnn.allow_tf32 = convolutions
        cudnn.benchmark = benchmark
        cudnn.deterministic = deterministic


FULL_PRECISION = _FullPrecision()
"""The one of this process."""
