"""IDs as JSON that other programs read: from keys to IDs, and back. Written line by line."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from hqvae.files import atomic_write

from .ids import Ids

_ROWS = 1 << 16  # whose tokens are held at once


def write_index(path: Path, ids: Ids) -> None:
    """{"key": ["<a_12>", "<b_7>", …], …} in the order of the items, written atomically."""
    quoted = (
        (key, ", ".join(map(json.dumps, one))) for key, one in _in_order(ids, range(len(ids)))
    )
    _write_object(path, (f"{json.dumps(key)}: [{tokens}]" for key, tokens in quoted))


def write_inverse(path: Path, ids: Ids) -> int:
    """{"<a_12><b_7>…": ["key", …], …} in the order of the IDs; returns how many there are.

    The keys of an ID are in their order.
    """
    rows = sorted(range(len(ids)), key=ids.keys.__getitem__)
    places = ids.places.numpy()[rows]
    in_order = np.array(rows)[np.lexsort(places.T[::-1])]
    grouped = groupby(_in_order(ids, in_order.tolist()), key=lambda pair: pair[1])
    lines = (
        f"{json.dumps(''.join(one))}: [{', '.join(json.dumps(key) for key, _ in pairs)}]"
        for one, pairs in grouped
    )
    return _write_object(path, lines)


def _in_order(ids: Ids, rows: list[int] | range) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(key, tokens) of these rows."""
    places = ids.places
    names = [ids.vocabulary.of_place(place) for place in range(places.shape[1])]
    for start in range(0, len(rows), _ROWS):
        block = list(rows[start : start + _ROWS])
        numbers = places[block].T.tolist()
        columns = [map(of_place.__getitem__, codes) for of_place, codes in zip(names, numbers)]
        yield from zip((ids.keys[row] for row in block), zip(*columns))


def _write_object(path: Path, lines: Iterable[str]) -> int:
    """A JSON object of these lines; returns how many."""
    count = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("{")
        for line in lines:
            file.write(f"{',' if count else ''}\n{line}")
            count += 1
        file.write("\n}\n")
    return count
