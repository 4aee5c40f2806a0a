"""Folders of files: which are items, and which split and class each belongs to."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hqvae.errors import InputError, nearest_name

from ..modality import Modality
from .index import FileIndex, Label, split_named
from .labels import labels_of
from .listing import Listing, kinds, warn_of_passed_over
from .split_table import SplitTable, read_split_table

log = logging.getLogger("hqvae")
_NAMED = 3  # folders that a message names


def index_folder(
    listing: Listing, modality: Modality, folder_splits: Mapping[str, str]
) -> dict[str, FileIndex]:
    """The splits of a folder of files.

    A file's split is that of a sub-folder named in `folder_splits`, at any depth; else what
    `metadata.csv` (`.jsonl`, `.parquet`) says; else that of a folder called `train`, `test` or the
    like, at the least depth where there is one; else train. Where the table or such folders exist,
    files outside them are left out, which one line says.

    A file's label is what the table says, where it has labels; else its class folder: the first
    below the split's folder, or below the root, as torchvision's `ImageFolder` reads it. Folders
    named in `folder_splits` are no classes, and neither are their like: `fold1` beside `fold10`.

    Raises InputError where there is no item, or where a folder may be a split or a class.
    """
    root = listing.root
    fitting = [file for file in listing.files if file.suffix.lower() in modality.suffixes]
    if not fitting:
        raise _nothing_found(listing, modality)
    paths = [file.relative_to(root) for file in fitting]
    table = read_split_table(root)
    assign = _SplitOfFile(paths, folder_splits, table)
    groups: dict[str, list[Path]] = {}
    outside = []
    for path in paths:
        split = assign(path)
        if split is None:
            outside.append(path)
        else:
            groups.setdefault(split, []).append(path)
    _check_folder_splits(root, groups, folder_splits, modality)
    if table is not None and not groups:
        raise InputError(
            f"none of the {len(table.splits)} files that {root / table.name} gives a split "
            f"is a {modality.noun} in that folder"
        )
    if table is None:
        outside = _not_linked_inside(root, outside, groups)
        _check_meaning(root, groups, outside, assign, modality)
    notes = [_outside(outside, assign, table, modality), *assign.notes(root, listing, paths)]
    others = kinds(file for file in listing.files if file.suffix.lower() not in modality.suffixes)
    warn_of_passed_over(root, [*notes, others, *listing.notes()])
    _warn_of_meaning(listing, groups, assign, modality)
    return {name: _index(root, chosen, modality, assign) for name, chosen in groups.items()}


class _SplitOfFile:
    """Path below the root → its split, None for files that belong to none; and its label."""

    def __init__(
        self, paths: Sequence[Path], folder_splits: Mapping[str, str], table: SplitTable | None
    ):
        self.folder_splits = folder_splits
        self.table = table
        self.found: dict[str, str] = {}  # folder that is a split → the split
        depths = [depth for path in paths if (depth := self._depth(path)) is not None]
        self.depth = min(depths, default=None)
        self.folds = {
            (depth, _without_number(name))
            for path in paths
            for depth, name in enumerate(path.parts[:-1])
            if name in folder_splits
        }

    def __call__(self, path: Path) -> str | None:
        folders = path.parts[:-1]
        for name in folders:
            if name in self.folder_splits:
                return self.folder_splits[name]
        if self.table is not None:
            return self.table.splits.get(path.as_posix())
        if self.depth is None:
            return "train"
        if self._depth(path) != self.depth:
            return None
        split = split_named(folders[self.depth])
        assert split is not None
        self.found[str(Path(*folders[: self.depth + 1]))] = split
        return split

    def label(self, path: Path) -> Label:
        """What the table says, else the first folder below the split's that is no fold."""
        if self.table is not None and self.table.labels is not None:
            return self.table.labels.get(path.as_posix())
        below = 0
        if self.depth is not None and self._depth(path) == self.depth:
            below = self.depth + 1
        for depth, name in enumerate(path.parts[:-1]):
            if depth >= below and (depth, _without_number(name)) not in self.folds:
                return name
        return None

    def _depth(self, path: Path) -> int | None:
        """How deep the first folder lies that is called like a split."""
        for depth, name in enumerate(path.parts[:-1]):
            if name not in self.folder_splits and split_named(name) is not None:
                return depth
        return None

    def notes(self, root: Path, listing: Listing, paths: Sequence[Path]) -> list[str]:
        """What might have been taken for a split and was not, in words."""
        if self.table is not None:
            return self.table.missing(root)
        top = {path.parts[0] for path in paths if len(path.parts) > 1}
        empty = [
            entry.name
            for entry in sorted(root.iterdir())
            if entry.is_dir() and split_named(entry.name) and entry.name not in top
        ]
        return [f"folder {name!r}, which has no file of the kind" for name in empty]


def _without_number(folder: str) -> str:
    return folder.rstrip("0123456789")


def _check_folder_splits(
    root: Path,
    groups: Mapping[str, Sequence[Path]],
    folder_splits: Mapping[str, str],
    modality: Modality,
) -> None:
    folders = {name for paths in groups.values() for path in paths for name in path.parts[:-1]}
    absent = [name for name in folder_splits if name not in folders]
    if absent and groups:
        raise InputError(
            f"folder {str(root)!r} has no sub-folder {absent[0]!r} with {modality.noun}s; "
            f"{nearest_name(absent[0], folders)}"
        )


def _not_linked_inside(
    root: Path, outside: Sequence[Path], groups: Mapping[str, Sequence[Path]]
) -> list[Path]:
    """Without files that a link inside a split leads to: those are not left out."""
    if not outside:
        return []
    inside = {os.path.realpath(root / path) for paths in groups.values() for path in paths}
    return [path for path in outside if os.path.realpath(root / path) not in inside]


def _check_meaning(
    root: Path,
    groups: Mapping[str, Sequence[Path]],
    outside: Sequence[Path],
    assign: _SplitOfFile,
    modality: Modality,
) -> None:
    """Raises InputError where a lone folder called like a split may as well be a class."""
    in_folders = [path for path in outside if len(path.parts) > 1]
    splits = set(assign.found.values())
    lone_train = splits == {"train"} and not assign.folder_splits
    if not (in_folders if lone_train else outside and "train" not in groups):
        return
    name = sorted(assign.found)[0]
    split = assign.found[name]
    depth = assign.depth or 0
    beside = sorted({str(Path(*path.parent.parts[: depth + 1])) for path in outside})
    listed = ", ".join(map(repr, beside[:_NAMED])) + " …" * (len(beside) > _NAMED)
    otherwise = (
        "take the others out"
        if split == "train"
        else f"set data.{split}_folders=[{Path(name).name}], or put the others into a folder train"
    )
    raise InputError(
        f"folder {name!r} in {str(root)!r} is called like the {split} split, and "
        f"{len(outside)} {modality.noun}s lie outside of it ({listed}): "
        f"if it is a class, rename it; if it is the split, {otherwise}"
    )


def _warn_of_meaning(
    listing: Listing, groups: Mapping[str, Sequence[Path]], assign: _SplitOfFile, modality: Modality
) -> None:
    """What a person may not have meant: files in two splits, and names much like a split's."""
    if listing.linked and len(groups) > 1:
        of_file: dict[str, set[str]] = {}
        for split, paths in groups.items():
            for path in paths:
                of_file.setdefault(os.path.realpath(listing.root / path), set()).add(split)
        shared = [splits for splits in of_file.values() if len(splits) > 1]
        if shared:
            names = " and ".join(sorted(set().union(*shared)))
            log.warning("%d %ss are in %s alike, by links", len(shared), modality.noun, names)
    if assign.table is None and assign.depth is None:
        folders = {name for path in groups.get("train", ()) for name in path.parts[:-1]}
        alike = sorted((name, split) for name in folders if (split := _nearly(name)) != "train")
        for name, split in [pair for pair in alike if pair[1]][:_NAMED]:
            log.warning(
                "folder %r is taken for training; data.%s_folders=[%s] would make it the %s split",
                *(name, split, name, split),
            )


def _nearly(folder: str) -> str:
    """The split that the first or the last word of a name is, `dev-clean`; empty if none is."""
    words = re.split(r"[-_. ]", folder)
    return split_named(words[0]) or split_named(words[-1]) or ""


def _outside(
    outside: Sequence[Path], assign: _SplitOfFile, table: SplitTable | None, modality: Modality
) -> str:
    if not outside:
        return ""
    noun = f"{modality.noun}{'s' * (len(outside) > 1)}"
    if table is not None:
        return f"{len(outside)} {noun} that {table.name} gives no split"
    return f"{len(outside)} {noun} outside of {', '.join(sorted(assign.found))}"


def _nothing_found(listing: Listing, modality: Modality) -> InputError:
    sentence = (
        f"folder {str(listing.root)!r} holds no {modality.noun} "
        f"(looked for {', '.join(sorted(modality.suffixes))} in it and below)"
    )
    archives = [file for file in listing.files if file.suffix == ".npz"]
    notes = [note for note in (kinds(listing.files), *listing.notes()) if note]
    if archives and modality.arrays:
        sentence += f"; to read an .npz, name the file itself: {archives[0]}"
    elif notes:
        sentence += f"; it holds {'; '.join(notes)}"
    return InputError(sentence)


def _index(root: Path, paths: list[Path], modality: Modality, assign: _SplitOfFile) -> FileIndex:
    names = [str(path) for path in paths]
    labels = labels_of(map(assign.label, paths))
    return FileIndex(names, partial(_open_file, modality, root, names), labels=labels)


def _open_file(modality: Modality, root: Path, names: list[str], i: int) -> Any:
    return modality.open(root / names[i])
