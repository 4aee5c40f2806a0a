"""Pictures of any mode, depth and orientation become pixels; resized, cropped and mirrored."""

import numpy as np
import pytest
import torch
from data_files import TRAIN, folder, noise, opened, solid, train_split, write
from PIL import Image

from hqvae.data import ShuffledBatches, sequential_batches, training_batches
from hqvae.errors import InputError


def one(path, channels=3, **config):
    """The single image of a folder with nothing else in it, as pixels [C, 8, 8]."""
    images = train_split(path.parent, channels, **{"size": 8, **config})
    return next(sequential_batches(images, 1))[0]


def palette(transparent):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 255, 255, 0, 0])
    return picture, {"transparency": 1} if transparent else {}


PICTURES = {
    "grey": (Image.new("L", (8, 8), 77), {}, "png", (77, 77, 77)),
    "one bit": (Image.new("1", (8, 8), 1), {}, "png", (255, 255, 255)),
    "colour": (Image.new("RGB", (8, 8), (1, 2, 3)), {}, "png", (1, 2, 3)),
    "palette": (*palette(False), "png", (255, 0, 0)),
    "transparent palette": (*palette(True), "png", (255, 255, 255)),
    "transparent": (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), {}, "png", (255, 255, 255)),
    "half transparent": (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), {}, "png", (204, 204, 204)),
    "opaque": (Image.new("RGBA", (8, 8), (9, 8, 7, 255)), {}, "png", (9, 8, 7)),
    "transparent grey": (Image.new("LA", (8, 8), (0, 0)), {}, "png", (255, 255, 255)),
    "print": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, "tif", (255, 0, 0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_modes_become_colours(name, tmp_path):
    picture, options, suffix, expected = PICTURES[name]
    picture.save(tmp_path / f"x.{suffix}", **options)
    assert one(tmp_path / f"x.{suffix}").tolist() == [[[value] * 8] * 8 for value in expected]


@pytest.mark.parametrize(
    ("colour", "grey"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((9, 9, 9), 9)]
)
def test_colours_become_grey_by_their_luminance(colour, grey, tmp_path):
    Image.new("RGB", (8, 8), colour).save(tmp_path / "x.png")
    assert one(tmp_path / "x.png", channels=1).tolist() == [[[grey] * 8] * 8]


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("values", [(0, 65535), (8192, 8192), (0, 65535, 8192, 257)], ids=str)
def test_sixteen_bits_are_scaled_by_their_range(values, order, tmp_path):
    """Not by an image's own maximum: a dark image stays dark beside a bright one."""
    repeats = 8 // len(values)
    row = np.repeat(np.array(values, f"{order}u2"), repeats)
    mode = "I;16" if order == "<" else "I;16B"
    Image.frombytes(mode, (8, 8), np.tile(row, (8, 1)).tobytes()).save(tmp_path / "x.tif")
    eight_bits = {0: 0, 257: 1, 8192: 32, 65535: 255}
    expected = np.repeat([eight_bits[value] for value in values], repeats)
    assert one(tmp_path / "x.tif")[0, 0].tolist() == expected.tolist()


TURN = Image.Transpose
TURNS = {
    1: None,
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


@pytest.mark.parametrize("cache_mb", [0, 16])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_cameras_orientation_is_honoured(orientation, cache_mb, tmp_path):
    upright = Image.fromarray(noise(8, 8))
    stored = upright if TURNS[orientation] is None else upright.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    pixels = one(tmp_path / "x.png", cache_mb=cache_mb)
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(upright))


def test_the_middle_is_cut_out_of_a_longer_side(tmp_path):
    wide = np.tile((np.arange(16, dtype=np.uint8) * 10)[None, :, None], (8, 1, 3))
    write(tmp_path / "wide" / "x.png", wide)
    write(tmp_path / "tall" / "x.png", wide.transpose(1, 0, 2))
    middle = list(range(40, 120, 10))
    assert one(tmp_path / "wide" / "x.png")[0].tolist() == [middle] * 8
    assert one(tmp_path / "tall" / "x.png")[0].T.tolist() == [middle] * 8


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (64, 40), (9, 300)], ids=str)
@pytest.mark.parametrize("crop", ["center", "random"])
def test_larger_images_are_shrunk_to_the_size(shape, crop, tmp_path):
    write(tmp_path / "x.png", np.full((*shape, 3), 123, np.uint8))
    assert one(tmp_path / "x.png", crop=crop).tolist() == [[[123] * 8] * 8] * 3


@pytest.mark.parametrize(("draw", "first"), [(0.0, 0), (0.5, 4), (0.9999, 8), (None, 4)])
@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_random_crop_lies_where_the_noise_says(draw, first, cache_mb, tmp_path):
    write(tmp_path / "x.png", np.tile((np.arange(16, dtype=np.uint8))[None, :, None], (8, 1, 3)))
    images = train_split(tmp_path, size=8, crop="random", cache_mb=cache_mb)
    augment_noise = None if draw is None else np.array([0.9, draw])
    assert images.load_raw(0, augment_noise)[0, 0].tolist() == list(range(first, first + 8))


@pytest.mark.parametrize("cache_mb", [0, 16])
@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_noise_mirrors(flip, cache_mb, tmp_path):
    write(tmp_path / "x.png", noise(8, 8))
    images = train_split(tmp_path, size=8, flip=flip, cache_mb=cache_mb)
    plain = torch.from_numpy(images.load_raw(0))
    batch = images.training_batch(np.array([0, 0]), np.array([[0.49, 0.0], [0.5, 0.0]]))
    assert torch.equal(batch[0], plain.flip(-1) if flip else plain)
    assert torch.equal(batch[1], plain)


@pytest.mark.parametrize(
    ("shapes", "size"),
    [([(8, 8)], 8), ([(8, 12)], 64), ([(8, 8), (9, 9)], 64), ([(300, 300)], 64)],
    ids=str,
)
def test_the_size_is_the_images_own_where_they_agree(shapes, size, tmp_path):
    for i in range(12):
        write(tmp_path / "d" / f"{i}.png", noise(*shapes[i % len(shapes)]))
    if size > max(map(max, shapes)):
        with pytest.raises(InputError, match=f"smaller than data.size={size}"):
            opened(tmp_path / "d")
    else:
        assert opened(tmp_path / "d")[0].size == size


def test_images_too_small_are_refused_before_training_where_they_are_kept(tmp_path):
    folder(tmp_path / "d", TRAIN)
    write(tmp_path / "d" / "small.png", solid(1, 7))
    write(tmp_path / "d" / "tall.png", noise(9, 6))
    message = r"2 of 14 images .* smallest tall\.png with 6×9; .* lower data\.size to 6 "
    with pytest.raises(InputError, match=message):
        train_split(tmp_path / "d", size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_too_small_that_is_not_kept_is_refused_when_it_is_read(workers, tmp_path):
    """In one sentence, also from a worker; exact reading takes it as it is."""
    folder(tmp_path / "d", TRAIN[:3])
    write(tmp_path / "d" / "small.png", solid(1, 7))
    images = train_split(tmp_path / "d", size=8, cache_mb=0, workers=workers)
    message = r"^small\.png with 7×7 pixels is smaller than data\.size=8; .* to 7 .*size=7\)$"
    batches = training_batches(images, ShuffledBatches(4, 4, 0), 0, 1, [slice(0, 4)])
    with pytest.raises(InputError, match=message):
        list(batches)
    with pytest.raises(InputError, match=message):
        list(sequential_batches(images, 4))
    small = list(images.keys).index("small.png")
    assert images.read(small)[1].shape == (3, 7, 7) and not images.left_out()
