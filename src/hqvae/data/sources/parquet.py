"""Parquet files: a row is an item, as the bytes of a file or as the path of one."""

import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hqvae.errors import InputError, nearest_name, summary_of

from ..modality import Modality
from .index import SPLIT_NAMES, FileIndex, digest
from .labels import class_names, label_column, labels_of
from .listing import Listing
from .row_groups import Column, RecentGroups, column_bytes, read_column

if TYPE_CHECKING:
    import pyarrow as pa


def data_tables(listing: Listing, modality: Modality) -> list[Path]:
    """The Parquet files of a folder that hold items.

    Beside files of the kind, tables that hold none describe those, as `metadata.parquet` does.
    """
    tables = [
        file
        for file in listing.files
        if file.suffix.lower() == ".parquet" and file.name != "metadata.parquet"
    ]
    if not any(file.suffix.lower() in modality.suffixes for file in listing.files):
        return tables
    return [file for file in tables if any(map(_holds_bytes, schema_of(file).types))]


def index_parquet(
    root: Path, paths: list[Path], column: str | None, modality: Modality, held_bytes: int
) -> dict[str, FileIndex]:
    """The splits of Parquet files; the column of items is the one that is named, or the only one.

    It is held in memory up to `held_bytes` for a split. Larger ones are read row group by row
    group, which is fast in order and slow at random.

    Labels are those of a column `label`, or of one called alike, that all files of a split have.

    Raises InputError for a file that is damaged, or has no such column.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(split_of_path(path.relative_to(root)), []).append(path)
    return {
        split: _index_files(root, files, column, modality, held_bytes)
        for split, files in groups.items()
    }


def split_of_path(path: Path) -> str:
    """The split that a table's path names, else train.

    A folder may name it, `test/0000.parquet`, or the first or last word of the file's name,
    `test-00000-of-00002.parquet`, `cifar10-test.parquet`.
    """
    words = re.split(r"[-_.]", path.stem.lower())
    words = [word for word in words if word and not word.isdigit() and word != "of"]
    folders = [folder.lower() for folder in path.parts[:-1]]
    candidates = [*folders, *words[:1], *words[-1:]]
    return next((SPLIT_NAMES[word] for word in candidates if word in SPLIT_NAMES), "train")


def _index_files(
    root: Path, files: list[Path], column: str | None, modality: Modality, held_bytes: int
) -> FileIndex:
    schemas = [schema_of(file) for file in files]
    chosen = _bytes_column(files[0], schemas[0], column, modality)
    label = label_column(schemas)
    for file, types in zip(files, schemas):
        _check_column(file, types, chosen, modality)
    total = sum(_bytes_of(file, chosen) for file in files)
    recent = None if total <= held_bytes else RecentGroups()
    shards = [_Shard(file, chosen, label, modality, recent) for file in files]
    names = [
        f"{shard.path.relative_to(root)} row {row}"
        for shard in shards
        for row in range(len(shard.cells))
    ]
    ends = list(accumulate(len(shard.cells) for shard in shards))
    label_names = None if label is None else class_names(schemas, label)
    labels = labels_of(chain.from_iterable(shard.labels for shard in shards), label_names)
    content = digest([shard.cells.content for shard in shards])
    return FileIndex(
        names, partial(_open_row, shards, ends), None, labels, label_names, content=content
    )


class _Shard:
    """The cells of one file: bytes, or {bytes, path} as the library `datasets` writes them."""

    def __init__(
        self,
        path: Path,
        column: str,
        label: str | None,
        modality: Modality,
        recent: RecentGroups | None,
    ):
        self.path = path
        self.modality = modality
        with reading(path):
            self.cells = Column(path, column, recent)
            self.labels = read_column(path, label) if label else []

    def open(self, row: int) -> Any:
        cell = self.cells[row]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content:
            return self.modality.open(io.BytesIO(content))
        path = cell.get("path") if isinstance(cell, dict) else None
        if not path:
            raise ValueError("its row has neither bytes nor a path")
        return self.modality.open(self.path.parent / path)


def _check_column(path: Path, types: "pa.Schema", column: str, modality: Modality) -> None:
    """Raises InputError where a file has no such column, or one of something else."""
    if column not in types.names:
        raise InputError(
            f"{path.name} has no column {column!r}, which other files beside it have; "
            f"its columns: {', '.join(types.names)}"
        )
    if not _holds_bytes(types.field(column).type):
        raise InputError(
            f"column {column!r} of {path.name} holds {types.field(column).type}, "
            f"not {modality.noun}s"
        )


def _bytes_of(path: Path, column: str) -> int:
    with reading(path):
        return column_bytes(path, column)


def _open_row(shards: list[_Shard], ends: list[int], i: int) -> Any:
    shard = bisect_right(ends, i)
    return shards[shard].open(i - (ends[shard - 1] if shard else 0))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong is the fault of this file, and is said so."""
    try:
        yield
    except Exception as error:  # pyarrow raises its own, OSError, ValueError and more
        raise InputError(f"{path} cannot be read as Parquet: {summary_of(error)}") from error


def schema_of(path: Path) -> "pa.Schema":
    import pyarrow.parquet as parquet

    with reading(path), path.open("rb") as file:  # pyarrow takes no names that are not UTF-8
        return parquet.read_schema(file)


def _bytes_column(path: Path, types: "pa.Schema", column: str | None, modality: Modality) -> str:
    """The column of encoded files: the one that was asked for, or the only one."""
    with_bytes = [field.name for field in types if _holds_bytes(field.type)]
    if column is not None and column not in types.names:
        raise InputError(
            f"{path.name} has no column {column!r}; {nearest_name(column, types.names)}"
        )
    if column is not None and column not in with_bytes:
        raise InputError(
            f"column {column!r} of {path.name} holds {types.field(column).type}, "
            f"not {modality.noun}s"
        )
    if column is None and len(with_bytes) != 1:
        listed = ", ".join(with_bytes) or "its columns: " + ", ".join(types.names)
        raise InputError(
            f"{path.name} has {len(with_bytes)} {modality.name} columns ({listed}); "
            "name one with data.column=NAME"
        )
    return column or with_bytes[0]


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
