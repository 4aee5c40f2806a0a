"""Folders of files: which are items, and which split each belongs to."""

import csv
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hqvae.errors import InputError, nearest_name, summary_of

from ..modality import Modality
from .index import SPLIT_NAMES, SPLITS, FileIndex


def list_files(root: Path) -> list[Path]:
    """All files below a folder, sorted; links are followed, hidden files and folders left out."""
    found: list[Path] = []
    entered = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in entered:  # a link to a folder seen before; a circle has no end
            folders.clear()
            continue
        entered.add(identity)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        paths = [Path(folder, name) for name in names if name[0] != "."]
        found += [path for path in paths if path.is_file()]
    return sorted(found)


def index_folder(
    root: Path, files: list[Path], modality: Modality, folder_splits: Mapping[str, str]
) -> dict[str, FileIndex]:
    """The splits of a folder of files.

    A file's split is that of a sub-folder named in `folder_splits`, at any depth; else what
    `metadata.csv` says; else that of a top folder called `train`, `test` or the like; else train.
    Where the table or such top folders exist, files outside them are left out.
    """
    assign = _SplitOfFile(root, folder_splits)
    fitting = [file for file in files if file.suffix.lower() in modality.suffixes]
    groups: dict[str, list[Path]] = {}
    for path in fitting:
        split = assign(path.relative_to(root))
        if split is not None:
            groups.setdefault(split, []).append(path)
    chosen = [path.relative_to(root) for paths in groups.values() for path in paths]
    folders = {name for path in chosen for name in path.parts[:-1]}
    absent = [name for name in folder_splits if name not in folders]
    if absent and groups:
        raise InputError(
            f"folder {str(root)!r} has no sub-folder {absent[0]!r} with {modality.noun}s; "
            f"{nearest_name(absent[0], folders)}"
        )
    if assign.table and not groups:
        raise InputError(
            f"none of the {len(assign.table)} files that {root / 'metadata.csv'} gives a split "
            f"is a {modality.noun} in that folder"
        )
    if not groups:
        suffixes = ", ".join(sorted(modality.suffixes))
        raise InputError(
            f"folder {str(root)!r} holds no {modality.noun} (looked for {suffixes} in it and below)"
        )
    return {name: _index(root, paths, modality) for name, paths in groups.items()}


class _SplitOfFile:
    """Path below the root → its split; None for files that belong to none."""

    def __init__(self, root: Path, folder_splits: Mapping[str, str]):
        self.folder_splits = folder_splits
        self.table = _read_table(root / "metadata.csv")
        folders = [path.name for path in root.iterdir() if path.is_dir()]
        self.top_folders = {
            name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES
        }

    def __call__(self, path: Path) -> str | None:
        folders = path.parts[:-1]
        for name in folders:
            if name in self.folder_splits:
                return self.folder_splits[name]
        if self.table:
            return self.table.get(path.as_posix())
        if self.top_folders:
            return self.top_folders.get(folders[0]) if folders else None
        return "train"


def _read_table(path: Path) -> dict[str, str]:
    """File → split, from the columns `file_name` and `split`; empty where there are none."""
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
        name = str(row["split"])
        if name.strip().lower() not in SPLIT_NAMES:
            raise InputError(
                f"{path}: {row['file_name']} has split {row['split']!r}; "
                f"{nearest_name(name, SPLITS)}"
            )
    return {str(row["file_name"]): SPLIT_NAMES[row["split"].strip().lower()] for row in rows}


def _index(root: Path, paths: list[Path], modality: Modality) -> FileIndex:
    names = [str(path.relative_to(root)) for path in paths]
    return FileIndex(names, partial(_open_file, modality, paths))


def _open_file(modality: Modality, paths: list[Path], i: int) -> Any:
    return modality.open(paths[i])
