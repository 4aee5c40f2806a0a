"""Where runs and tokens may lie: not among the files that are read as data."""

from pathlib import Path

from hqvae.data.sources.index import split_named
from hqvae.data.sources.split_table import read_split_table
from hqvae.errors import InputError


def check_apart(out: str | Path, source: str, tables: bool = False) -> None:
    """Raises InputError for a folder inside that of the data, where its files would be data.

    The run could not be resumed: its pictures or sounds would have changed its data. Beside the
    folders of splits, or where a table names the items, nothing is read, and a run may lie there;
    but not `tables`, Parquet files, which are read wherever they lie.
    """
    root = Path(source).expanduser().resolve()
    place = Path(out).expanduser().resolve()
    if not root.is_dir() or not place.is_relative_to(root):
        return
    splits = {path.name: split_named(path.name) for path in root.iterdir() if path.is_dir()}
    declared = set(splits.values()) - {None}
    top = place.relative_to(root).parts[:1]
    beside = len(declared) > 1 and not any(splits.get(name) for name in top)
    if not tables and (beside or read_split_table(root) is not None):
        return
    raise InputError(
        f"out={str(out)!r} lies inside of data={source!r}, and what is written there would be "
        "read as data; expected a folder elsewhere"
    )
