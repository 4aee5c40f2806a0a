"""Where images and sounds come from: a name or path → the collections of its splits, not yet decoded.

A collection is a list of names and a way to read the i-th one. Splits that the source itself has (folders `train`/`test`,
`train.parquet`, `x_train`, a hub data set's splits) are kept; missing ones are cut from the training items by the seed.
"""

import csv
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hqvae.errors import InputError, nearest_name, summary_of

SPLITS = ("train", "validation", "test")
_SYNONYMS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
             "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Medium:
    """What a data set holds: its name for messages, its files' endings, how one is opened, and the hub library's name for it."""

    noun: str
    suffixes: frozenset[str]
    open: Callable[[Path | io.BytesIO], Any]
    feature: str


IMAGE_MEDIUM = Medium(
    "image", frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}), Image.open, "Image"
)


@dataclass(frozen=True)
class Collection:
    """Items by number: `names[i]` for messages, `read(i)` for what the medium opens (raises OSError or ValueError when it is broken)."""

    names: Sequence[str]
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Collection":
        return Collection([self.names[i] for i in indices], partial(_read_chosen, self.read, list(indices)))


def _read_chosen(read: Callable[[int], Any], chosen: list[int], i: int) -> Any:
    return read(chosen[i])


def _read_file(medium: Medium, paths: list[Path], i: int) -> Any:
    return medium.open(paths[i])


def _read_cell(medium: Medium, cells: Any, i: int) -> Any:
    return medium.open(io.BytesIO(cells[i].as_py() or b""))


def _read_array(array: np.ndarray, i: int) -> Image.Image:
    picture = array[i]
    if picture.ndim == 3 and picture.shape[0] in (1, 3, 4) and picture.shape[2] not in (1, 3, 4):  # channels first, as tensors are kept
        picture = np.ascontiguousarray(picture.transpose(1, 2, 0))
    return Image.fromarray(picture.squeeze())


def open_source(
    source: str, column: str | None, size: int | None, medium: Medium = IMAGE_MEDIUM, held: Mapping[str, str] | None = None
) -> dict[str, Collection]:
    """The collections that `source` itself declares, by split; a source without splits is all `train`.

    Args:
        source: a folder of files, a Parquet file or a folder of them, or the name of a hub data set; for pictures also `photos`
            and an `.npz`
        column: name of the column of a table, found by itself when None
        size: side of the crops that `photos` is cut into
        medium: pictures or sounds
        held: of a folder of files, sub-folders (at any depth) → the split that they are
    """
    pictures = medium is IMAGE_MEDIUM
    path = Path(source).expanduser()
    files = _files(path) if path.is_dir() else []
    tables = [file for file in files if file.suffix == ".parquet"]
    if held and (not path.is_dir() or tables):
        raise InputError(f"data {source!r} is no folder of files, so none of its sub-folders can be a split: {', '.join(held)}")
    if source == "photos":
        if path.exists():
            raise InputError("data 'photos' is the built-in photographs' name, and 'photos' is here too; write ./photos for the one here")
        if not pictures:
            raise InputError(f"data 'photos' holds images, and this preset is for {medium.noun}s; name a folder of them with --data")
        return _photos(size or 64)
    if path.is_dir():
        return _tables(path, tables, column, medium) if tables else _folder(path, files, medium, held or {})
    if path.is_file():
        if path.suffix == ".parquet":
            return _tables(path.parent, [path], column, medium)
        if path.suffix == ".npz" and pictures:
            return _npz(path)
        kinds = "a folder, .parquet or .npz" if pictures else "a folder or .parquet"
        raise InputError(f"data {source!r} is a {path.suffix or 'bare'} file; expected {kinds}")
    if source.startswith((".", "/", "~")) or path.suffix or source.count("/") > 1 or not _could_be_hub(source):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"data {source!r} does not exist; {nearest_name(path.name, [*beside, *['photos'] * pictures])}")
    return _hub(source, column, medium)


def _files(root: Path) -> list[Path]:
    """All files below a folder, sorted; links are followed, and hidden files and folders left out."""
    found, entered = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # a link to where we have been: once is enough, and a circle has no end
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [path for path in (Path(folder, name) for name in names if name[0] != ".") if path.is_file()]
    return sorted(found)


def _could_be_hub(source: str) -> bool:
    return all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in source.split("/"))


def split(
    collections: dict[str, Collection], validation: float, test: float, seed: int, wanted: Sequence[str] = SPLITS
) -> dict[str, Collection]:
    """All splits, disjoint: what the source lacks is cut from its training items in an order fixed by `seed`.

    Without training items only splits that the source itself has can be `wanted`.
    """
    missing = [name for name in ("test", "validation") if name not in collections]
    train = collections.get("train")
    if train is None:
        absent = [name for name in wanted if name not in collections]
        if absent:
            held = ", ".join(collections) or "of unknown names"
            raise InputError(f"the data has splits {held} but no {absent[0]} split, and no train split to cut it from")
        return dict(collections)
    counts = {"validation": validation, "test": test}
    cuts = {name: max(1, round(counts[name] * len(train))) for name in missing}
    if sum(cuts.values()) >= len(train):
        raise InputError(
            f"{len(train)} items are too few to cut {' and '.join(missing)} from; at least {sum(cuts.values()) + 1} are needed"
        )
    order, start, out = np.random.default_rng(seed).permutation(len(train)), 0, dict(collections)
    for name in missing:
        out[name] = train.subset(np.sort(order[start : start + cuts[name]]).tolist())
        start += cuts[name]
    if start:
        out["train"] = train.subset(np.sort(order[start:]).tolist())
    return out


def _folder(root: Path, files: list[Path], medium: Medium, held: Mapping[str, str]) -> dict[str, Collection]:
    groups: dict[str, list[Path]] = {}
    named = {p.name: _SYNONYMS[p.name.lower()] for p in root.iterdir() if p.is_dir() and p.name.lower() in _SYNONYMS}
    listed = _listed(root / "metadata.csv")
    for path in (file for file in files if file.suffix.lower() in medium.suffixes):
        folders = path.relative_to(root).parts[:-1]
        found = next((held[name] for name in folders if name in held), None)
        if listed and found is None:
            found = listed.get(path.relative_to(root).as_posix())
            if found is None:
                continue
        if found is None and named and (not folders or folders[0] not in named):
            continue
        groups.setdefault(found or (named[folders[0]] if named else "train"), []).append(path)
    absent = [name for name in held if not any(name in path.relative_to(root).parts[:-1] for paths in groups.values() for path in paths)]
    if absent and groups:
        beside = {name for paths in groups.values() for path in paths for name in path.relative_to(root).parts[:-1]}
        raise InputError(f"folder {str(root)!r} has no sub-folder {absent[0]!r} with {medium.noun}s; {nearest_name(absent[0], beside)}")
    if listed and not groups:
        raise InputError(f"none of the {len(listed)} files that {root / 'metadata.csv'} gives a split is a {medium.noun} in that folder")
    if not groups:
        looked = ", ".join(sorted(medium.suffixes))
        raise InputError(f"folder {str(root)!r} holds no {medium.noun} (looked for {looked} in it and below)")
    return {name: Collection([str(p.relative_to(root)) for p in paths], partial(_read_file, medium, paths))
            for name, paths in groups.items()}  # fmt: skip


def _listed(path: Path) -> dict[str, str]:
    """File → split, as a `metadata.csv` beside or above the files has them in its columns `file_name` and `split`; {} without them."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {summary_of(error)}") from error
    if not rows or not {"file_name", "split"} <= set(rows[0]):
        return {}
    for row in rows:
        if str(row["split"]).strip().lower() not in _SYNONYMS:
            raise InputError(f"{path}: {row['file_name']} has split {row['split']!r}; {nearest_name(str(row['split']), SPLITS)}")
    return {str(row["file_name"]): _SYNONYMS[row["split"].strip().lower()] for row in rows}


def _declared(path: Path) -> str:
    """The split that a table's path says it is: by a folder, `test/0000.parquet`, or by the first or last word of its name,
    `test-00000-of-00002.parquet`, `cifar10-test.parquet`; else train."""
    words = [word for word in re.split(r"[-_.]", path.stem.lower()) if word and not word.isdigit() and word != "of"]
    said = [*(part.lower() for part in path.parts[:-1]), *words[:1], *words[-1:]]
    return next((_SYNONYMS[word] for word in said if word in _SYNONYMS), "train")


def _tables(root: Path, paths: list[Path], column: str | None, medium: Medium) -> dict[str, Collection]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_declared(path.relative_to(root)), []).append(path)
    out = {}
    for name, files in groups.items():
        try:
            schema = pq.read_schema(files[0])
            chosen = _bytes_column(files[0], {f.name: f.type for f in schema}, column, medium.noun)
            parts = [pq.read_table(file, columns=[chosen]) for file in files]
            cells = pa.concat_tables(parts)[chosen]
        except pa.ArrowException as error:
            raise InputError(f"{files[0]} cannot be read as Parquet: {summary_of(error)}") from error
        if pa.types.is_struct(cells.type):
            cells = pa.chunked_array([chunk.field("bytes") for chunk in cells.chunks])
        names = [f"{file.relative_to(root)} row {i}" for file, part in zip(files, parts) for i in range(len(part))]
        out[name] = Collection(names, partial(_read_cell, medium, cells))
    return out


def _bytes_column(path: Path, types: dict, column: str | None, noun: str) -> str:
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    fitting = [name for name, kind in types.items() if holds_bytes(kind)]
    if column is not None and column not in types:
        raise InputError(f"{path.name} has no column {column!r}; {nearest_name(column, types)}")
    if column is not None and column not in fitting:
        raise InputError(f"column {column!r} of {path.name} holds {types[column]}, not {noun}s")
    if column is None and len(fitting) != 1:
        raise InputError(
            f"{path.name} has {len(fitting)} {noun} columns ({', '.join(fitting) or 'its columns: ' + ', '.join(types)}); "
            "name one with data.column=NAME"
        )
    return column or fitting[0]


def _npz(path: Path) -> dict[str, Collection]:
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("it holds a single array; write it with np.savez")
        images = {name: arrays[name] for name in arrays.files if arrays[name].dtype == np.uint8 and arrays[name].ndim in (3, 4)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = "it is no such file" if "pickle" in str(error) else error  # NumPy's advice to load it unsafely is none to follow
        raise InputError(f"{path} cannot be read as .npz: {why}") from error
    out: dict[str, Collection] = {}
    for name, array in images.items():
        key = _SYNONYMS.get(name.lower().removeprefix("x_").removesuffix("_images"), "train")
        if key in out:
            raise InputError(
                f"{path.name} has several uint8 image arrays for {key} ({', '.join(images)}); keep one, or name them x_train, x_test"
            )
        out[key] = Collection([f"{name}[{i}]" for i in range(len(array))],
                              partial(_read_array, array))  # fmt: skip
    if not out:
        raise InputError(
            f"{path.name} has no uint8 array [N, H, W], [N, H, W, C] or [N, C, H, W]; it holds {', '.join(arrays.files) or 'nothing'}"
        )
    return out


def _hub(name: str, column: str | None, medium: Medium) -> dict[str, Collection]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data {name!r} is no file or folder; to read it as a Hugging Face data set, pip install 'hqvae[hub]'") from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises its own, its client's and the file system's errors here
        raise InputError(f"data {name!r} is no file or folder, and loading it from the hub failed: {summary_of(error)}") from error
    out = {}
    for key, table in loaded.items():
        kind = getattr(datasets, medium.feature)
        fitting = [n for n, feature in table.features.items() if isinstance(feature, kind)]
        if column is not None and column not in fitting:
            raise InputError(f"{name} has no {medium.noun} column {column!r}; {nearest_name(column, fitting)}")
        if not fitting:
            raise InputError(f"{name} has no {medium.noun} column; its columns: {', '.join(table.features)}")
        chosen = column or fitting[0]
        raw = table.cast_column(chosen, kind(decode=False))  # their decoders are left aside: one way to decode, whatever the source

        def read(i: int, raw=raw, chosen=chosen) -> Any:
            cell = raw[i][chosen]
            return medium.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])

        if key.lower() in _SYNONYMS or len(loaded) == 1:
            out[_SYNONYMS.get(key.lower(), "train")] = Collection([f"{name} {key} row {i}" for i in range(len(table))], read)
    return out


# Photographs in scikit-image's wheel. Each stands whole in one split, so that a test crop never shows a trained photograph.
PHOTOS = {
    "train": (
        "stereo_motorcycle", "immunohistochemistry", "retina", "hubble_deep_field", "rocket", "brick", "grass", "gravel", "camera",
    ),
    "validation": ("coffee",),
    "test": ("astronaut", "chelsea"),
}  # fmt: skip


def _photos(size: int) -> dict[str, Collection]:
    """Square crops of real photographs: overlapping by half and at two scales for training, side by side and whole-size else."""
    try:
        import skimage.data
    except ImportError as error:
        raise InputError("data 'photos' needs scikit-image, which carries the photographs: pip install 'hqvae[demo]'") from error
    out = {}
    for split_name, titles in PHOTOS.items():
        names, crops = [], []
        for title in titles:
            picture = getattr(skimage.data, title)()
            picture = Image.fromarray(picture[0] if isinstance(picture, tuple) else picture).convert("RGB")
            for scale in (1, 2) if split_name == "train" else (1,):
                scaled = picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.LANCZOS)
                step = max(1, size // 2) if split_name == "train" else size
                for top in range(0, scaled.height - size + 1, step):
                    for left in range(0, scaled.width - size + 1, step):
                        names.append(f"{title}/{scale} at {left},{top}")
                        crops.append(scaled.crop((left, top, left + size, top + size)))
        if not crops:
            raise InputError(f"data.size={size} is larger than the built-in photographs; at most 400")
        out[split_name] = Collection(names, crops.__getitem__)
    return out
