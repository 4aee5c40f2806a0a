"""Parquet columns of lists of floats: a row is an item, `[D]`, `[T, C]` or `[H, W, C]`."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hqvae.errors import InputError, nearest_name

from .ids import COLUMNS, Ids, RowNumbers, as_ids
from .index import FileIndex, digest
from .labels import class_names, label_column, labels_asked_for
from .parquet import reading, schema_of, split_of_path
from .row_groups import Column, RecentGroups, column_bytes, read_column

if TYPE_CHECKING:
    import pyarrow as pa


def index_float_columns(
    root: Path,
    paths: Sequence[Path],
    column: str | None,
    ids: str | None,
    labels: str | None,
    held_bytes: int,
) -> dict[str, FileIndex]:
    """The splits of Parquet files; the column of items is the one named, or the only one of lists.

    A column is held in memory up to `held_bytes` for a split. Larger ones are read row group by row
    group, which is fast in order and slow at random. Names are those of a column of ids, labels
    those of a column `label`, unless others are named.

    Raises InputError for a file that is damaged, or has no such column.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(split_of_path(path.relative_to(root)), []).append(path)
    return {
        split: _index(root, files, (column, ids, labels), held_bytes)
        for split, files in groups.items()
    }


def _index(
    root: Path,
    files: list[Path],
    columns: tuple[str | None, str | None, str | None],
    held_bytes: int,
) -> FileIndex:
    column, ids, labels = columns
    schemas = [schema_of(file) for file in files]
    chosen = _list_column(files[0], schemas[0], column)
    for file, types in zip(files[1:], schemas[1:]):
        _list_column(file, types, chosen)
    with reading(files[0]):
        total = sum(column_bytes(file, chosen) for file in files)
    recent = None if total <= held_bytes else RecentGroups()
    tables = [_Table(file, chosen, recent) for file in files]
    if not any(map(len, tables)):
        raise InputError(f"{files[0].name} holds an empty table: no row of {chosen!r}")
    rows = _Rows(tables)
    label = _label(files[0], schemas, labels)
    label_names = None if label is None else class_names(schemas, label)
    values = chain.from_iterable(read_column(file, label) for file in files) if label else []
    found_labels = labels_asked_for(labels, values, label_names)
    names = _names(root, files, schemas, ids, [len(table) for table in tables])
    return FileIndex(
        names,
        partial(_row, rows),
        labels=found_labels,
        label_names=label_names,
        content=digest([table.content for table in tables]),
        take=rows.take,
        is_numbered=not isinstance(names, Ids),
    )


def _row(rows: "_Rows", i: int) -> np.ndarray:
    return rows.take(np.array([i]))[0]


class _Rows:
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence["_Table"]):
        self.tables = tables
        self._ends = list(accumulate(len(table) for table in tables))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of these numbers, stacked; one without a value is all NaN."""
        if len(self.tables) == 1:
            return self.tables[0].take(numbers)
        of_table = np.searchsorted(self._ends, numbers, side="right")
        found: np.ndarray | None = None
        for index in np.unique(of_table):
            here = of_table == index
            first = self._ends[index - 1] if index else 0
            rows = self.tables[index].take(numbers[here] - first)
            if found is None:
                found = np.empty((len(numbers), *rows.shape[1:]), rows.dtype)
            elif rows.shape[1:] != found.shape[1:]:
                raise InputError(
                    f"{self.tables[index].path.name} has items of shape {list(rows.shape[1:])}, "
                    f"and others {list(found.shape[1:])}; expected one shape"
                )
            found[here] = rows
        assert found is not None
        return found


class _Table:
    """The rows of one file: an array, or those of its row groups that were read last."""

    def __init__(self, path: Path, name: str, recent: RecentGroups | None):
        self.path = path
        self.name = name
        with reading(path):
            self.column = Column(path, name, recent)
        self.content = self.column.content
        self._held: np.ndarray | None = None
        self._last: tuple[int, np.ndarray] | None = None
        if recent is None:
            self._held = self._as_array(self.column.release(), 0)

    def __len__(self) -> int:
        return len(self.column)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        if self._held is not None:
            return self._held[numbers]
        ends = self.column.ends
        of_group = np.searchsorted(ends, numbers, side="right")
        found: np.ndarray | None = None
        for group in np.unique(of_group):
            here = of_group == group
            first = ends[group - 1] if group else 0
            rows = self._group(int(group), first)[numbers[here] - first]
            if found is None:
                found = np.empty((len(numbers), *rows.shape[1:]), rows.dtype)
            found[here] = rows
        assert found is not None
        return found

    def _group(self, group: int, first: int) -> np.ndarray:
        last = self._last
        if last is None or last[0] != group:
            last = (group, self._as_array(self.column.group(group), first))
            self._last = last
        return last[1]

    def _as_array(self, column: "pa.ChunkedArray", first: int) -> np.ndarray:
        where = f"{self.path.name} column {self.name!r}"
        parts = [_as_array(chunk, where, first) for chunk in column.chunks if len(chunk)]
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            listed = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise InputError(f"{where} has items of shapes {listed}; expected one shape")
        return np.concatenate(parts) if parts else np.empty((0,))


def _as_array(values: "pa.Array", where: str, first: int) -> np.ndarray:
    """Rows of lists, of lists of lists and so on, as one array; a row without a value is NaN."""
    import pyarrow as pa

    kind = values.type
    if not _is_list(kind):
        array: np.ndarray = values.to_numpy(zero_copy_only=False)
        return array
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    widths = np.full(len(values), kind.list_size) if pa.types.is_fixed_size_list(kind) else None
    if widths is None:
        widths = values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    width = int(widths[valid][0]) if valid.any() else 0
    wrong = valid & (widths != width)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{where} has lists of {width} and of {int(widths[row])} values (row {first + row}); "
            "expected all of one length"
        )
    inner = _as_array(values.filter(pa.array(valid)).flatten(), where, first)
    inner = inner.reshape(int(valid.sum()), width, *inner.shape[1:])
    if valid.all():
        return inner
    whole = np.full((len(values), *inner.shape[1:]), np.nan, inner.dtype)
    whole[valid] = inner
    return whole


def _list_column(path: Path, types: "pa.Schema", column: str | None) -> str:
    """The column of items. Raises InputError where there is none, several, or one of integers."""
    names = [field.name for field in types if _depth(field.type)]
    if column is not None and column not in types.names:
        raise InputError(
            f"{path.name} has no column {column!r}; {nearest_name(column, types.names)}"
        )
    floats = [name for name in names if _of_floats(types.field(name).type)]
    wanted = floats if column is None else [column]
    if len(wanted) == 1 and wanted[0] in floats:
        return wanted[0]
    if len(wanted) > 1:
        raise InputError(
            f"{path.name} has {len(wanted)} columns of lists of floats ({', '.join(wanted)}); "
            "name one with data.column=NAME"
        )
    kinds = {name: types.field(name).type for name in wanted or names or types.names}
    held = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    advice = ""
    if any(map(_of_integers, kinds.values())):
        advice = "; whole numbers are no measurements: make them floats"
    raise InputError(f"{path.name} holds {held}; expected a column of lists of floats{advice}")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in lists)


def _depth(kind: Any) -> int:
    return 1 + _depth(kind.value_type) if _is_list(kind) else 0


def _of_floats(kind: Any) -> bool:
    import pyarrow as pa

    return 1 <= _depth(kind) <= 3 and pa.types.is_floating(_value(kind))


def _of_integers(kind: Any) -> bool:
    import pyarrow as pa

    return _depth(kind) > 0 and pa.types.is_integer(_value(kind))


def _value(kind: Any) -> Any:
    """What lists of lists hold."""
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _label(path: Path, schemas: Sequence["pa.Schema"], named: str | None) -> str | None:
    if named is None:
        return label_column(schemas)
    if any(named not in types.names for types in schemas):
        raise InputError(
            f"data.labels={named!r}: {path.name} has no such column; "
            f"{nearest_name(named, schemas[0].names)}"
        )
    return named


def _names(
    root: Path,
    files: Sequence[Path],
    schemas: Sequence["pa.Schema"],
    named: str | None,
    counts: Sequence[int],
) -> Sequence[str]:
    wanted = [named] if named else COLUMNS
    chosen = next((one for one in wanted if all(one in types.names for types in schemas)), None)
    if named and chosen is None:
        raise InputError(
            f"data.ids={named!r}: {files[0].name} has no such column; "
            f"{nearest_name(named, schemas[0].names)}"
        )
    if chosen is None:
        if len(files) == 1:
            return RowNumbers(counts[0])
        return [
            f"{file.relative_to(root)} row {row}"
            for file, count in zip(files, counts)
            for row in range(count)
        ]
    return as_ids(_arrow_column(files, chosen), f"column {chosen!r} of {files[0].name}")


def _arrow_column(files: Sequence[Path], name: str) -> "pa.ChunkedArray":
    import pyarrow as pa
    import pyarrow.parquet as parquet

    chunks = []
    for path in files:
        with reading(path), path.open("rb") as file:
            chunks += parquet.read_table(file, columns=[name])[name].chunks
    return pa.chunked_array(chunks)
