"""What a CPU does fastest: matrix products through oneDNN, and rows shared between the threads that torch already has.

Threads of our own would compete with torch's, which wait for work by spinning. So the shares run as one parallel region of the
OpenMP library that torch has loaded; in such a region torch's own operations stay in their thread. Where that library does not
offer the entry point (Windows), the rows are one share, and torch spreads each product over its threads.
"""

import ctypes
import itertools
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _onednn() -> Any:
    """oneDNN's linear layer, or None. MKL takes slower instructions than oneDNN on processors that are not Intel's."""
    vectors = torch.backends.cpu.get_cpu_capability()
    if not (torch.backends.mkldnn.is_available() and vectors.startswith("AVX")):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias; x and weight may be transposed views."""
    fast = _onednn()
    if fast is not None and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and weight.numel():
        return fast(x, weight, bias, "none", [], "")
    return torch.mm(x, weight.T) if bias is None else torch.addmm(bias, x, weight.T)


@cache
def _parallel() -> Any:
    """`GOMP_parallel` of the OpenMP library that torch is linked with, or None."""
    name = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}.get(sys.platform)
    if name is None:
        return None
    try:
        region = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    region.argtypes, region.restype = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return region


def shares(rows: int, smallest: int) -> list[slice]:
    """The rows cut into one contiguous share for every thread, none under `smallest` rows but a single one."""
    count = torch.get_num_threads() if _parallel() is not None else 1
    count = max(1, min(count, rows // smallest))
    edges = [rows * i // count for i in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def in_parallel(work: Callable[[int], None], parts: int) -> None:
    """work(0) … work(parts − 1), each once, in threads; the first exception is raised again here."""
    if parts == 1:
        work(0)
        return
    remaining, errors = itertools.count(), []  # `next` of a count is atomic, and a team may be smaller than was asked for

    def body(_: Any) -> None:
        try:
            with torch.no_grad():
                while (part := next(remaining)) < parts:
                    work(part)
        except BaseException as error:  # it cannot cross the C frames; KeyboardInterrupt too is raised again outside
            errors.append(error)

    _parallel()(_BODY(body), None, parts, 0)
    if errors:
        raise errors[0]
