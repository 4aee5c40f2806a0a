"""Images decoded to uint8 [C, H, W]: oriented, resized, cropped, cached in memory where they fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.errors import InputError

from .items import IMAGE, Items, SourceConfig
from .sources import IMAGE_MEDIUM, Collection

_AUTO = 64  # side of images of differing sizes when none is asked for


@config(frozen=True, config=ConfigDict(extra="forbid"))
class DataConfig(SourceConfig):
    """Images, and how they are prepared; the fields of `SourceConfig`, and:

    Args:
        size: side of the square images, in pixels; None takes the images' own where they agree, else 64
        crop: of the longer side, after the shorter is resized: the middle, or a random place in training
        flip: mirror half of the training images
    """

    kind: Literal["images"] = "images"
    size: int | None = Field(default=None, ge=2)
    crop: Literal["center", "random"] = "center"
    flip: bool = False


class TooSmall(Exception):
    """An image whose shorter side is below `data.size`."""

    def __init__(self, name: str, picture: Image.Image):
        super().__init__(f"{name} with {picture.width}×{picture.height}")
        self.side = min(picture.size)


class Images(Items):
    """One split of images: raw batches are uint8 [B, C, size, size]."""

    medium, form = IMAGE_MEDIUM, IMAGE

    def __init__(self, collection: Collection, config: DataConfig, channels: int):
        if config.size is None:
            raise ValueError("config.size is not resolved; open the data with open_data")
        self.size, self.channels, self.shape = config.size, channels, (channels, config.size, config.size)
        needed = len(collection) * channels * config.size**2 * (1.5 if config.crop == "random" else 1)
        super().__init__(collection, config, fits=needed <= config.cache_mb * 2**20)

    def describe(self) -> str:
        return f"{len(self)} images of {self.size}²"

    def refuse(self, checked: Sequence[Any]) -> None:
        """Small pictures, all of them at once: to enlarge them would make up what they do not show."""
        small = [c for c in checked if isinstance(c, TooSmall)]
        if small:
            least = min(small, key=lambda one: one.side)
            raise InputError(
                f"{len(small)} of {len(checked)} images are smaller than data.size={self.size}, the smallest {least}; "
                f"take them out, or choose data.size={max(2, least.side)} (for evaluate: --size {max(2, least.side)})"
            )

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray | None]) -> Tensor:
        indices, draws = key
        if isinstance(self.cache, np.ndarray):
            batch = self.cache[indices]
        else:
            pictures = [self.item(int(i)) for i in indices]
            batch = np.stack([self._crop(p, None if draws is None else draws[j, 1]) for j, p in enumerate(pictures)])
        batch = torch.from_numpy(batch)
        if draws is not None and self.config.flip:
            mirrored = torch.from_numpy(draws[:, 0] < 0.5)
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        return batch

    def check(self, i: int) -> None:
        _check_size(self.collection.read(i), self.collection.names[i], self.size)

    def decode(self, i: int) -> np.ndarray:
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

    def _crop(self, picture: np.ndarray, draw: float | None) -> np.ndarray:
        size, share = self.size, 0.5 if draw is None or self.config.crop == "center" else draw
        height, width = picture.shape[1:]
        if draw is None:  # the middle, rounded down
            top, left = (height - size) // 2, (width - size) // 2
        else:
            top, left = int(share * (height - size + 1)), int(share * (width - size + 1))
        return picture[:, top : top + size, left : left + size]

    def pack(self, decoded: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        same = all(p.shape == decoded[0].shape for p in decoded)
        return np.stack(decoded) if same and decoded[0].shape[1] == decoded[0].shape[2] else decoded


def resolved(config: DataConfig, collections: dict[str, Collection], wanted: Sequence[str]) -> DataConfig:
    """The config with the images' own size, where it names none."""
    if config.size is not None:
        return config
    return replace(config, size=_own_size(collections.get("train") or collections[wanted[0]]))


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
