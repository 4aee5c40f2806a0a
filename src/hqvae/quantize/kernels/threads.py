"""Rows shared between the threads that torch already has.

Threads of our own would compete with torch's, which wait for work by spinning. So the parts run as
one parallel region of the OpenMP library that torch has loaded; in such a region torch's own
operations stay in their thread. Where that library does not offer the entry point (Windows), the
rows are one part, and torch spreads each product over its threads.
"""

import ctypes
import itertools
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _gomp_parallel() -> Any:
    """`GOMP_parallel` of the OpenMP library that torch is linked with, or None."""
    name = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}.get(sys.platform)
    if name is None:
        return None
    try:
        region = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    region.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    region.restype = None
    return region


def split_rows(rows: int, min_rows: int) -> list[slice]:
    """One contiguous part of the rows per thread; none under `min_rows` rows but a single one."""
    threads = torch.get_num_threads() if _gomp_parallel() is not None else 1
    parts = max(1, min(threads, rows // min_rows))
    edges = [rows * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def parallel_for(work: Callable[[int], None], parts: int) -> None:
    """work(0) … work(parts − 1), each once, in threads; the first exception is raised again."""
    if parts == 1:
        work(0)
        return
    remaining = itertools.count()  # its `next` is atomic, and a team may be smaller than asked for
    errors: list[BaseException] = []

    def body(_: Any) -> None:
        try:
            with torch.no_grad():
                while (part := next(remaining)) < parts:
                    work(part)
        except BaseException as error:  # cannot cross the C frames, and KeyboardInterrupt must not
            errors.append(error)

    _gomp_parallel()(_BODY(body), None, parts, 0)
    if errors:
        raise errors[0]
