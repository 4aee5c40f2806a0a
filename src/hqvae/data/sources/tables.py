"""Tables: Parquet files, NumPy archives, and data sets of the Hugging Face hub."""

import io
import re
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hqvae.errors import InputError, nearest_name, summary_of

from ..modality import Modality
from .index import SPLIT_NAMES, FileIndex

if TYPE_CHECKING:
    import pyarrow as pa

# ------------------------------------------------------------------------------------------ Parquet


def index_parquet(
    root: Path, paths: list[Path], column: str | None, modality: Modality
) -> dict[str, FileIndex]:
    """The splits of Parquet files: a row is an item, whose bytes stand in one column."""
    import pyarrow as pa

    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_split_of_path(path.relative_to(root)), []).append(path)
    indexes = {}
    for split, files in groups.items():
        try:
            indexes[split] = _index_files(root, files, column, modality)
        except pa.ArrowException as error:
            raise InputError(
                f"{files[0]} cannot be read as Parquet: {summary_of(error)}"
            ) from error
    return indexes


def _split_of_path(path: Path) -> str:
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
    root: Path, files: list[Path], column: str | None, modality: Modality
) -> FileIndex:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    types = {field.name: field.type for field in parquet.read_schema(files[0])}
    chosen = _bytes_column(files[0], types, column, modality)
    tables = [parquet.read_table(file, columns=[chosen]) for file in files]
    cells = pa.concat_tables(tables)[chosen]
    if pa.types.is_struct(cells.type):
        cells = pa.chunked_array([chunk.field("bytes") for chunk in cells.chunks])
    names = [
        f"{file.relative_to(root)} row {row}"
        for file, table in zip(files, tables)
        for row in range(len(table))
    ]
    return FileIndex(names, partial(_open_cell, modality, cells))


def _open_cell(modality: Modality, cells: Any, i: int) -> Any:
    return modality.open(io.BytesIO(cells[i].as_py() or b""))


def _bytes_column(
    path: Path, types: "dict[str, pa.DataType]", column: str | None, modality: Modality
) -> str:
    """The column of encoded files: the one that was asked for, or the only one."""
    with_bytes = [name for name, kind in types.items() if _holds_bytes(kind)]
    if column is not None and column not in types:
        raise InputError(f"{path.name} has no column {column!r}; {nearest_name(column, types)}")
    if column is not None and column not in with_bytes:
        raise InputError(
            f"column {column!r} of {path.name} holds {types[column]}, not {modality.noun}s"
        )
    if column is None and len(with_bytes) != 1:
        listed = ", ".join(with_bytes) or "its columns: " + ", ".join(types)
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


# ------------------------------------------------------------------------------------ NumPy archive


def index_npz(path: Path) -> dict[str, FileIndex]:
    """The splits of an `.npz` of uint8 pictures `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`."""
    names, images = _read_npz(path)
    indexes: dict[str, FileIndex] = {}
    for name, array in images.items():
        split = SPLIT_NAMES.get(name.lower().removeprefix("x_").removesuffix("_images"), "train")
        if split in indexes:
            raise InputError(
                f"{path.name} has several uint8 image arrays for {split} ({', '.join(images)}); "
                "keep one, or name them x_train, x_test"
            )
        rows = [f"{name}[{i}]" for i in range(len(array))]
        indexes[split] = FileIndex(rows, partial(_open_row, array))
    if not indexes:
        raise InputError(
            f"{path.name} has no uint8 array [N, H, W], [N, H, W, C] or [N, C, H, W]; "
            f"it holds {', '.join(names) or 'nothing'}"
        )
    return indexes


def _read_npz(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """(names of all arrays, those that can be pictures)."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds a single array; write it with np.savez")
        arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's advice to load it unsafely must not be passed on.
        why = "it is no such file" if "pickle" in str(error) else error
        raise InputError(f"{path} cannot be read as .npz: {why}") from error
    images = {
        name: array
        for name, array in arrays.items()
        if array.dtype == np.uint8 and array.ndim in (3, 4)
    }
    return list(arrays), images


def _open_row(array: np.ndarray, i: int) -> Image.Image:
    pixels = array[i]
    channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
    if channels_first and pixels.shape[2] not in (1, 3, 4):
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(pixels.squeeze())


# ---------------------------------------------------------------------------------------------- hub


def index_hub(name: str, column: str | None, modality: Modality) -> dict[str, FileIndex]:
    """The splits of a data set that the library `datasets` loads by name."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data {name!r} is no file or folder; "
            "to read it as a Hugging Face data set, pip install 'hqvae[hub]'"
        ) from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # its own classes, its client's and the file system's
        raise InputError(
            f"data {name!r} is no file or folder, "
            f"and loading it from the hub failed: {summary_of(error)}"
        ) from error
    feature = getattr(datasets, modality.hub_feature)
    indexes = {}
    for key, table in loaded.items():
        chosen = _feature_column(name, table.features, feature, column, modality)
        # One way to decode, whatever the source: the library's decoders are switched off.
        raw = table.cast_column(chosen, feature(decode=False))
        if key.lower() in SPLIT_NAMES or len(loaded) == 1:
            rows = [f"{name} {key} row {i}" for i in range(len(table))]
            split = SPLIT_NAMES.get(key.lower(), "train")
            indexes[split] = FileIndex(rows, partial(_open_hub_row, modality, raw, chosen))
    return indexes


def _feature_column(
    name: str, features: dict[str, Any], feature: type, column: str | None, modality: Modality
) -> str:
    fitting = [title for title, kind in features.items() if isinstance(kind, feature)]
    if column is not None and column not in fitting:
        raise InputError(
            f"{name} has no {modality.name} column {column!r}; {nearest_name(column, fitting)}"
        )
    if not fitting:
        raise InputError(
            f"{name} has no {modality.name} column; its columns: {', '.join(features)}"
        )
    return column or fitting[0]


def _open_hub_row(modality: Modality, table: Any, column: str, i: int) -> Any:
    cell = table[i][column]
    return modality.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"]))
