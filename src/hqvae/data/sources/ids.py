"""Names of the rows of arrays and tables: ids that they come with, or row numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from hqvae.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "item_id", "ids", "key")
"""Names that columns and arrays of ids have, where none is named."""


class RowNumbers(Sequence[str]):
    """Row numbers as names; none is kept.

    >>> list(RowNumbers(3)), RowNumbers(20, "x_test[{}]")[7]
    (['0', '1', '2'], 'x_test[7]')
    """

    def __init__(self, count: int, form: str = "{}"):
        self._rows = range(count)
        self._form = form

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        rows = self._rows[i]
        return self._form.format(rows) if isinstance(rows, int) else [*map(self._form.format, rows)]


class Ids(Sequence[str]):
    """Ids in a column of Arrow, which takes less memory than a list of them.

    >>> import pyarrow as pa
    >>> list(Ids(pa.chunked_array([[7, 5], [3]])))
    ['7', '5', '3']
    """

    def __init__(self, column: "pa.ChunkedArray"):
        import pyarrow as pa

        self._column = column.cast(pa.large_string())

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        found: Any = self._column[i]
        return found.to_pylist() if isinstance(i, slice) else found.as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()


def as_ids(column: "pa.ChunkedArray", where: str) -> Ids:
    """The ids of a column. Raises InputError for other than strings and integers, and for twins.

    `where` says whose they are.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    kind = column.type
    if not pa.types.is_integer(kind) and not any(is_kind(kind) for is_kind in strings):
        raise InputError(f"{where} holds {kind}; expected ids, strings or integers")
    if column.null_count:
        raise InputError(f"{where} lacks {column.null_count} of its ids; expected one for each row")
    if not pa.types.is_integer(kind) and compute.any(compute.equal(column, "")).as_py():
        raise InputError(f"{where} has an id that is empty; expected a name for each row")
    counts = compute.value_counts(column)
    most = compute.max(counts.field("counts")).as_py() if len(counts) else 1
    if most > 1:
        twins = counts.filter(compute.greater(counts.field("counts"), 1))
        raise InputError(
            f"{where} has {len(twins)} id(s) more than once, such as "
            f"{str(twins.field('values')[0].as_py())!r}; expected each id once"
        )
    return Ids(column)


def ids_beside(path: Path, named: str | None, count: int) -> Ids | None:
    """The ids in a text file, one a line: the one that is named, or `items.ids.txt` of `items.npy`.

    None where there is no such file. Raises InputError where a named one is missing, and for
    another number of lines than `count` rows.
    """
    import pyarrow as pa

    file = path.with_suffix(".ids.txt") if named is None else Path(named).expanduser()
    if named is not None and not file.exists() and (path.parent / file).exists():
        file = path.parent / file
    if not file.is_file():
        if named is None:
            return None
        raise InputError(f"data.ids={named!r}: {path.name} has no ids of its own, and no such file")
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}") from error
    if len(lines) != count:
        raise InputError(
            f"{file} has {len(lines)} ids and {path.name} {count} rows; expected as many"
        )
    return as_ids(pa.chunked_array([lines], pa.string()), str(file))


def ids_of_array(values: Any, where: str, count: int) -> Ids:
    """The ids of an array or list. Raises InputError for another number of them than rows."""
    import pyarrow as pa

    try:
        column = pa.chunked_array([pa.array(np.asarray(values).reshape(-1).tolist())])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{where} holds no ids: {error}") from error
    if len(column) != count:
        raise InputError(f"{where} has {len(column)} ids for {count} rows; expected as many")
    return as_ids(column, where)
