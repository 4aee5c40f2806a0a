"""A column of a Parquet file by row number: held as a whole, or read group by group."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .index import digest

if TYPE_CHECKING:
    import pyarrow as pa

_HELD_BYTES = 2**30  # of row groups of all files together, where not all are held
_LEAST_HELD = 8  # groups, however large


class _Group:
    """A row group: whoever comes first reads it, and others who want it wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.column: pa.ChunkedArray | None = None


class RecentGroups:
    """The row groups that were read last, for the files of a split and all threads."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[Path, int], _Group] = OrderedDict()
        self._lock = threading.Lock()  # never held while a group is read

    def column(self, path: Path, group: int, column: str) -> "pa.ChunkedArray":
        """The column of a row group."""
        with self._lock:
            held = self._groups.setdefault((path, group), _Group())
            self._groups.move_to_end((path, group))
        with held.lock:
            if held.column is None:
                held.column = _read(path, [group], column)
                self._drop_oldest()
            return held.column

    def _drop_oldest(self) -> None:
        with self._lock:
            sizes = {
                key: held.column.nbytes
                for key, held in self._groups.items()
                if held.column is not None
            }
            total = sum(sizes.values())
            for key in list(sizes)[:-_LEAST_HELD]:
                if total <= _HELD_BYTES:
                    return
                total -= sizes[key]
                del self._groups[key]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # another process reads its own


class Column:
    """One column of a file; `content` is a digest of what the footer says of it.

    Args:
        path: of the file
        name: of the column
        recent: where groups are held; None holds the whole column

    May raise anything where the file is damaged.
    """

    def __init__(self, path: Path, name: str, recent: RecentGroups | None):
        import pyarrow.parquet as parquet

        self.path = path
        self.name = name
        self.recent = recent
        with path.open("rb") as file:  # pyarrow takes no names that are not UTF-8
            metadata = parquet.read_metadata(file)
        groups = range(metadata.num_row_groups)
        self.ends = list(accumulate(metadata.row_group(i).num_rows for i in groups))
        self.content = digest([_sizes(metadata.row_group(i), name) for i in groups])
        self._all = None if recent else _read(path, list(groups), name)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def release(self) -> "pa.ChunkedArray":
        """All values, where they are held; from now on they are not. Changes state."""
        assert self._all is not None
        values = self._all
        self._all = None
        return values

    def group(self, number: int) -> "pa.ChunkedArray":
        """The values of a row group."""
        assert self.recent is not None
        return self.recent.column(self.path, number, self.name)

    def __getitem__(self, row: int) -> Any:
        """The value of a row, as Python has it."""
        if self._all is not None:
            return self._all[row].as_py()
        group = bisect_right(self.ends, row)
        first = self.ends[group - 1] if group else 0
        return self.group(group)[row - first].as_py()


def read_column(path: Path, name: str) -> list[Any]:
    """All values of a column. May raise anything where the file is damaged."""
    import pyarrow.parquet as parquet

    with path.open("rb") as file:
        return parquet.read_table(file, columns=[name])[name].to_pylist()


def column_bytes(path: Path, name: str) -> int:
    """What a column takes in memory. May raise anything where the file is damaged."""
    import pyarrow.parquet as parquet

    with path.open("rb") as file:
        metadata = parquet.read_metadata(file)
    return sum(
        part.total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for part in _parts(metadata.row_group(group), name)
    )


def _sizes(group: Any, name: str) -> list[int]:
    """Rows and bytes of a row group, and the bytes of a column of it as it lies on the disk."""
    parts = [part.total_compressed_size for part in _parts(group, name)]
    return [group.num_rows, group.total_byte_size, *parts]


def _parts(group: Any, name: str) -> list[Any]:
    """Those of a column in a row group: a struct has one for each of its fields."""
    columns = map(group.column, range(group.num_columns))
    return [part for part in columns if part.path_in_schema.split(".")[0] == name]


def _read(path: Path, groups: list[int], column: str) -> "pa.ChunkedArray":
    import pyarrow.parquet as parquet

    with path.open("rb") as file:
        return parquet.ParquetFile(file).read_row_groups(groups, columns=[column])[column]
