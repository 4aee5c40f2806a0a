"""A look at all items of a split, in threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (items done, items in all) while a set is scanned."""

_LONG_SCAN = 256  # items from which on a scan shows its progress
_SCAN_BLOCK = 4096  # items that wait for a thread at one time


def scan(read: Callable[[int], T], count: int, progress: Progress | None = None) -> list[T]:
    """`read(0)` … `read(count − 1)` in threads, with progress where that takes its time."""
    results: list[T] = []
    shown = progress if count >= _LONG_SCAN else None
    every = max(1, count // 1000)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, count, _SCAN_BLOCK):
            for result in pool.map(read, range(start, min(count, start + _SCAN_BLOCK))):
                results.append(result)
                done = len(results)
                if shown is not None and (done % every == 0 or done == count):
                    shown(done, count)
    return results
