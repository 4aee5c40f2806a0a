"""A column of a Parquet file by row number: held as a whole, or read group by group."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_RECENT = 8  # row groups of all files together that are held where not all are


class RecentGroups:
    """The row groups that were read last, for the files of a split and all threads."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def column(self, path: Path, group: int, column: str) -> "pa.ChunkedArray":
        """The column of a row group."""
        key = (path, group)
        with self._lock:  # others wait for the group that they want too
            if key not in self._groups:
                self._groups[key] = _read(path, [group], column)
                if len(self._groups) > _RECENT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # another process reads its own


class Column:
    """One column of a file.

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
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in groups))
        self._all = None if recent else _read(path, list(groups), name)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Any:
        """The value of a row, as Python has it."""
        if self._all is not None:
            return self._all[row].as_py()
        assert self.recent is not None
        group = bisect_right(self._ends, row)
        first = self._ends[group - 1] if group else 0
        return self.recent.column(self.path, group, self.name)[row - first].as_py()


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
        for part in map(metadata.row_group(group).column, range(metadata.num_columns))
        if part.path_in_schema.split(".")[0] == name
    )


def _read(path: Path, groups: list[int], column: str) -> "pa.ChunkedArray":
    import pyarrow.parquet as parquet

    with path.open("rb") as file:
        return parquet.ParquetFile(file).read_row_groups(groups, columns=[column])[column]
