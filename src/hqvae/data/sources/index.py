"""A list of items that are not read yet, and how splits that a source lacks are cut from it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

import numpy as np

from hqvae.errors import InputError

SPLITS = ("train", "validation", "test")

Label = int | str | None
"""The class of an item; None where the source has none."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names that folders, files and tables give their splits, in lower case → the split."""


def split_named(folder: str) -> str | None:
    """The split that a folder's name is, digits behind it apart; None where it is none.

    >>> split_named("Training"), split_named("val2017"), split_named("train_station")
    ('train', 'validation', None)
    """
    return SPLIT_NAMES.get(folder.lower().rstrip("0123456789"))


@dataclass(frozen=True)
class FileIndex:
    """Items by number.

    >>> index = FileIndex(["a.txt", "b.txt", "c.txt"], lambda i: "abc"[i], labels=[0, 1, None])
    >>> chosen = index.subset([2, 0])
    >>> chosen.names, chosen.open(0), chosen.labels
    (['c.txt', 'a.txt'], 'c', [None, 0])
    """

    names: Sequence[str]
    """Paths below the source's folder, or rows of a table: stable, each of one item."""
    open: Callable[[int], Any]
    """Opens the i-th item as its modality does. May raise anything where it is broken."""
    open_whole: Callable[[int], Any] | None = None
    """Opens what the i-th item was cut from; None where items are whole."""
    labels: Sequence[Label] | None = None
    """The class of each item, as a number or a name; None where the source has none."""
    label_names: Sequence[str] | None = None
    """The names of the classes by number; None where labels are names, or have none."""
    content: str | None = None
    """A digest of what the source says that its items hold; None where it says nothing."""
    take: Callable[[np.ndarray], np.ndarray] | None = None
    """Items of several numbers at once, stacked; None where each is opened by itself."""
    is_numbered: bool = False
    """Whether names are row numbers, which other data have too."""

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.names):
            raise ValueError(f"{len(self.labels)} labels for {len(self.names)} items")

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: "Sequence[int] | np.ndarray") -> "FileIndex":
        """The items of these numbers, in this order; each keeps its name and label."""
        chosen = np.asarray(indices, dtype=np.int64)
        names: Sequence[str] = Chosen(self.names, chosen)
        if isinstance(self.names, list):
            names = list(names)
        whole = self.open_whole and partial(_open_chosen, self.open_whole, chosen)
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        read = partial(_open_chosen, self.open, chosen)
        take = self.take and partial(_take_chosen, self.take, chosen)
        return replace(self, names=names, open=read, open_whole=whole, labels=labels, take=take)


class Chosen(Sequence[str]):
    """Names of these numbers, in this order; none is kept.

    >>> list(Chosen("abc", np.array([2, 0])))
    ['c', 'a']
    """

    def __init__(self, names: Sequence[str], numbers: np.ndarray):
        self._names = names
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Chosen": ...
    def __getitem__(self, i: int | slice) -> "str | Chosen":
        if isinstance(i, slice):
            return Chosen(self._names, self._numbers[i])
        return self._names[int(self._numbers[i])]


def digest(value: Any) -> str:
    """Of a plain value.

    >>> digest(["a", 1]) == digest(("a", 1)), digest(["a", 1]) == digest(["a", 2])
    (True, False)
    """
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _open_chosen(open_item: Callable[[int], Any], chosen: np.ndarray, i: int) -> Any:
    return open_item(int(chosen[i]))


def _take_chosen(
    take: Callable[[np.ndarray], np.ndarray], chosen: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    return take(chosen[numbers])


def cut_splits(
    indexes: Mapping[str, FileIndex],
    shares: Mapping[str, float],
    seed: int,
    wanted: Sequence[str] = SPLITS,
) -> dict[str, FileIndex]:
    """All splits, disjoint. What the source lacks is cut from its training items.

    Args:
        indexes: the splits that the source has
        shares: split → share of the training items that it gets where the source lacks it; with 0
            it is the training items themselves
        seed: of the cut
        wanted: splits that must exist

    Raises InputError where a wanted split cannot be had.
    """
    train = indexes.get("train")
    if train is None:
        return _without_train(indexes, wanted)
    same = [name for name in shares if name not in indexes and not shares[name]]
    missing = [name for name in shares if name not in indexes and shares[name]]
    counts = {name: max(1, round(shares[name] * len(train))) for name in missing}
    if sum(counts.values()) >= len(train):  # both were rounded up
        counts = {name: max(1, int(shares[name] * len(train))) for name in missing}
    if len(train) <= len(missing):
        raise InputError(
            f"{len(train)} items are too few to cut {' and '.join(missing)} from; "
            f"at least {len(missing) + 1} are needed"
        )
    splits = dict(indexes)
    order = np.random.default_rng(seed).permutation(len(train))
    start = 0
    for name, count in counts.items():
        splits[name] = train.subset(np.sort(order[start : start + count]))
        start += count
    if missing:
        splits["train"] = train.subset(np.sort(order[start:]))
    splits.update(dict.fromkeys(same, splits["train"]))
    return splits


def _without_train(indexes: Mapping[str, FileIndex], wanted: Sequence[str]) -> dict[str, FileIndex]:
    absent = [name for name in wanted if name not in indexes]
    if absent:
        known = ", ".join(indexes) or "of unknown names"
        raise InputError(
            f"the data has splits {known} but no {absent[0]} split, "
            "and no train split to cut it from"
        )
    return dict(indexes)
