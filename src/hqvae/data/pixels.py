"""Any picture → 8-bit pixels [C, H, W]."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


def to_mode(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Oriented as the camera says, in 8 bits, over white where transparent; at its own size."""
    image = to_eight_bits(ImageOps.exif_transpose(image))
    transparent = image.mode in ("RGBA", "LA", "PA")
    if transparent or (image.mode == "P" and "transparency" in image.info):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Deeper images scaled to 0 … 255, which Pillow would clip.

    Integers by the range of 16 bits, so that a dark image stays dark beside a bright one; floats,
    which have no range, by the image's own maximum.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = max(values.max(), 1) if image.mode == "F" else 65535
    return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """The shorter side brought to `size`, the longer one in proportion."""
    shorter = min(image.size)
    if shorter == size:
        return image
    scale = size / shorter
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def to_array(image: Image.Image) -> UInt8[np.ndarray, "C H W"]:
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
