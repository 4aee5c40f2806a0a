"""The built-in photographs: those in the wheels of scikit-image and Matplotlib, as crops."""

from matplotlib.cbook import get_sample_data
from PIL import Image

from hqvae.errors import InputError

from .index import FileIndex

PHOTOS = {
    "train": (
        "stereo_motorcycle",
        "immunohistochemistry",
        "retina",
        "hubble_deep_field",
        "brick",
        "grass",
        "gravel",
        "grace_hopper",
        "rocket",
    ),
    "validation": ("camera", "coffee"),
    "test": ("astronaut", "chelsea"),
}
"""Each stands whole in one split, so that a test crop never shows a trained photograph.

Validation and test are about as hard: one photograph with much detail, and one with little.
"""

_OF_MATPLOTLIB = {"grace_hopper": "grace_hopper.jpg"}
_TRAIN_SCALES = (1, 2)


def index_photos(size: int) -> dict[str, FileIndex]:
    """Square crops: overlapping by half and at two scales for training, else side by side."""
    indexes = {}
    for split, titles in PHOTOS.items():
        training = split == "train"
        step = max(1, size // 2) if training else size
        names: list[str] = []
        crops: list[Image.Image] = []
        photos: list[Image.Image] = []
        for title in titles:
            photo = _load(title)
            for scale in _TRAIN_SCALES if training else (1,):
                for left, top, crop in _crops(photo, scale, size, step):
                    names.append(f"{title}/{scale} at {left},{top}")
                    crops.append(crop)
                    photos.append(photo)
        if not crops:
            raise InputError(
                f"data.size={size} is larger than the built-in photographs; at most 512"
            )
        indexes[split] = FileIndex(names, crops.__getitem__, photos.__getitem__)
    return indexes


def _load(title: str) -> Image.Image:
    try:
        import skimage.data
    except ImportError as error:
        raise InputError(
            "data 'photos' needs scikit-image, which carries the photographs: "
            "pip install 'hqvae[demo]'"
        ) from error
    if title in _OF_MATPLOTLIB:
        file = get_sample_data(_OF_MATPLOTLIB[title], asfileobj=False)
        return Image.open(str(file)).convert("RGB")
    pixels = getattr(skimage.data, title)()
    # A stereo pair comes as (left, right, disparity).
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def _crops(
    photo: Image.Image, scale: int, size: int, step: int
) -> list[tuple[int, int, Image.Image]]:
    """(left, top, crop) of all crops of a photograph that is `scale` times smaller."""
    small = photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.LANCZOS)
    corners = [
        (left, top)
        for top in range(0, small.height - size + 1, step)
        for left in range(0, small.width - size + 1, step)
    ]
    return [(left, top, small.crop((left, top, left + size, top + size))) for left, top in corners]
