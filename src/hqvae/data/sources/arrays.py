"""NumPy archives of pictures: the arrays of an `.npz` and their splits."""

import logging
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hqvae.errors import InputError
from hqvae.ranks import warn

from .index import SPLIT_NAMES, FileIndex, Label, digest
from .labels import labels_of

log = logging.getLogger("hqvae")
_CHANNELS = (1, 3, 4)
_EXPECTED = "expected uint8 [N, H, W], or with 1, 3 or 4 channels [N, H, W, C] or [N, C, H, W]"
# What NumPy and its archives raise for damaged files.
DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def index_npz(path: Path) -> dict[str, FileIndex]:
    """The splits of an `.npz` of uint8 pictures `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`.

    Labels of `x_train` are `y_train`, those of `train_images` `train_labels`, and those of a lone
    array `labels` or `y`: integers `[N]` or `[N, 1]`. Arrays of other kinds are left out: of less
    than three axes without a word, what may be pictures with one.

    Raises InputError where no array fits, or two are of the same split.
    """
    headers, images = _read_npz(path)
    left_out = {name: header for name, header in headers.items() if name not in images}
    if not images:
        listed = ", ".join(f"{name} {described(*header)}" for name, header in headers.items())
        raise InputError(
            f"{path.name} has no pictures: it holds {listed or 'nothing'}; {_EXPECTED}"
        )
    indexes: dict[str, FileIndex] = {}
    for name, (array, labels, content) in images.items():
        split = SPLIT_NAMES.get(name.lower().removeprefix("x_").removesuffix("_images"), "train")
        if split in indexes:
            raise InputError(
                f"{path.name} has several uint8 image arrays for {split} ({', '.join(images)}); "
                "keep one, or name them x_train, x_test"
            )
        rows = [f"{name}[{i}]" for i in range(len(array))]
        indexes[split] = FileIndex(rows, partial(_open_row, array), labels=labels, content=content)
    for name, (dtype, shape) in left_out.items():
        if len(shape) > 2:
            what = described(dtype, shape)
            log.warning("in %s the array %s is left out: it is %s; %s", path, name, what, _EXPECTED)
    return indexes


Header = tuple[np.dtype, tuple[int, ...]]


class _Pictures(NamedTuple):
    """An array of pictures, read."""

    array: np.ndarray
    labels: list[Label] | None
    content: str


def described(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """An array in words: its dtype and shape.

    >>> described(np.dtype("uint8"), (12, 32, 32, 2))
    'uint8 [12, 32, 32, 2]'
    """
    return f"{dtype} {list(shape)}"


def _read_npz(path: Path) -> tuple[dict[str, Header], dict[str, _Pictures]]:
    """(dtype and shape of all arrays, those that can be pictures)."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds a single array; write it with np.savez")
        with archive:
            members = {name: member_of(archive, name) for name in archive.files}
            headers = {name: read_header(archive, member) for name, member in members.items()}
            fitting = [name for name, header in headers.items() if _fits(*header)]
            images = {
                name: _read_pictures(archive, name, label_array(name, headers, len(fitting) == 1))
                for name in fitting
            }
    except DAMAGED as error:
        # NumPy's advice to load it unsafely must not be passed on.
        why = "it is no such file" if "pickle" in str(error) else error
        raise InputError(f"{path} cannot be read as .npz: {why}") from error
    return headers, images


def _read_pictures(archive: Any, name: str, label_name: str | None) -> _Pictures:
    """An array with its labels; sizes and checksums of both stand in the archive's directory."""
    names = [name] if label_name is None else [name, label_name]
    members = [archive.zip.getinfo(member_of(archive, one)) for one in names]
    return _Pictures(
        archive[name],
        None if label_name is None else labels_of(archive[label_name].reshape(-1).tolist()),
        digest([(member.filename, member.file_size, member.CRC) for member in members]),
    )


def member_of(archive: Any, name: str) -> str:
    member = f"{name}.npy"
    return member if member in archive.zip.namelist() else name


def label_array(pictures: str, headers: Mapping[str, Header], alone: bool) -> str | None:
    """The name of the array with the labels of an array of pictures, which may be the only one."""
    name = pictures.lower()
    called = ["y_" + name.removeprefix("x_")] if name.startswith("x_") else []
    called += [name.removesuffix("_images") + "_labels"] if name.endswith("_images") else []
    called += ["labels", "y"] if alone else []
    count = headers[pictures][1][0]
    by_name = {other.lower(): other for other in headers}
    for other in (by_name[one] for one in called if one in by_name):
        dtype, shape = headers[other]
        if shape in ((count,), (count, 1)):
            if dtype.kind in "iubU":
                return other
            warn("array %r holds %s, which are no labels", other, dtype)
    return None


def read_header(archive: Any, member: str) -> Header:
    """Of an array that is not read: it may be large, or objects, which would be code."""
    with archive.zip.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read.get(version, read[2, 0])(file)
    return dtype, shape


def _fits(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    if dtype != np.uint8 or len(shape) not in (3, 4):
        return False
    return len(shape) == 3 or shape[3] in _CHANNELS or shape[1] in _CHANNELS


def _open_row(array: np.ndarray, i: int) -> Image.Image:
    pixels = array[i]
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(pixels)
