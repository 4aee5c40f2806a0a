"""`metadata.csv`, `.jsonl` or `.parquet` in a folder: splits of files, and their labels."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from hqvae.errors import InputError, nearest_name, summary_of

from .index import SPLIT_NAMES, SPLITS, Label
from .labels import labels_of


@dataclass(frozen=True)
class SplitTable:
    """Splits and labels by file, as a table has them."""

    name: str
    """Of the table, below the folder."""
    splits: dict[str, str]
    """Path below the folder → split."""
    labels: dict[str, Label] | None = None
    """Path below the folder → label; None where the table has no column `label`."""

    def missing(self, root: Path) -> list[str]:
        """Files that the table names and that are not there, in words."""
        absent = [name for name in self.splits if not (root / name).is_file()]
        if not absent:
            return []
        several = len(absent) > 1
        files = f"{len(absent)} file{'s' * several} of {self.name}"
        return [f"{files} that cannot be found ({absent[0]!r}{' …' * several})"]


def read_split_table(root: Path) -> SplitTable | None:
    """The table of a folder with the columns `file_name` and `split`; None where there is none.

    A third column, `label`, counts where it holds integers or strings.

    Raises InputError for a table that cannot be read, or a split of no known name.
    """
    for name, read in _READERS.items():
        path = root / name
        if not path.is_file():
            continue
        try:
            rows = read(path)
        except Exception as error:  # pyarrow's, csv's and json's own, and the system's
            raise InputError(f"{path} cannot be read as a table: {summary_of(error)}") from error
        if rows and all({"file_name", "split"} <= set(row) for row in rows):
            files = [_file(row) for row in rows]
            splits = [_split(path, row) for row in rows]
            labels = labels_of(map(_label, rows))
            of_file = None if labels is None else dict(zip(files, labels))
            return SplitTable(name, dict(zip(files, splits)), of_file)
    return None


def _file(row: dict[str, Any]) -> str:
    """A path below the folder as files are listed: without `./`, and with slashes."""
    return PurePath(str(row["file_name"])).as_posix()


def _split(path: Path, row: dict[str, Any]) -> str:
    name = str(row["split"]).strip().lower()
    if name not in SPLIT_NAMES:
        raise InputError(
            f"{path}: {row['file_name']} has split {row['split']!r}; {nearest_name(name, SPLITS)}"
        )
    return SPLIT_NAMES[name]


def _label(row: dict[str, Any]) -> Any:
    value = row.get("label")
    return None if value == "" else value  # an empty field of a .csv


def _read_csv(path: Path) -> list[dict[str, Any]]:
    # Names that are not UTF-8 are written as they stand on the disk.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    with path.open("rb") as file:  # pyarrow takes no names that are not UTF-8
        table = parquet.ParquetFile(file)
        wanted = ("file_name", "split", "label")
        columns = [name for name in wanted if name in table.schema_arrow.names]
        return table.read(columns).to_pylist()


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "metadata.csv": _read_csv,
    "metadata.jsonl": _read_jsonl,
    "metadata.parquet": _read_parquet,
}
