"""What a few images of a split tell before all are read: their size, colour and depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .pixels import looks_darker, to_array, to_mode
from .sources import FileIndex

_LOOKED_AT = 16  # images
_DEFAULT_SIZE = 64  # side of images of differing sizes when none is asked for
_LARGEST_OWN_SIZE = 256  # images that agree on a larger size are resized to the default, too


def own_size(index: FileIndex) -> int:
    """The side of the first images, where they are squares that agree and are not large."""
    sizes: set[Any] = set()
    for i in range(min(_LOOKED_AT, len(index))):
        try:
            sizes.add(index.open(i).size)
        except Exception:  # a broken image, which is named when it is read
            continue
    if len(sizes) != 1:
        return _DEFAULT_SIZE
    width, height = sizes.pop()
    return width if width == height <= _LARGEST_OWN_SIZE else _DEFAULT_SIZE


def remarks(
    index: FileIndex,
    channels: int,
    bits: int | None,
    kept: Sequence[np.ndarray] | None,
    training: bool,
) -> list[str]:
    """What a person should know before a model of so many channels sees these images.

    Args:
        index: the split
        channels: of the model
        bits: as the config has it
        kept: all images as the model sees them, where they are kept
        training: whether the model is still to be trained, and may be another
    """
    opened = []
    colours = []
    for i in np.linspace(0, len(index) - 1, min(_LOOKED_AT, len(index))).round().astype(int):
        try:
            colours.append(to_array(to_mode(index.open(int(i)), "RGB", bits)))
            opened.append(index.open(int(i)))
        except Exception:  # a broken image, which is named when it is read
            continue
    if channels == 1:
        found = [_colour_dropped(colours), _depth_unused(opened, bits)]
    else:
        found = [_all_grey(colours, kept) if training else None, _depth_unused(opened, bits)]
    return [sentence for sentence in found if sentence]


def _is_grey(colours: np.ndarray) -> bool:
    """Whether the three channels of [3, H, W] are the same."""
    return bool((colours[0] == colours[1]).all() and (colours[1] == colours[2]).all())


def _colour_dropped(looked_at: Sequence[np.ndarray]) -> str | None:
    coloured = sum(not _is_grey(colours) for colours in looked_at)
    if not coloured:
        return None
    return (
        f"{coloured} of {len(looked_at)} images looked at have colour, which a model of one "
        "channel does not see; model.channels=3 would"
    )


def _all_grey(looked_at: Sequence[np.ndarray], kept: Sequence[np.ndarray] | None) -> str | None:
    if not looked_at or not all(map(_is_grey, looked_at)):
        return None
    if kept is not None and not all(map(_is_grey, kept)):
        return None
    which = f"{len(looked_at)} images looked at" if kept is None else f"{len(kept):,} images"
    return f"all {which} are grey; model.channels=1 would code a third of the numbers"


def _depth_unused(opened: Sequence[Image.Image], bits: int | None) -> str | None:
    if bits is not None or not opened or not all(map(looks_darker, opened)):
        return None
    return (
        f"all {len(opened)} images looked at have 16 bits and no value above 4095, so they are "
        "dark; if 12 bits are their range, set data.bits=12, else data.bits=16"
    )
