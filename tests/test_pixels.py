"""Every mode and depth of a picture has a rule, or is left out by name with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from data_files import opened, train_split, write
from PIL import Image

from hqvae.data import BrokenItem, sequential_batches
from hqvae.data.pixels import to_array, to_mode


def saved(picture, kind="PNG", **options):
    """As a file holds it, opened again."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def pixels(picture, mode="L", bits=None):
    """The first row, of 8 bits; triples in colour."""
    array = to_array(to_mode(picture, mode, bits))
    return (array[0, 0] if mode == "L" else array[:, 0].T).tolist()


def row(values, dtype):
    return Image.fromarray(np.array([values], dtype))


def raw_png(depth, colour_type, samples, key):
    """A PNG of one row, as bytes, with a colour key."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    channels = 3 if colour_type == 2 else 1
    width = 8 * len(samples) // (depth * channels)
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": key, b"IDAT": zlib.compress(b"\0" + samples), b"IEND": b""}
    chunks = [chunk(name, data) for name, data in parts.items()]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))


# ------------------------------------------------------------------------------------ transparency


def test_a_colour_key_is_over_white_like_an_alpha_channel():
    colour = Image.new("RGB", (2, 1), (10, 200, 10))
    colour.putpixel((1, 0), (10, 200, 11))
    keyed = saved(colour, transparency=(10, 200, 10))
    assert pixels(keyed, "RGB") == [[255] * 3, [10, 200, 11]]
    assert pixels(saved(row([77, 78], np.uint8), transparency=77)) == [255, 78]
    deep = saved(row([25700, 25701], np.uint16), transparency=25700)
    assert deep.mode == "I;16" and pixels(deep) == [255, 100]
    assert pixels(saved(row([77, 78], np.uint8), "GIF", transparency=77)) == [255, 78]


def test_a_colour_key_counts_in_the_depth_of_its_file():
    """Pillow scales the pixels of shallow and deep files, and not their key."""
    assert pixels(raw_png(1, 0, b"\x40", struct.pack(">H", 1)))[:2] == [0, 255]
    assert pixels(raw_png(2, 0, b"\x90", struct.pack(">H", 1)))[:2] == [170, 255]
    assert pixels(raw_png(4, 0, b"\x56", struct.pack(">H", 5))) == [255, 102]
    samples = struct.pack(">6H", 1000, 2000, 3000, 1000, 2000, 9000)
    keyed = raw_png(16, 2, samples, struct.pack(">3H", 1000, 2000, 3000))
    assert pixels(keyed, "RGB") == [[255] * 3, [3, 7, 35]]


def test_transparency_in_a_palette_itself_is_honoured():
    picture = Image.new("P", (2, 1), 1)
    picture.putpixel((1, 0), 0)
    picture.putpalette([9, 9, 9, 255, 0, 0, 0, 0], "RGBA")
    assert pixels(picture, "RGB") == [[255] * 3, [9] * 3]
    assert pixels(Image.new("La", (1, 1), (0, 0))) == [255]
    assert pixels(Image.new("RGBa", (1, 1), (0, 0, 0, 0)), "RGB") == [[255] * 3]


# ------------------------------------------------------------------------------------------- depth


def test_floats_are_read_by_the_range_that_their_values_show():
    assert pixels(saved(row([0, 0.2, 1], np.float32), "TIFF")) == [0, 51, 255]
    assert pixels(row([0.0, 0.2], np.float32)) == [0, 51]
    assert pixels(row([-1, -0.6, 1], np.float32)) == [0, 51, 255]
    assert pixels(row([-0.2, 0.2], np.float32)) == [102, 153]
    assert pixels(row([0, 51, 255], np.float32)) == [0, 51, 255]
    assert pixels(row([0, 409.5, 4095], np.float32), bits=12) == [0, 26, 255]
    assert pixels(row([0, 1], np.float32), bits=8) == [0, 1]  # a dark one of a set of 0 … 255


def test_twelve_bits_use_all_levels():
    """By the setting in a file of 16 bits, and by itself where the file says so."""
    values = np.arange(0, 4096, 4)
    deep = saved(row(values, np.uint16))
    assert len(set(pixels(deep))) == 17 and len(set(pixels(saved(deep), bits=12))) == 256
    pgm = b"P5 2 1 4095\n" + np.array([4095, 2048], ">u2").tobytes()
    for bits in (None, 12):  # Pillow has used the range already
        assert pixels(Image.open(io.BytesIO(pgm)), bits=bits) == [255, 128]


def test_integers_of_32_bits_need_a_word_on_their_range():
    assert pixels(saved(row([0, 2**31 - 1], np.int32), "TIFF"), bits=31) == [0, 255]
    assert pixels(saved(row([0, 51, 255], np.int32), "TIFF"), bits=8) == [0, 51, 255]


WITHOUT_RULE = {
    "infinite": (row([0, np.inf, np.nan], np.float32), None, "2 of its 3 values are not finite"),
    "wide floats": (row([-3, 1204.5], np.float32), None, r"floats go from -3 to 1204\.5.*−1…1"),
    "bright floats": (row([0, 2.5], np.float32), None, r"from 0 to 2\.5, .*0…1 .* data\.bits"),
    "large int32": (row([0, 2**31 - 1], np.int32), None, "0 to 2147483647, .* 0…255 or 0…65535"),
    "small int32": (row([0, 255], np.int32), None, r"integers go from 0 to 255, .* data\.bits"),
    "negative": (row([-1, 255], np.int32), 16, "from -1 to 255; expected 0…65535 for 16 bits"),
    "above": (row([0, 5000], np.uint16), 12, "from 0 to 5000; expected 0…4095 for 12 bits"),
    "lab": (Image.new("LAB", (1, 1)), None, "mode LAB are not read; save it as RGB"),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_what_no_rule_covers_is_left_out_with_the_reason(name, tmp_path):
    picture, bits, reason = WITHOUT_RULE[name]
    picture.save(tmp_path / "x.tif")
    with pytest.raises(BrokenItem, match=reason) as raised:
        train_split(tmp_path, 3, size=8, bits=bits, cache_mb=0).read(0)
    assert raised.value.key == "x.tif"


def test_colours_of_16_bits_are_refused_where_they_use_fewer():
    """Pillow reads the upper 8 of them, which would be nearly black."""
    samples = struct.pack(">6H", 1000, 2000, 3000, 4095, 0, 0)
    key = struct.pack(">3H", 1, 1, 1)
    assert pixels(raw_png(16, 2, samples, key), "RGB", bits=16) == [[3, 7, 11], [15, 0, 0]]
    with pytest.raises(ValueError, match=r"only the upper 8 bits are read, and data\.bits=12"):
        pixels(raw_png(16, 2, samples, key), "RGB", bits=12)


# ----------------------------------------------------------------------- what does not fit is said


def set_of(root, array, suffix="png"):
    for i in range(12):
        path = write(root / f"{i:02d}.{suffix}", b"")
        Image.fromarray(array).save(path)
    return root


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
REMARKS = {
    "grey in colour": (GREY, 3, {}, "all 10 images are grey; model.channels=1 would code a third"),
    "grey, not kept": (GREY, 3, {"cache_mb": 0}, "all 10 images looked at are grey; model.chan"),
    "grey": (GREY, 1, {}, None),
    "colour": (COLOUR, 3, {}, None),
    "colour in grey": (COLOUR, 1, {}, "10 of 10 images looked at have colour, which a model of"),
    "12 bits": (GREY.astype(np.uint16) * 64, 1, {}, "no value above 4095, so they are dark"),
    "16 bits": (GREY.astype(np.uint16) * 1024, 1, {}, None),
    "12 bits, as said": (GREY.astype(np.uint16) * 64, 1, {"bits": 12}, None),
}


@pytest.mark.parametrize("name", REMARKS)
def test_what_does_not_fit_the_model_is_said_in_one_line(name, tmp_path, caplog):
    array, channels, config, sentence = REMARKS[name]
    opened(set_of(tmp_path / "d", array), channels, **config)
    assert len(caplog.messages) == (sentence is not None)
    assert sentence is None or sentence in caplog.text


def test_one_coloured_image_among_grey_ones_is_reason_enough_for_colour(tmp_path, caplog):
    """Where images are kept all of them are looked at."""
    root = set_of(tmp_path / "d" / "train", GREY)
    for i in range(100, 200):
        write(root / f"{i}.png", GREY)
    write(root / "101.png", COLOUR)
    _, splits = opened(tmp_path / "d", validation=0.01, test=0.01)
    kept = [batch for batch in sequential_batches(splits["train"], 200)]
    assert caplog.messages == [] and len(kept[0]) == 110


@pytest.mark.parametrize("suffix", ["jfif", "jp2", "tga", "pbm", "pcx", "dib", "sgi"])
def test_pictures_under_other_suffixes_are_read(suffix, tmp_path):
    kinds = {"jfif": "JPEG", "jp2": "JPEG2000"}
    picture = Image.new("1" if suffix == "pbm" else "RGB", (8, 8), "white")
    picture.save(tmp_path / f"x.{suffix}", kinds.get(suffix))
    (batch,) = sequential_batches(train_split(tmp_path, size=8), 4)
    assert (batch == 255).all() and batch.shape == (1, 3, 8, 8)
