"""Where a run may lie: not among the files that are read as its data."""

from pathlib import Path

from hqvae.data.sources.index import split_named
from hqvae.errors import InputError


def check_apart(out: str | Path, source: str) -> None:
    """Raises InputError for a folder inside that of the data, where its files would be data.

    The run could not be resumed: its pictures or sounds would have changed its data. Beside the
    folders of splits, or where a table names the items, nothing is read, and a run may lie there.
    """
    root = Path(source).resolve()
    place = Path(out).resolve()
    if not root.is_dir() or not place.is_relative_to(root):
        return
    splits = [path.name for path in root.iterdir() if split_named(path.name)]
    top = place.relative_to(root).parts[:1]
    if (root / "metadata.csv").is_file() or (splits and not set(top) <= set(splits)):
        return
    raise InputError(
        f"out={str(out)!r} lies inside of data={source!r}, and what is written there would be "
        "read as data; expected a folder elsewhere"
    )
