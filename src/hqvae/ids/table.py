"""The table of a folder of IDs, a Parquet file: written and read a million rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from jaxtyping import Int64
from torch import Tensor

from hqvae.errors import InputError, printable
from hqvae.files import atomic_write
from hqvae.tokens import smallest_type

from .ids import Ids

Label = int | str | None
_ROWS = 1 << 20  # of a row group


@dataclass(frozen=True, eq=False)
class Table:
    """keys and labels [N], IDs as numbers [N, P], the model's codes [N, L] if others."""

    keys: list[str]
    labels: list[Label] | None
    places: Int64[Tensor, "N P"]
    model_codes: Int64[Tensor, "N L"] | None


def label_type(labels: Sequence[Label], count: int) -> str | None:
    """`integer` or `string`; None where no item has a label. Raises InputError for others.

    >>> label_type(["a", None], 2)
    'string'
    """
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels of {count} items; expected one for each")
    kinds = {type(label).__name__ for label in labels if label is not None}
    names = {frozenset(): None, frozenset({"int"}): "integer", frozenset({"str"}): "string"}
    if frozenset(kinds) not in names:
        raise InputError(f"labels of types {sorted(kinds)}; expected all int, or all str")
    return names[frozenset(kinds)]


def write_table(path: Path, ids: Ids, labels: Sequence[Label] | None, kind: str | None) -> None:
    """Write it, atomically; `kind` is of the labels, None to leave them out."""
    columns = _columns(ids, kind)
    with (
        atomic_write(path) as temporary,
        parquet.ParquetWriter(temporary, columns, compression="zstd") as file,
    ):
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            arrays = dict(_number_arrays(ids, rows))
            arrays["key"] = pa.array(ids.keys[rows], pa.string())
            arrays["id"] = _tokens(ids, rows)
            if kind is not None and labels is not None:
                arrays["label"] = _labels(labels[rows], kind)
            ordered = [arrays[name] for name in columns.names]
            file.write_table(pa.Table.from_arrays(ordered, schema=columns))


def read_table(path: Path, codebook_sizes: Sequence[int], kind: str | None) -> Table:
    """Read it. Raises ValueError for a file that is no such table."""
    try:
        table = parquet.read_table(path)
        keys = table["key"].to_pylist()
        labels = None if kind is None else table["label"].to_pylist()
        layers = range(len(codebook_sizes))
        names = [f"codes_{layer}" for layer in layers]
        moved = [f"model_codes_{layer}" for layer in layers]
        places = names + ["extra"] * ("extra" in table.column_names)
        model_codes = _numbers(table, moved) if moved[0] in table.column_names else None
        return Table(keys, labels, _numbers(table, places), model_codes)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _numbers(table: pa.Table, names: Sequence[str]) -> Int64[Tensor, "N P"]:
    columns = [table[name].to_numpy().astype(np.int64) for name in names]
    return torch.from_numpy(np.stack(columns, 1))


def _columns(ids: Ids, kind: str | None) -> pa.Schema:
    kinds = {"integer": pa.int64(), "string": pa.string()}
    label = [] if kind is None else [pa.field("label", kinds[kind])]
    numbers = [
        pa.field(name, array.type, nullable=False)
        for name, array in _number_arrays(ids, slice(0, 0))
    ]
    key = pa.field("key", pa.string(), nullable=False)
    return pa.schema([key, *label, *numbers, pa.field("id", pa.list_(pa.string()))])


def _number_arrays(ids: Ids, rows: slice) -> Iterator[tuple[str, pa.Array]]:
    """(name, values) of each column of numbers."""
    sizes = ids.vocabulary.codebook_sizes
    for layer, size in enumerate(sizes):
        yield f"codes_{layer}", _unsigned(ids.codes[rows, layer], size)
    if ids.extra is not None:
        yield "extra", _unsigned(ids.extra[rows], ids.vocabulary.extra)
    if ids.rule == "nearest":
        for layer, size in enumerate(sizes):
            yield f"model_codes_{layer}", _unsigned(ids.model_codes[rows, layer], size)


def _unsigned(values: Tensor, size: int) -> pa.Array:
    return pa.array(values.numpy().astype(smallest_type(size)))


def _tokens(ids: Ids, rows: slice) -> pa.Array:
    """The tokens of IDs as lists of strings, without a string in Python for each."""
    sizes = np.array(ids.vocabulary.sizes)
    numbers = ids.places[rows].numpy() + (np.cumsum(sizes) - sizes)
    names = pa.array(ids.vocabulary.tokens(), pa.string())
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(len(sizes))
    return pa.ListArray.from_arrays(offsets, names.take(pa.array(numbers.flatten())))


def _labels(labels: Sequence[Label], kind: str) -> pa.Array:
    if kind == "integer":
        return pa.array(labels, pa.int64())
    texts = [None if label is None else printable(str(label)) for label in labels]
    return pa.array(texts, pa.string())
