"""Images decoded to uint8 [C, H, W]: oriented, resized, cropped, cached in memory where they fit."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.errors import InputError

from .sources import SPLITS, Collection, open_source, split

log = logging.getLogger("hqvae")
_AUTO = 64  # side of images of differing sizes when none is asked for


@config(frozen=True, config=ConfigDict(extra="forbid"))
class DataConfig:
    """Where the images come from and how they are prepared.

    Args:
        source: `photos`, an image folder, Parquet, `.npz`, or a hub data set's name
        size: side of the square images, in pixels; None takes the images' own where they agree, else 64
        crop: of the longer side, after the shorter is resized: the middle, or a random place in training
        flip: mirror half of the training images
        column: image column of a table
        validation, test: share of the training images cut off where the source has no such split
        seed: of that cut
        cache_mb: decoded images are kept in memory up to this; beyond, they are decoded as they are needed
        workers: processes that decode when the images are not kept
    """

    source: str = "photos"
    size: int | None = Field(default=None, ge=2)
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    column: str | None = None
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)
    seed: int = Field(default=0, ge=0)
    cache_mb: int = Field(default=4096, ge=0)
    workers: int = Field(default=4, ge=0)


class TooSmall(Exception):
    """An image whose shorter side is below `data.size`."""

    def __init__(self, name: str, picture: Image.Image):
        super().__init__(f"{name} with {picture.width}×{picture.height}")
        self.side = min(picture.size)


class Images(torch.utils.data.Dataset):
    """One split, decoded: `images[indices, draws]` is a uint8 batch [B, C, size, size]; broken images are left out.

    `draws` [B, 2] uniform numbers decide flip and crop, None takes the image as it is, in the middle.
    """

    def __init__(self, collection: Collection, config: DataConfig, channels: int):
        self.collection, self.config, self.channels = collection, config, channels
        if config.size is None:
            raise ValueError("config.size is not resolved; open the data with open_images")
        self.size = config.size
        fits = len(collection) * channels * config.size**2 * (1.5 if config.crop == "random" else 1) <= config.cache_mb * 2**20
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            checked = list(pool.map(self._try_decode if fits else self._try_header, range(len(collection))))
        self._refuse_small([c for c in checked if isinstance(c, TooSmall)], len(checked))
        broken = [(collection.names[i], str(c)) for i, c in enumerate(checked) if isinstance(c, Exception)]
        if broken:
            shown = "; ".join(f"{name} ({why})" for name, why in broken[:5])
            log.warning("%d of %d images are broken and left out: %s%s", len(broken), len(collection), shown, " …" * (len(broken) > 5))
        self.kept = [i for i, c in enumerate(checked) if not isinstance(c, Exception)]
        if not self.kept:
            raise InputError(f"none of the {len(collection)} images of this split can be read")
        self.cache = self._pack([c for c in checked if isinstance(c, np.ndarray)]) if fits else None

    def _refuse_small(self, small: list["TooSmall"], count: int) -> None:
        """Raises InputError that speaks of all of them: to enlarge pictures would make up what they do not show."""
        if small:
            least = min(small, key=lambda one: one.side)
            raise InputError(
                f"{len(small)} of {count} images are smaller than data.size={self.size}, the smallest {least}; "
                f"take them out, or choose data.size={max(2, least.side)} (for evaluate: --size {max(2, least.side)})"
            )

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray | None]) -> Tensor:
        indices, draws = key
        if isinstance(self.cache, np.ndarray):
            batch = self.cache[indices]
        else:
            pictures = [self.cache[i] if self.cache is not None else self._decode_again(int(i)) for i in indices]
            batch = np.stack([self._crop(p, None if draws is None else draws[j, 1]) for j, p in enumerate(pictures)])
        batch = torch.from_numpy(batch)
        if draws is not None and self.config.flip:
            mirrored = torch.from_numpy(draws[:, 0] < 0.5)
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        return batch

    def _try_decode(self, i: int) -> np.ndarray | Exception:
        try:
            return self._decode(i)
        except Exception as error:  # a broken file may raise anything from PIL's plug-ins
            return error

    def _try_header(self, i: int) -> Exception | None:
        try:
            _check_size(self.collection.read(i), self.collection.names[i], self.size)
        except Exception as error:
            return error
        return None

    def _decode(self, i: int) -> np.ndarray:
        """[C, H, W] uint8 whose shorter side is `size`; square when crops are central."""
        picture = ImageOps.exif_transpose(self.collection.read(i))
        _check_size(picture, self.collection.names[i], self.size)
        if picture.mode.startswith("I") or picture.mode == "F":  # deeper than 8 bits: PIL would clip, not scale
            values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
            top = max(values.max(), 1) if picture.mode == "F" else 65535  # an image's own maximum only where there is no range
            picture = Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA", "P") and (picture.mode != "P" or "transparency" in picture.info):
            rgba = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        picture = picture.convert("RGB" if self.channels == 3 else "L")
        size, (w, h) = self.size, picture.size
        if min(w, h) != size:
            scale = size / min(w, h)
            picture = picture.resize((max(size, round(w * scale)), max(size, round(h * scale))), Image.Resampling.LANCZOS, reducing_gap=3.0)
        array = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(array if self.config.crop == "random" else self._crop(array, None))

    def _decode_again(self, i: int) -> np.ndarray:
        """An image whose header was fine may still break: the next one takes its place, in every process alike."""
        for offset in range(len(self)):
            picture = self._try_decode(self.kept[(i + offset) % len(self)])
            if not isinstance(picture, Exception):
                return picture
            log.warning(
                "%s is broken (%s); the next image takes its place", self.collection.names[self.kept[(i + offset) % len(self)]], picture
            )
        raise InputError("no image of this split can be read any more")

    def _crop(self, picture: np.ndarray, draw: float | None) -> np.ndarray:
        size, share = self.size, 0.5 if draw is None or self.config.crop == "center" else draw
        height, width = picture.shape[1:]
        if draw is None:  # the middle, rounded down
            top, left = (height - size) // 2, (width - size) // 2
        else:
            top, left = int(share * (height - size + 1)), int(share * (width - size + 1))
        return picture[:, top : top + size, left : left + size]

    @staticmethod
    def _pack(pictures: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        same = all(p.shape == pictures[0].shape for p in pictures)
        return np.stack(pictures) if same and pictures[0].shape[1] == pictures[0].shape[2] else pictures


def open_images(config: DataConfig, channels: int, wanted: Sequence[str] = SPLITS) -> tuple[DataConfig, dict[str, Images]]:
    """(the config with its size resolved, the wanted splits). Raises InputError for data that cannot be used."""
    if channels not in (1, 3):
        raise InputError(f"model.channels={channels}: images have 1 channel (grey) or 3 (colour)")
    for name in wanted:
        if name not in SPLITS:
            raise InputError(f"split {name!r} is not one of {', '.join(SPLITS)}")
    collections = split(open_source(config.source, config.column, config.size), config.validation, config.test, config.seed, wanted)
    empty = [name for name in wanted if not len(collections[name])]
    if empty:
        raise InputError(f"data {config.source!r} has no image in its {empty[0]} split")
    if config.size is None:
        config = DataConfig(**{**config.__dict__, "size": _own_size(collections.get("train") or collections[wanted[0]])})
    return config, {name: Images(collections[name], config, channels) for name in wanted}


def _own_size(collection: Collection) -> int:
    sizes = set()
    for i in range(min(16, len(collection))):
        try:
            sizes.add(collection.read(i).size)
        except Exception:  # broken images are counted when the split is decoded
            continue
    square = len(sizes) == 1 and len(set(side := sizes.pop())) == 1
    return side[0] if square and side[0] <= 256 else _AUTO


def _check_size(picture: Image.Image, name: str, size: int) -> None:
    side = min(picture.size)
    if side < size:
        raise TooSmall(name, picture)
