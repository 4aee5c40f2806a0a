"""Any picture → 8-bit pixels [C, H, W], by a rule for every mode of Pillow.

    1, L, P, RGB, RGBX      as they are; 1 bit becomes 0 and 255
    LA, La, PA, RGBA, RGBa  over white, and so is a colour key (PNG's tRNS, GIF, palettes)
    CMYK, YCbCr, HSV        by Pillow's conversion, without a colour profile
    I;16 and its kin        0 … 2^bits − 1, by `bits`, else by the file: 12 or 16 bits
    I from PNG and PGM      the same, of 16 bits
    I of other files        0 … 2^bits − 1 where `bits` is given: 32 bits state no range
    F                       0 … 2^bits − 1 where `bits` is given; else 0 … 1; or −1 … 1 where some
                            are negative; or whole numbers 0 … 255
    LAB and others          not read

Two kinds have a rule of their own. PGM and JPEG 2000 state their range, and Pillow has used it:
`bits` changes nothing. Of colours with 16 bits Pillow reads the upper 8: `bits` below 16 is
refused. Of several pictures in a file the first is read.

What no rule covers raises ValueError: values outside of a rule's range, and values that are not
finite.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

_SHALLOW = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa"}
_SCALED_BY_PILLOW = {"PPM", "JPEG2000"}  # formats that state their range: it becomes 16 bits


def to_mode(image: Image.Image, mode: Literal["L", "RGB"], bits: int | None = None) -> Image.Image:
    """Oriented as the camera says, in 8 bits, over white where transparent; at its own size.

    Args:
        image: as it was opened, so that its file still says what it holds
        mode: grey or colour
        bits: that the values of images deeper than 8 use; None goes by the file

    Raises ValueError for an image that no rule covers.

    >>> deep = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    >>> np.asarray(to_mode(deep, "L", bits=12))
    array([[  0, 128, 255]], dtype=uint8)
    """
    raw_mode = _raw_mode(image)
    stated = stated_bits(image)
    key = _colour_key(image, raw_mode)
    fixed = image.format in _SCALED_BY_PILLOW or stated == 12
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        pixels = _scaled(values, *_range_of(values, stated, None if fixed else bits))
        if key is not None:
            pixels[values == key] = 255
        return Image.fromarray(pixels).convert(mode)
    if image.mode not in _SHALLOW:
        raise ValueError(f"pixels of mode {image.mode} are not read; save it as RGB")
    if bits is not None and bits < 16 and ";16" in raw_mode:
        raise ValueError(
            f"of its 16-bit colours only the upper 8 bits are read, and data.bits={bits}; "
            "save it with 8 bits"
        )
    return _over_white(image, key).convert(mode)


def stated_bits(image: Image.Image) -> int | None:
    """Bits of an image's integers, as its mode and its file say; None where they say nothing.

    >>> stated_bits(Image.new("I;16", (1, 1))), stated_bits(Image.new("I", (1, 1)))
    (16, None)
    """
    if image.mode.startswith("I;16"):
        return 12 if _raw_mode(image) == "I;12" else 16
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000") else None


def looks_darker(image: Image.Image) -> bool:
    """Whether an image of 16 bits uses at most 12, so that it may be meant to be brighter."""
    if stated_bits(image) != 16 or image.format in _SCALED_BY_PILLOW:
        return False
    return bool(np.asarray(image).max() < 4096)


def _raw_mode(image: Image.Image) -> str:
    """How samples lie in the file, `RGB;16B`; empty once they are loaded, or of no file."""
    tiles = getattr(image, "tile", None) or [(None, None, None, "")]
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _colour_key(image: Image.Image, raw_mode: str) -> Any:
    """The colour that is transparent, in the image's own values; None where there is none.

    Pillow gives it as it stands in the file, and scales the image's values meanwhile.
    """
    key = image.info.get("transparency")
    if isinstance(key, tuple) and ";16" in raw_mode:
        return tuple(part >> 8 for part in key)
    if isinstance(key, int) and image.mode == "L" and raw_mode in ("L;2", "L;4"):
        top = 3 if raw_mode == "L;2" else 15
        return key * 255 // top if key <= top else key
    return key


def _over_white(image: Image.Image, key: Any) -> Image.Image:
    if key is not None:
        image.info["transparency"] = key
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _range_of(values: np.ndarray, stated: int | None, bits: int | None) -> tuple[float, float]:
    """(what becomes 0, what becomes 255). Raises ValueError where there is no rule."""
    odd = int(values.size - np.isfinite(values).sum())
    if odd:
        raise ValueError(f"{odd} of its {values.size} values are not finite; replace them")
    least = float(values.min())
    most = float(values.max())
    floats = values.dtype.kind == "f"
    if bits is None and floats and least >= -1 and most <= 1:
        return (-1.0 if least < 0 else 0.0), 1.0
    used = bits or stated
    if used is None and floats and least >= 0 and most <= 255 and (values == values.round()).all():
        used = 8
    kind = "floats" if floats else "integers"
    wish = "expected 0…1 or −1…1" if floats else "expected 0…255 or 0…65535"
    if used is None:
        raise ValueError(
            f"its {kind} go from {least:.10g} to {most:.10g}, of no stated range; {wish}, "
            "or data.bits, which says how many bits they use"
        )
    top = 2.0**used - 1
    if least < 0 or most > top:
        raise ValueError(
            f"its {kind} go from {least:.10g} to {most:.10g}; expected 0…{top:.0f} for {used} bits"
        )
    return 0.0, top


def _scaled(values: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "H W"]:
    """`low` … `high` brought to 0 … 255, so that a dark image stays dark beside a bright one."""
    return ((values.astype(np.float64) - low) * (255 / (high - low))).round().astype(np.uint8)


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
    array = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return array if array.flags.writeable else array.copy()  # torch warns of what it cannot write


def central_crop(pixels: UInt8[np.ndarray, "C H W"], size: int) -> UInt8[np.ndarray, "C S S"]:
    """The square in the middle, rounded down."""
    top, left = [(side - size) // 2 for side in pixels.shape[1:]]
    return pixels[:, top : top + size, left : left + size]


def square(image: Image.Image, size: int | None) -> UInt8[np.ndarray, "C H W"]:
    """Resized and cropped to `size`; at its own size where that is None.

    Raises ValueError for a smaller image: to enlarge it would invent detail.
    """
    if size is None:
        return to_array(image)
    if min(image.size) < size:
        raise ValueError(
            f"it has {image.width}×{image.height} pixels, and size={size} is expected; "
            "whole=True takes it at its own size"
        )
    return np.ascontiguousarray(central_crop(to_array(resize_shorter_side(image, size)), size))


def to_pictures(pixels: UInt8[np.ndarray, "B C H W"]) -> list[Image.Image]:
    """RGB, or L where there is one channel."""
    arrays = np.moveaxis(pixels, 1, -1)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]
