"""Shards laid out to be read at random: Arrow files that are memory-mapped, row by row."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from hqvae.errors import InputError
from hqvae.files import FULL, atomic_write, lock

from .layout import Layout
from .manifest import ShardFile, TokenFolder
from .shards import Row, read_shard, writer_name
from .tokens import Tokens

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def arrow_file(folder: TokenFolder, shard: ShardFile, cache: Path) -> Path:
    """The memory-mapped copy of a shard, written where it is not there yet.

    Raises InputError for a damaged shard, and a folder that cannot be written.
    """
    path = cache / f"{shard.sha256[:32]}.arrow"
    if path.exists():
        return path
    with _one_writer(path):
        if not path.exists():
            source = folder.check(shard)
            with _said_if_not_writable(cache), atomic_write(path, writer_name()) as temporary:
                _lay_out(source, temporary)
    return path


def _lay_out(shard: Path, path: Path) -> None:
    """Copy a shard, a few rows at a time, into an Arrow file of as many record batches."""
    batches = read_shard(shard)
    first = next(batches)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """The processes of a machine come one by one: the first writes, and the others find it there.

    On a file system without locks each writes a copy of its own, and one of them stays.
    """
    place = path.with_name(f".{path.name}.lock")
    with _said_if_not_writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("a+b")
    with file:
        with suppress(InputError):
            lock(file, wait=True)
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()  # who waits has it open, and who comes later finds the copy


@contextmanager
def _said_if_not_writable(cache: Path) -> Iterator[None]:
    """Raises InputError where a copy cannot be written in the block."""
    try:
        yield
    except OSError as error:
        why = f"{cache} cannot be written ({error.strerror})"
        if error.errno in FULL:
            why = f"no space left on the disk of {cache}"
        elif error.errno not in _NOT_WRITABLE:
            raise
        raise InputError(
            f"{why}, where tokens are laid out to be read at random; "
            "expected room there, or cache=FOLDER elsewhere"
        ) from error


class _Lists(NamedTuple):
    """A column of lists: those of row i are values[offsets[i] : offsets[i + 1]]."""

    offsets: np.ndarray
    values: np.ndarray

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class MappedShard:
    """A memory-mapped shard: its rows over its record batches, which are opened where needed."""

    def __init__(self, path: Path, layout: Layout):
        self._layout = layout
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        numbers = range(self._file.num_record_batches)
        counts = [self._file.get_batch(number).num_rows for number in numbers]
        self._ends = np.cumsum([0, *counts])
        self._open: dict[int, _Columns] = {}

    def row(self, i: int) -> Row:
        number = int(np.searchsorted(self._ends, i, side="right")) - 1
        if number not in self._open:
            self._open[number] = _Columns(self._file.get_batch(number), self._layout)
        return self._open[number].row(i - int(self._ends[number]))


class _Columns:
    """The columns of a record batch."""

    def __init__(self, batch: pa.RecordBatch, layout: Layout):
        self.layout = layout
        columns = dict(zip(batch.schema.names, batch.columns))
        self.keys = columns["key"]
        self.labels = columns.get("label")
        self.original_sizes = _lists(columns["original_size"])
        self.sizes = _lists(columns["size"])
        self.codes = [_lists(columns[f"codes_{i}"]) for i in range(len(layout.layers))]

    def row(self, i: int) -> Row:
        size = tuple(self.sizes.row(i).tolist())
        shapes = self.layout.shapes(self.layout.coarsest(size))
        codes = tuple(
            torch.from_numpy(of_layer.row(i).astype(np.int64)).reshape(shape)
            for of_layer, shape in zip(self.codes, shapes)
        )
        label = None if self.labels is None else self.labels[i].as_py()
        original_size = tuple(self.original_sizes.row(i).tolist())
        return Row(self.keys[i].as_py(), label, original_size, Tokens(codes, size))


def _lists(column: pa.ListArray) -> _Lists:
    return _Lists(column.offsets.to_numpy(), column.values.to_numpy())
