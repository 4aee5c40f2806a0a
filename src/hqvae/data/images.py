"""Images: any file → pixels [C, H, W]; oriented, over white, resized and cropped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from hqvae.config_class import config_class
from hqvae.metrics import SSIM, Distortion, Metric, Perceptual

from .dataset import Dataset
from .modality import Modality, SignalUnit
from .pixels import square, to_mode, to_pictures
from .scan import Progress
from .sources import FileIndex, SourceConfig
from .stored import to_pixels, to_signal
from .survey import own_size, remarks

PIXEL_UNIT = SignalUnit(scale=127.5, name="0–255", step=1 / 127.5)
# Of those that Pillow knows, pictures that it reads by itself; no icons, fonts, films or plots.
_FORMATS = {
    *("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF", "TIFF", "PPM"),
    *("BMP", "DIB", "TGA", "PCX", "SGI", "SUN", "QOI", "DDS", "PSD"),
}


@config_class
class ImageConfig(SourceConfig):
    """Images, and how they are prepared.

    >>> ImageConfig(source="pictures", size=32, flip=True).modality.name
    'image'
    """

    kind: Literal["images"] = "images"
    """Pictures."""
    size: int | None = Field(default=None, ge=2)
    """Side of the square images, in pixels; None takes the images' own if they agree, else 64."""
    crop: Literal["center", "random"] = "center"
    """Of the longer side, once the shorter is resized: the middle, or anywhere in training."""
    flip: bool = False
    """Mirror half of the training images."""
    bits: int | None = Field(default=None, ge=8, le=32)
    """Bits that deeper values use: 12 of a camera's 16-bit files. None goes by each file."""

    @property
    def modality(self) -> "ImageModality":
        return IMAGE

    @property
    def photo_size(self) -> int:
        return self.size or super().photo_size


class ImageModality(Modality[ImageConfig]):
    """Pictures of 8 bits, as Pillow reads them."""

    name = "image"
    noun = "image"
    example = "image"
    suffixes = frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS
    )
    readers = ("pillow",)
    saved_suffix = ".png"
    hub_feature = "Image"
    channels: ClassVar[Mapping[int, str] | None] = {1: "grey", 3: "colour"}
    figure_columns = 10
    photographs = True
    arrays = True
    evaluation_options = frozenset({"size"})

    def open(self, file: Path | BytesIO) -> Image.Image:
        try:
            return Image.open(file)
        except UnidentifiedImageError:  # whose message holds an address, or the whole path
            raise ValueError("cannot identify image file") from None

    def from_memory(self, value: Any, config: ImageConfig) -> Image.Image:
        """A picture of Pillow, or a uint8 array [H, W] or [H, W, C]."""
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            if value.ndim == 3 and value.shape[2] == 1:
                value = value[..., 0]
            if value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4)):
                return Image.fromarray(value)
        raise ValueError("a picture of Pillow or a uint8 array [H, W, C]")

    def shape(self, config: ImageConfig, channels: int) -> tuple[int, ...] | None:
        return None if config.size is None else (channels, config.size, config.size)

    def axes(self, config: ImageConfig) -> int:
        return 2

    def unit(self, config: ImageConfig) -> SignalUnit:
        return PIXEL_UNIT

    def metrics(
        self, config: ImageConfig, device: torch.device | str = "cpu", thorough: bool = False
    ) -> list[Metric]:
        """RMSE, PSNR, SSIM; LPIPS and rFID where the weights of their networks are there."""
        metrics: list[Metric] = [Distortion(PIXEL_UNIT.scale), SSIM()]
        return [*metrics, Perceptual.from_cache(device)] if thorough else metrics

    def prepare(
        self, opened: Image.Image, config: ImageConfig, channels: int, whole: bool = False
    ) -> Float[Tensor, "C H W"]:
        """Resized and cropped to `config.size`, where there is one. Raises ValueError below it."""
        image = in_mode(opened, channels, config)
        raw = square(image, None if whole else config.size)
        return to_signal(torch.from_numpy(raw)[None])[0]

    def restore(self, signal: Float[Tensor, "B C H W"], config: ImageConfig) -> list[Image.Image]:
        """Pictures of Pillow: RGB, or L where there is one channel."""
        return to_pictures(to_pixels(signal).numpy())

    def save(
        self,
        item: Image.Image,
        path: Path,
        config: ImageConfig,
        size: tuple[int, ...] | None = None,
    ) -> None:
        item.save(path, format="PNG")

    def examples(self, config: ImageConfig) -> str:
        return "images"

    def resolve(
        self, config: ImageConfig, indexes: Mapping[str, FileIndex], wanted: Sequence[str]
    ) -> ImageConfig:
        """The images' own size, where the config names none."""
        if config.size is not None:
            return config
        return replace(config, size=own_size(indexes.get("train") or indexes[wanted[0]]))

    def dataset(
        self, index: FileIndex, config: ImageConfig, channels: int, progress: Progress | None = None
    ) -> Dataset:
        from .image_dataset import ImageDataset  # which imports this file

        return ImageDataset(index, config, channels, progress)

    def remarks(self, dataset: Dataset, training: bool) -> list[str]:
        """On colour that does not fit the model, and on depth that is not used."""
        from .image_dataset import ImageDataset

        assert isinstance(dataset, ImageDataset)
        bits = dataset.config.bits
        return remarks(dataset.index, dataset.channels, bits, dataset.kept, training)


IMAGE = ImageModality()


def in_mode(image: Image.Image, channels: int, config: ImageConfig) -> Image.Image:
    """Grey for a model of one channel, else colour; over white, of 8 bits."""
    return to_mode(image, "RGB" if channels == 3 else "L", config.bits)
