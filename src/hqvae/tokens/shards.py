"""Shards of tokens: Parquet files that are written and read here.

A row is an item:

    key              its name
    label            its class, an integer or a string, where the source has classes
    original_size    [H, W] of the picture, or [T] of the sound at the model's rate
    size             *S of the signal that was coded, which decoding gives back
    shapes           *S_l of every layer
    codes_0, …       the codes of a layer, flat in raster order, in the smallest unsigned type

Lists are flat, so that any reader of Parquet takes them. A shard is written whole or not at all.
What it is of, and which items it lacks, stands in its footer: the shards alone say how far a set
has come.
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from hqvae.errors import InputError, printable, summary_of
from hqvae.files import atomic_write

from .layout import Layout
from .tokens import Tokens, smallest_type

_FOOTER = "hqvae"  # key of what a shard says of itself
_ROW_GROUP = 2**24  # codes of a row group
_AT_ONCE = 1024  # rows that are read, at most
_SIDES = pa.list_(pa.int32())
Label = int | str | None


class Row(NamedTuple):
    """An item and its tokens."""

    key: str
    label: Label
    original_size: tuple[int, ...]
    tokens: Tokens


class RowStack(NamedTuple):
    """Items that are all of this size, and their tokens."""

    keys: Sequence[str]
    labels: Sequence[Label]
    size: tuple[int, ...]
    codes: tuple[Tensor, ...]
    """[N, *S_l] of every layer."""


@dataclass(frozen=True)
class Shard:
    """Items `start` to `stop` of a split, in one file of `count`."""

    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file.

        >>> Shard("train", 3, 12, 0, 10).name
        'train-00003-of-00012.parquet'
        """
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.parquet"


def schema(layout: Layout, label_type: str | None) -> pa.Schema:
    """The columns of all shards of a set; `label_type` is `integer`, `string` or None."""
    kinds = {"integer": pa.int64(), "string": pa.string()}
    label = [] if label_type is None else [pa.field("label", kinds[label_type])]
    codes = [
        pa.field(f"codes_{index}", pa.list_(pa.from_numpy_dtype(smallest_type(p.codebook_size))))
        for index, p in enumerate(layout.layers)
    ]
    return pa.schema(
        [
            pa.field("key", pa.string()),
            *label,
            pa.field("original_size", _SIDES),
            pa.field("size", _SIDES),
            pa.field("shapes", pa.list_(_SIDES)),
            *codes,
        ]
    )


# ------------------------------------------------------------------------------ writing


class ShardWriter:
    """Takes rows in order, and holds a row group of them. Made by `write_shard`."""

    def __init__(self, path: Path, columns: pa.Schema):
        self._columns = columns
        self._file = parquet.ParquetWriter(path, columns, compression="zstd")
        self._waiting: list[Row] = []
        self._stacks: list[pa.Table] = []
        self._codes = 0
        self.rows = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            self._waiting.append(row)
            self._codes += sum(layer.numel() for layer in row.tokens.codes)
            if self._codes >= _ROW_GROUP:
                self._flush()

    def add_stack(self, stack: RowStack) -> None:
        """Append rows of one size."""
        if not stack.keys:
            return  # of nothing, Arrow repeats nothing
        self._stack_waiting()
        self._stacks.append(_stack_table(stack, self._columns))
        self._codes += sum(layer.numel() for layer in stack.codes)
        if self._codes >= _ROW_GROUP:
            self._flush()

    def close(self, footer: Mapping[str, Any]) -> None:
        """Write what is left, and what the shard says of itself."""
        self._flush()
        about = {**footer, "rows": self.rows}
        self._file.add_key_value_metadata({_FOOTER: json.dumps(about)})
        self._file.close()

    def drop(self) -> None:
        """Close the file as it is; a full disk has been said already."""
        with suppress(pa.ArrowException, OSError):
            self._file.close()

    def _flush(self) -> None:
        self._stack_waiting()
        if self._stacks:
            table = pa.concat_tables(self._stacks).combine_chunks()
            self._file.write_table(table)
            self.rows += table.num_rows
        self._stacks = []
        self._codes = 0

    def _stack_waiting(self) -> None:
        if self._waiting:
            self._stacks.append(to_table(self._waiting, self._columns))
        self._waiting = []


@contextmanager
def write_shard(path: Path, columns: pa.Schema, footer: Mapping[str, Any]) -> Iterator[ShardWriter]:
    """A writer of the shard at `path`, which is there once the block has ended well.

    `footer` may be filled in the block. Several processes may write the same shard.
    """
    with atomic_write(path, writer_name()) as temporary:
        writer = ShardWriter(temporary, columns)
        try:
            yield writer
            writer.close(footer)
        except BaseException:
            writer.drop()
            raise


def writer_name() -> str:
    """Of this process, among those that may write the same file."""
    return f"{platform.node()}-{os.getpid()}"


def to_table(rows: Sequence[Row], columns: pa.Schema) -> pa.Table:
    """Rows as a table of these columns."""
    arrays: dict[str, pa.Array] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "original_size": pa.array([row.original_size for row in rows], _SIDES),
        "size": pa.array([row.tokens.size for row in rows], _SIDES),
        "shapes": pa.array([row.tokens.shapes for row in rows], pa.list_(_SIDES)),
    }
    for index in range(len(rows[0].tokens.codes)):
        layers = [row.tokens.codes[index].flatten() for row in rows]
        offsets = np.cumsum([0, *map(len, layers)], dtype=np.int32)
        arrays[f"codes_{index}"] = _lists(torch.cat(layers), offsets, columns, index)
    return _table(arrays, [row.label for row in rows], columns)


def _stack_table(stack: RowStack, columns: pa.Schema) -> pa.Table:
    """`to_table` of rows of one size."""
    count = len(stack.keys)
    shapes = [list(of_layer.shape[1:]) for of_layer in stack.codes]
    sizes = pa.repeat(pa.scalar(list(stack.size), _SIDES), count)
    arrays: dict[str, pa.Array] = {
        "key": pa.array(stack.keys, pa.string()),
        "original_size": sizes,
        "size": sizes,
        "shapes": pa.repeat(pa.scalar(shapes, pa.list_(_SIDES)), count),
    }
    for index, of_layer in enumerate(stack.codes):
        offsets = np.arange(count + 1, dtype=np.int32) * math.prod(of_layer.shape[1:])
        arrays[f"codes_{index}"] = _lists(of_layer.flatten(), offsets, columns, index)
    return _table(arrays, stack.labels, columns)


def _lists(codes: Tensor, offsets: np.ndarray, columns: pa.Schema, index: int) -> pa.Array:
    kind = columns.field(f"codes_{index}").type
    values = codes.numpy().astype(kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(offsets, values, type=kind)


def _table(arrays: dict[str, pa.Array], labels: Sequence[Label], columns: pa.Schema) -> pa.Table:
    if "label" in columns.names:
        kind = columns.field("label").type
        if kind == pa.string():
            labels = [None if label is None else printable(str(label)) for label in labels]
        arrays["label"] = pa.array(labels, kind)
    return pa.Table.from_arrays([arrays[name] for name in columns.names], schema=columns)


# ------------------------------------------------------------------------------ reading


def read_footer(path: Path) -> dict[str, Any] | None:
    """What a shard says of itself; None for a Parquet file that is no shard.

    Raises InputError for a file that is damaged.
    """
    with _reading(path):
        metadata = parquet.read_metadata(path).metadata or {}
        footer = json.loads(metadata.get(_FOOTER.encode(), b"null"))
        return footer if isinstance(footer, dict) else None


def read_shard(path: Path) -> Iterator[pa.RecordBatch]:
    """All rows, some at a time: never more than a row group is in memory.

    Raises InputError for a file that is damaged.
    """
    with _reading(path), parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(_AT_ONCE, row_groups=[group])


def rows_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    """The rows of a shard, the way back from `to_table`."""
    for batch in batches:
        columns = {name: batch.column(name) for name in batch.schema.names}
        for i in range(batch.num_rows):
            codes = []
            shapes = columns["shapes"][i].as_py()
            for layer, shape in enumerate(shapes):
                values = columns[f"codes_{layer}"][i].values.to_numpy()
                codes.append(torch.from_numpy(values.astype(np.int64)).reshape(shape))
            yield Row(
                columns["key"][i].as_py(),
                columns["label"][i].as_py() if "label" in columns else None,
                tuple(columns["original_size"][i].as_py()),
                Tokens(tuple(codes), tuple(columns["size"][i].as_py())),
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong is the fault of this file, and is said so."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"shard {path} is damaged: {summary_of(error)}; "
            "delete it, and the same `hqvae encode` writes it again"
        ) from error
