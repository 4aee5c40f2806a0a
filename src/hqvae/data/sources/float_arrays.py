"""Float arrays in `.npy`, `.npz` and `.pt`: the first axis counts items, the last one channels."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hqvae.errors import InputError, nearest_name, summary_of

from .arrays import DAMAGED, described, label_array, member_of, read_header
from .ids import COLUMNS, Ids, RowNumbers, ids_beside, ids_of_array
from .index import SPLIT_NAMES, FileIndex, Label, digest
from .labels import labels_asked_for

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
_EXPECTED = "expected floats [N, D], [N, T, C] or [N, H, W, C]"


class Arrays(NamedTuple):
    """The arrays of a file by name, and how each is had."""

    headers: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    read: Callable[[str], Any]
    content: Callable[[str], str | None]


def index_float_arrays(
    path: Path, column: str | None, ids: str | None, labels: str | None
) -> dict[str, FileIndex]:
    """The splits of a file of arrays: `x_train` and `x_test`, or one array that is all `train`.

    Args:
        path: of the file
        column: the array of items, where there are several
        ids, labels: arrays of the file, one value for each item; or a text file of ids

    Raises InputError for a file that is damaged, or holds no such arrays.
    """
    arrays = _READERS[path.suffix](path)
    chosen = _chosen(path, arrays, column)
    indexes: dict[str, FileIndex] = {}
    for name in chosen:
        split = _split(name) if column is None else "train"
        if split in indexes:
            raise InputError(
                f"{path.name} holds several arrays of floats ({', '.join(chosen)}); "
                "name one with data.column=NAME, or name them x_train, x_test"
            )
        indexes[split] = _index(path, arrays, name, len(chosen) == 1, ids, labels)
    return indexes


def _split(name: str) -> str:
    return SPLIT_NAMES.get(name.lower().removeprefix("x_"), "train")


def _chosen(path: Path, arrays: Arrays, column: str | None) -> list[str]:
    """The arrays of items. Raises InputError where there is none, or where one is of integers."""
    if column is not None and column not in arrays.headers:
        raise InputError(
            f"{path.name} has no array {column!r}; {nearest_name(column, arrays.headers)}"
        )
    names = list(arrays.headers) if column is None else [column]
    floats = [name for name in names if _fits(*arrays.headers[name])]
    if floats:
        return floats
    held = ", ".join(f"{name} {described(*arrays.headers[name])}".strip() for name in names)
    advice = ""
    if any(arrays.headers[name][0].kind in "iub" for name in names):
        advice = "; whole numbers are no measurements: make them floats if they are meant as such"
    raise InputError(f"{path.name} holds {held or 'nothing'}; {_EXPECTED}{advice}")


def _fits(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind == "f" and 2 <= len(shape) <= 4


def _index(
    path: Path, arrays: Arrays, name: str, alone: bool, ids: str | None, labels: str | None
) -> FileIndex:
    array = arrays.read(name)
    count = len(array)
    if not count or 0 in array.shape:
        raise InputError(f"{path.name} holds an empty table: {described(array.dtype, array.shape)}")
    names = _names(path, arrays, name, alone, ids, count)
    return FileIndex(
        names,
        partial(_row, array),
        labels=_labels(path, arrays, name, alone, labels, count),
        content=arrays.content(name),
        take=partial(_rows, array),
        is_numbered=not isinstance(names, Ids),
    )


def _names(
    path: Path, arrays: Arrays, name: str, alone: bool, ids: str | None, count: int
) -> Sequence[str]:
    wanted = COLUMNS if ids is None else (ids,)
    found = [one for one in wanted if one in arrays.headers and alone]
    if found:
        return ids_of_array(arrays.read(found[0]), f"{found[0]!r} of {path.name}", count)
    beside: Ids | None = ids_beside(path, ids, count) if alone else None
    return beside or RowNumbers(count, "{}" if alone else f"{name}[{{}}]")


def _labels(
    path: Path, arrays: Arrays, name: str, alone: bool, labels: str | None, count: int
) -> list[Label] | None:
    if labels is not None and labels not in arrays.headers:
        raise InputError(
            f"data.labels={labels!r}: {path.name} has no such array; "
            f"{nearest_name(labels, arrays.headers)}"
        )
    chosen = labels or label_array(name, arrays.headers, alone)
    if chosen is None:
        return None
    values = np.asarray(arrays.read(chosen)).reshape(-1)
    if len(values) != count:
        raise InputError(f"{path.name} has {len(values)} labels for {count} rows")
    return labels_asked_for(labels, values.tolist())


def _row(array: np.ndarray, i: int) -> np.ndarray:
    return np.asarray(array[i])


def _rows(array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    first, last = (int(numbers[0]), int(numbers[-1])) if len(numbers) else (0, -1)
    if len(numbers) == last - first + 1 and (np.diff(numbers) == 1).all():
        return np.asarray(array[first : last + 1])  # neighbours are read at once
    return np.asarray(array[numbers])


# ------------------------------------------------------------------------------ formats


def _read_npy(path: Path) -> Arrays:
    """Mapped into memory: what is not looked at takes none."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read as .npy: {_why(error)}") from error
    status = path.stat()
    size = digest([array.dtype.str, list(array.shape), status.st_size, _sampled(array)])
    return Arrays({"": (array.dtype, array.shape)}, lambda _: array, lambda _: size)


def _sampled(array: np.ndarray) -> str:
    """Bytes of some rows over all the array: it has no checksum of its own."""
    rows = np.linspace(0, max(0, len(array) - 1), min(len(array), 64)).astype(int)
    return array[rows].tobytes().hex() if array.ndim else ""


def _read_npz(path: Path) -> Arrays:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds a single array; name it .npy")
        members = {name: member_of(archive, name) for name in archive.files}
        headers = {name: read_header(archive, member) for name, member in members.items()}
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read as .npz: {_why(error)}") from error

    def read(name: str) -> np.ndarray:
        try:
            return archive[name]
        except DAMAGED as error:
            raise InputError(f"{path} cannot be read as .npz: {_why(error)}") from error

    def content(name: str) -> str:
        info = archive.zip.getinfo(members[name])
        return digest([info.filename, info.file_size, info.CRC])

    return Arrays(headers, read, content)


def _read_pt(path: Path) -> Arrays:
    """A tensor, or a dictionary of tensors and lists; no code is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises its own, and whatever unpickling does
        raise InputError(f"{path} cannot be read with weights_only=True: {_why(error)}") from error
    parts = content if isinstance(content, dict) else {"": content}
    held = {
        str(name): part for name, part in parts.items() if isinstance(part, torch.Tensor | list)
    }
    if not held:
        raise InputError(f"{path.name} holds a {type(content).__name__}; {_EXPECTED}")

    def read(name: str) -> Any:
        part = held[name]
        if isinstance(part, torch.Tensor):
            part = part.detach()
            return (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        return part

    def header(part: Any) -> tuple[np.dtype, tuple[int, ...]]:
        if isinstance(part, list):
            return _type_of(part), (len(part),)
        is_float = part.dtype.is_floating_point
        return np.dtype(
            "float32" if is_float else "int64" if not part.is_complex() else "c8"
        ), tuple(part.shape)

    headers = {name: header(part) for name, part in held.items()}
    info = path.stat().st_size
    sums = {name: digest([name, info, *map(str, headers[name])]) for name in held}
    return Arrays(headers, read, sums.get)


def _type_of(values: list[Any]) -> np.dtype[Any]:
    kinds = set(map(type, values))
    return np.dtype({frozenset({str}): "U", frozenset({int}): "int64"}.get(frozenset(kinds), "O"))


def _why(error: Exception) -> str:
    """NumPy's advice to load it unsafely, and torch's, must not be passed on."""
    text = summary_of(error)
    return "it is no such file" if "pickle" in text or "weights_only" in text else text


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt, ".pth": _read_pt}
