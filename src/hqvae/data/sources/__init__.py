"""Where data come from: a name or path → an index of the items of each split, not yet decoded.

Splits that the source itself has are kept: folders `train` and `test`, `train.parquet`, `x_train`,
a hub data set's splits. Missing ones are cut from the training items by the seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from hqvae.config_class import config_class
from hqvae.errors import InputError, close_name

from ..modality import Modality
from .arrays import index_npz
from .float_arrays import SUFFIXES, index_float_arrays
from .float_columns import index_float_columns
from .folders import index_folder
from .hub import index_hub
from .index import SPLITS, FileIndex, Label, cut_splits, digest
from .listing import Listing, kinds, list_files, require_readable, warn_of_passed_over
from .parquet import data_tables, index_parquet
from .photos import index_photos

__all__ = [
    "SPLITS",
    "FileIndex",
    "Label",
    "SourceConfig",
    "cut_splits",
    "digest",
    "open_arrays",
    "open_source",
]

_PHOTO_SIZE = 64  # side of the crops of built-in photographs where the config names none


@config_class
class SourceConfig(ABC):
    """Where a data set comes from, and how it is kept."""

    source: str = "photos"
    """A folder, a Parquet file or a hub data set's name; for images also `photos` and `.npz`."""
    column: str | None = None
    """Of a table: the column with the items; found by itself when None."""
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the training items cut off where the source has no validation split."""
    test: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training items cut off where the source has no test split."""
    validation_folders: tuple[str, ...] = ()
    """Names of sub-folders that are the validation split: `[fold9]`."""
    test_folders: tuple[str, ...] = ()
    """Names of sub-folders that are the test split: `[fold10]`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the cut."""
    cache_mb: int = Field(default=4096, ge=0)
    """Items are kept in memory up to this; beyond, they are read and decoded when needed."""
    workers: int = Field(default=4, ge=0)
    """Processes that decode training items that are not kept."""

    @property
    @abstractmethod
    def modality(self) -> Modality[Any]:
        """What the data are."""

    def for_other_data(self) -> Any:
        """Without what only the run's own data have: folders that are splits, and a column."""
        return replace(self, validation_folders=(), test_folders=(), column=None)

    @property
    def photo_size(self) -> int:
        """Side of the crops that the built-in photographs are cut into."""
        return _PHOTO_SIZE

    @property
    def folder_splits(self) -> dict[str, str]:
        """Sub-folder → its split."""
        validation = dict.fromkeys(self.validation_folders, "validation")
        return {**validation, **dict.fromkeys(self.test_folders, "test")}


def open_source(config: SourceConfig) -> dict[str, FileIndex]:
    """The splits that the source itself declares; a source without splits is all `train`.

    Raises InputError for a source that does not exist or cannot be read.
    """
    modality = config.modality
    own = modality.open_source(config)
    if own is not None:
        return own
    source = config.source
    path = Path(source).expanduser()
    listing = list_files(path) if path.is_dir() else Listing(path)
    require_readable(listing)
    tables = data_tables(listing, modality)
    if config.folder_splits and (not path.is_dir() or tables):
        raise InputError(
            f"data {source!r} is no folder of files, so none of its sub-folders can be a split: "
            f"{', '.join(config.folder_splits)}"
        )
    if source == "photos":
        return _open_photos(config, path)
    if tables:
        warn_of_passed_over(path, [kinds(set(listing.files) - set(tables)), *listing.notes()])
        return index_parquet(path, tables, config.column, modality, config.cache_mb * 2**20)
    if path.is_dir():
        return index_folder(listing, modality, config.folder_splits)
    if path.is_file():
        return _open_file(config, path)
    builtin = ["photos"] if modality.photographs else []
    meant = _near(path, builtin)
    if not _may_be_hub_name(source, path):
        expected = meant or f"expected a folder or file, of which {path.parent} has none so called"
        raise InputError(f"data {source!r} does not exist; {expected}")
    return index_hub(source, config.column, modality, meant)


def _near(path: Path, builtin: Sequence[str] = ()) -> str | None:
    """What may have been meant with a path that does not exist, in words."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return close_name(path.name, [*beside, *builtin])


def open_arrays(config: SourceConfig, ids: str | None, labels: str | None) -> dict[str, FileIndex]:
    """The splits of float arrays: a file, or a folder of Parquet files.

    Args:
        config: source and column
        ids, labels: columns or arrays with the items' names and classes

    Raises InputError for a source that does not exist or cannot be read.
    """
    path = Path(config.source).expanduser()
    held = config.cache_mb * 2**20
    if config.folder_splits:
        raise InputError(f"data {config.source!r} is of arrays, so no folder can be a split")
    if path.is_dir():
        listing = list_files(path)
        require_readable(listing)
        tables = [file for file in listing.files if file.suffix.lower() == ".parquet"]
        if not tables:
            raise InputError(
                f"folder {config.source!r} holds no .parquet; "
                f"name a file of arrays itself ({', '.join(SUFFIXES)})"
            )
        warn_of_passed_over(path, [kinds(set(listing.files) - set(tables)), *listing.notes()])
        return index_float_columns(path, tables, config.column, ids, labels, held)
    if not path.exists():
        if config.source == "photos":  # where none is named
            raise InputError(
                "data='photos' are pictures, which are built in; expected data of arrays: a file "
                ".npy, .npz, .pt or .parquet, or a folder"
            )
        expected = _near(path) or "expected a file .npy, .npz, .pt or .parquet, or a folder"
        raise InputError(f"data {config.source!r} does not exist; {expected}")
    if path.suffix.lower() == ".parquet":
        return index_float_columns(path.parent, [path], config.column, ids, labels, held)
    if path.suffix.lower() in SUFFIXES:
        return index_float_arrays(path, config.column, ids, labels)
    raise InputError(
        f"data {config.source!r} is a {path.suffix or 'bare'} file; "
        f"expected arrays: {', '.join(SUFFIXES)} or .parquet"
    )


def _open_photos(config: SourceConfig, path: Path) -> dict[str, FileIndex]:
    modality = config.modality
    if path.exists():
        raise InputError(
            "data 'photos' is the built-in photographs' name, and 'photos' is here too; "
            "write ./photos for the one here"
        )
    if not modality.photographs:
        raise InputError(
            f"data 'photos' holds images, and this preset is for {modality.noun}s; "
            "name a folder of them"
        )
    return index_photos(config.photo_size)


def _open_file(config: SourceConfig, path: Path) -> dict[str, FileIndex]:
    if path.suffix == ".parquet":
        held = config.cache_mb * 2**20
        return index_parquet(path.parent, [path], config.column, config.modality, held)
    if path.suffix == ".npz" and config.modality.arrays:
        return index_npz(path)
    kinds = "a folder, .parquet or .npz" if config.modality.arrays else "a folder or .parquet"
    raise InputError(f"data {config.source!r} is a {path.suffix or 'bare'} file; expected {kinds}")


def _may_be_hub_name(source: str, path: Path) -> bool:
    """`name` or `owner/name`, and nothing that only a path has."""
    if source.startswith((".", "/", "~")) or path.suffix or source.count("/") > 1:
        return False
    parts = [part.replace("-", "").replace("_", "").replace(".", "") for part in source.split("/")]
    return all(part.isalnum() for part in parts)
