"""Work on several cores, each piece on one thread of torch.

How torch's libraries share one product among threads changes how it is rounded. Pieces of work that
each stay in one thread give the same bits on any number of cores.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def single_threads() -> Iterator[int]:
    """Inside, torch computes on one thread; gives how many it had.

    >>> with single_threads():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def map_single_threaded(work: Callable[[T], R], pieces: Iterable[T]) -> Iterator[R]:
    """work(piece) of each, in order, as many at a time as torch has threads.

    >>> list(map_single_threaded(lambda i: i * i, range(4)))
    [0, 1, 4, 9]
    """
    with single_threads() as threads:
        if threads == 1:
            yield from map(work, pieces)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, pieces)
