"""Data: where images come from, how they are decoded and cut, and in which order they are dealt."""

import errno
import io
import itertools
import os
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hqvae.data import DataConfig, Images, Order, in_order, open_data, to_signal, training_batches
from hqvae.data.sources import IMAGE_MEDIUM, Collection, _hub, open_source, split
from hqvae.errors import InputError

TRAIN, TEST = list(range(0, 120, 10)), [200, 201, 202]  # the one grey value that each image is filled with
ALL = slice(None)


def solid(value, size=8):
    return np.full((size, size, 3), value, np.uint8)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else png(content))
    return path


def folder(root, values, classes=1):
    for i, value in enumerate(values):
        write(root / f"class{i % classes}" / f"{value:03d}.png", solid(value))
    return root


def table(path, values, struct):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(solid(v)), "path": f"{v}.png"} if struct else png(solid(v)) for v in values]
    parquet.write_table(Table.from_pydict({"label": list(values), "picture": cells}), path)
    return path


def npz(path, **arrays):
    np.savez(path, **{name: np.stack([solid(v) for v in values]) for name, values in arrays.items()})
    return path


def tables(root, struct):
    table(root / "train-00000-of-00002.parquet", TRAIN[:5], struct)
    table(root / "train-00001-of-00002.parquet", TRAIN[5:], struct)
    table(root / "test-00000-of-00001.parquet", TEST, struct)
    return root


def folders(root, train, test):
    folder(root / train, TRAIN, classes=2)
    folder(root / test, TEST)
    return root


def tables_at(root, train, test):
    table(root / train, TRAIN, True)
    table(root / test, TEST, True)
    return root


def links(root, kept):
    root.mkdir()
    for name, folder_kept in (("train", "a"), ("test", "b")):
        (root / name).symlink_to(kept / folder_kept)
    (kept / "a" / "again").symlink_to(kept / "a")  # a circle
    return root


SPLIT_SOURCES = {
    "folders": lambda tmp: folders(tmp / "d", "train", "test"),
    "folders by other names": lambda tmp: folders(tmp / "d", "Training", "testing"),
    "tables of structs": lambda tmp: tables(tmp / "d", True),
    "tables of bytes": lambda tmp: tables(tmp / "d", False),
    "tables in folders": lambda tmp: tables_at(tmp / "d", "default/train/0000.parquet", "default/test/0000.parquet"),
    "tables with a name before": lambda tmp: tables_at(tmp / "d", "gray-10-train.parquet", "gray-10-test.parquet"),
    "shards with a name before": lambda tmp: tables_at(tmp / "d", "gray-train-00000-of-00001.parquet", "gray_test_0.parquet"),
    "links to folders": lambda tmp: links(tmp / "d", folders(tmp / "kept", "a", "b")),
    "npz": lambda tmp: npz(tmp / "d.npz", x_train=TRAIN, x_test=TEST),
    "npz by other names": lambda tmp: npz(tmp / "d.npz", train_images=TRAIN, test_images=TEST),
}
WHOLE_SOURCES = {
    "folder": lambda tmp: folder(tmp / "d", TRAIN),
    "folder of classes": lambda tmp: folder(tmp / "d", TRAIN, classes=3),
    "table of structs": lambda tmp: table(tmp / "d.parquet", TRAIN, True),
    "table of bytes": lambda tmp: table(tmp / "d.parquet", TRAIN, False),
    "npz": lambda tmp: npz(tmp / "d.npz", images=TRAIN),
}


def values_of(images, chosen=ALL):
    """The grey values of a split of solid images, in order; every pixel must agree."""
    batch = images[np.arange(len(images))[chosen], None]
    assert (batch == batch[:, :1, :1, :1]).all()
    return batch[:, 0, 0, 0].tolist()


def opened(source, channels=3, **config):
    return open_data(DataConfig(source=str(source), **config), channels)


def one(path, channels=3, **config):
    """The single image of a folder with nothing else in it, decoded to [C, H, W]."""
    config = DataConfig(source=str(path.parent), **{"size": 8, **config})
    return Images(open_source(config.source, None, None)["train"], config, channels)[np.array([0]), None][0]


# ---------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("name", SPLIT_SOURCES)
def test_splits_that_the_source_has_are_kept(name, tmp_path):
    config, images = opened(SPLIT_SOURCES[name](tmp_path))
    assert config.size == 8
    assert values_of(images["test"]) == TEST
    assert sorted(values_of(images["train"]) + values_of(images["validation"])) == TRAIN
    assert len(images["validation"]) == 1


@pytest.mark.parametrize("name", WHOLE_SOURCES)
def test_splits_that_the_source_lacks_are_cut_from_it(name, tmp_path):
    _, images = opened(WHOLE_SOURCES[name](tmp_path), validation=0.25, test=1 / 3)
    parts = {split_name: values_of(part) for split_name, part in images.items()}
    assert {split_name: len(values) for split_name, values in parts.items()} == {"train": 5, "validation": 3, "test": 4}
    assert sorted(itertools.chain(*parts.values())) == TRAIN


def test_the_cut_is_a_function_of_the_seed(tmp_path):
    source = folder(tmp_path / "d", TRAIN)
    cuts = [[values_of(part) for part in opened(source, seed=seed, test=0.3)[1].values()] for seed in (3, 3, 4)]
    assert cuts[0] == cuts[1] != cuts[2]


@pytest.mark.parametrize("name", ["valid", "val", "dev", "validation"])
def test_a_validation_folder_goes_by_several_names(name, tmp_path):
    folders(tmp_path / "d", "train", name)
    _, images = opened(tmp_path / "d")
    assert values_of(images["validation"]) == TEST


def test_the_column_is_chosen_by_name(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    columns = {name: [png(solid(v + shift)) for v in TRAIN] for name, shift in (("left", 0), ("right", 1))}
    parquet.write_table(Table.from_pydict({**columns, "label": TRAIN}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"2 image columns \(left, right\).*data\.column"):
        opened(tmp_path / "d.parquet")
    _, images = opened(tmp_path / "d.parquet", column="right")
    assert all(v % 10 == 1 for v in values_of(images["train"]))


def test_grey_arrays_with_and_without_an_axis_of_channels(tmp_path):
    for name, shape in (("flat", (12, 8, 8)), ("deep", (12, 8, 8, 1))):
        np.savez(tmp_path / f"{name}.npz", x_train=np.arange(12, dtype=np.uint8).repeat(64).reshape(shape), y_train=np.arange(12))
    flat, deep = (opened(tmp_path / f"{name}.npz", channels=1)[1]["train"] for name in ("flat", "deep"))
    assert values_of(flat) == values_of(deep)
    assert flat[np.arange(3), None].shape == (3, 1, 8, 8)


def test_a_hub_data_set_is_read_as_the_library_gives_it(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folders(tmp_path / "d", "train", "test")
    collections = _hub(str(tmp_path / "d"), None, IMAGE_MEDIUM)
    assert {name: len(part) for name, part in collections.items()} == {"train": len(TRAIN), "test": len(TEST)}
    assert sorted(collections["test"].read(i).getpixel((0, 0))[0] for i in range(3)) == TEST
    assert len(_hub(str(tmp_path / "d"), "image", IMAGE_MEDIUM)["train"]) == len(TRAIN)
    with pytest.raises(InputError, match="no image column 'imagee'; did you mean 'image'"):
        _hub(str(tmp_path / "d"), "imagee", IMAGE_MEDIUM)


def test_a_hub_data_set_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(InputError, match="nothing-there"):
        _hub(str(tmp_path / "nothing-there"), None, IMAGE_MEDIUM)


def test_photos_of_one_split_are_in_no_other():
    pytest.importorskip("skimage")
    collections = split(open_source("photos", None, 128), 0.05, 0.1, 0)
    titles = [{name.split("/")[0] for name in part.names} for part in collections.values()]
    assert all(titles) and not any(a & b for a, b in itertools.combinations(titles, 2))
    assert all(part.read(i).size == (128, 128) for part in collections.values() for i in range(len(part)))


def test_the_largest_size_of_photos_is_the_one_that_the_message_says():
    pytest.importorskip("skimage")
    with pytest.raises(InputError, match=r"data\.size=2000") as refused:
        open_source("photos", None, 2000)
    largest = int(re.search(r"at most (\d+)", str(refused.value)).group(1))
    assert all(len(part) for part in open_source("photos", None, largest).values())
    with pytest.raises(InputError):
        open_source("photos", None, largest + 1)


# ---------------------------------------------------------------------------------------------------- pixels


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


@pytest.mark.parametrize(("colour", "grey"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((9, 9, 9), 9)])
def test_colours_become_grey_by_their_luminance(colour, grey, tmp_path):
    Image.new("RGB", (8, 8), colour).save(tmp_path / "x.png")
    assert one(tmp_path / "x.png", channels=1).tolist() == [[[grey] * 8] * 8]


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("values", [(0, 65535), (8192, 8192), (0, 65535, 8192, 257)], ids=str)
def test_sixteen_bits_are_scaled_by_their_range(values, order, tmp_path):
    """Not by an image's own maximum: a dark image stays dark beside a bright one, in either byte order."""
    row = np.repeat(np.array(values, f"{order}u2"), 8 // len(values))
    picture = Image.frombytes("I;16" if order == "<" else "I;16B", (8, 8), np.tile(row, (8, 1)).tobytes())
    picture.save(tmp_path / "x.tif")
    expected = np.repeat([{0: 0, 257: 1, 8192: 32, 65535: 255}[v] for v in values], 8 // len(values))
    assert one(tmp_path / "x.tif")[0, 0].tolist() == expected.tolist()


TURN = Image.Transpose
TURNS = {1: None, 2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM,
         5: TURN.TRANSPOSE, 6: TURN.ROTATE_90, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_270}  # fmt: skip


@pytest.mark.parametrize("cache_mb", [0, 16])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_cameras_orientation_is_honoured(orientation, cache_mb, tmp_path):
    upright = Image.fromarray(noise(8, 8))
    stored = upright if TURNS[orientation] is None else upright.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(one(tmp_path / "x.png", cache_mb=cache_mb).permute(1, 2, 0), np.asarray(upright))


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
def test_a_random_crop_lies_where_the_draw_says(draw, first, tmp_path):
    write(tmp_path / "x.png", np.tile((np.arange(16, dtype=np.uint8))[None, :, None], (8, 1, 3)))
    config = DataConfig(source=str(tmp_path), size=8, crop="random")
    images = Images(open_source(config.source, None, None)["train"], config, 3)
    batch = images[np.array([0]), None if draw is None else np.array([[0.9, draw]])]
    assert batch[0, 0, 0].tolist() == list(range(first, first + 8))


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_draws_mirror(flip, tmp_path):
    write(tmp_path / "x.png", noise(8, 8))
    config = DataConfig(source=str(tmp_path), size=8, flip=flip)
    images = Images(open_source(config.source, None, None)["train"], config, 3)
    plain = images[np.array([0, 0]), None]
    drawn = images[np.array([0, 0]), np.array([[0.49, 0.0], [0.5, 0.0]])]
    assert torch.equal(drawn[0], plain[0].flip(-1) if flip else plain[0])
    assert torch.equal(drawn[1], plain[1])


@pytest.mark.parametrize(("shapes", "size"), [([(8, 8)], 8), ([(8, 12)], 64), ([(8, 8), (9, 9)], 64), ([(300, 300)], 64)], ids=str)
def test_the_size_is_the_images_own_where_they_agree(shapes, size, tmp_path):
    for i in range(12):
        write(tmp_path / "d" / f"{i}.png", noise(*shapes[i % len(shapes)]))
    if size > max(map(max, shapes)):
        with pytest.raises(InputError, match=f"smaller than data.size={size}"):
            opened(tmp_path / "d")
    else:
        assert opened(tmp_path / "d")[0].size == size


# ---------------------------------------------------------------------------------------------------- what cannot be used


def test_broken_images_are_counted_named_and_left_out(tmp_path, caplog):
    write(tmp_path / "d" / "train" / "a.png", b"no image")
    write(tmp_path / "d" / "train" / "b.png", png(noise(32, 32))[:500])
    folders(tmp_path / "d", "train", "val")
    folder(tmp_path / "d" / "test", TEST)
    _, images = opened(tmp_path / "d", size=8)
    assert values_of(images["train"]) == [*TRAIN[::2], *TRAIN[1::2]]
    (warning,) = caplog.messages
    assert warning.startswith("2 of 14 images are broken")
    assert "train/a.png" in warning and "train/b.png" in warning


def test_sub_folders_can_be_splits(tmp_path):
    """As in data sets of folds, at any depth; a fold that is not there is named."""
    for fold in range(1, 5):
        folder(tmp_path / "audio" / f"fold{fold}", [10 * fold, 10 * fold + 1])
    held = {"validation_folders": ("fold3",), "test_folders": ("fold4", "fold1")}
    _, images = opened(tmp_path, size=8, **held)
    assert {name: values_of(split) for name, split in images.items()} == {
        "train": [20, 21],
        "validation": [30, 31],
        "test": [10, 11, 40, 41],
    }
    with pytest.raises(InputError, match="no sub-folder 'fold9' with images; did you mean 'fold"):
        opened(tmp_path, size=8, test_folders=("fold9",))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_with_channels_first_are_the_same_images(channels, tmp_path):
    last = np.random.default_rng(0).integers(0, 256, (8, 9, 10, channels), dtype=np.uint8)
    found = []
    for name, array in (("last", last), ("first", last.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / f"{name}.npz", x_train=array, x_test=array, x_val=array)
        images = open_data(DataConfig(source=str(tmp_path / f"{name}.npz"), size=8), channels)[1]["train"]
        found.append(next(in_order(images, 8)))
    assert torch.equal(*found)


def test_a_broken_row_is_named_by_its_own_file(tmp_path, caplog):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    tables(tmp_path / "d", False)
    parquet.write_table(Table.from_pydict({"picture": [png(solid(1)), b"no image"]}), tmp_path / "d" / "train-00002-of-00003.parquet")
    open_data(DataConfig(source=str(tmp_path / "d"), column="picture", validation=0.01), 3, ("train", "validation"))
    assert "train-00002-of-00003.parquet row 1" in caplog.text


def test_an_image_that_breaks_below_its_header_gives_way_to_the_next(tmp_path, caplog):
    """Without a cache only headers are read at the start; every process must put the same image in its place."""
    for i, content in enumerate([png(solid(5, 32)), png(noise(32, 32))[:500], png(solid(7, 32))]):
        write(tmp_path / f"{i}.png", content)
    config = DataConfig(source=str(tmp_path), size=32, cache_mb=0)
    images = Images(open_source(config.source, None, None)["train"], config, 3)
    assert values_of(images) == [5, 7, 7]
    assert "1.png" in caplog.text


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_split_of_broken_images_is_refused(cache_mb, tmp_path):
    for i in range(12):
        write(tmp_path / "d" / f"{i}.png", b"no image")
    with pytest.raises(InputError, match=r"none of the 10 images"):
        opened(tmp_path / "d", size=8, cache_mb=cache_mb)


def only_text(tmp):
    return write(tmp / "d" / "notes.txt", b"x").parent


def torn_npz(tmp):
    whole = npz(tmp / "whole.npz", x_train=TRAIN).read_bytes()
    return write(tmp / "d.npz", whole[: len(whole) // 2])


def array_as_npz(tmp):
    np.save(tmp / "x.npy", np.stack([solid(v) for v in TRAIN]))
    return (tmp / "x.npy").rename(tmp / "d.npz")


def npz_with_empty_test(tmp):
    np.savez(tmp / "d.npz", x_train=np.stack([solid(v) for v in TRAIN]), x_test=np.zeros((0, 8, 8, 3), np.uint8))
    return tmp / "d.npz"


def floats(tmp):
    np.savez(tmp / "d.npz", x_train=np.zeros((12, 8, 8, 3), np.float32))
    return tmp / "d.npz"


def whole_table(tmp):
    return table(tmp / "d.parquet", TRAIN, True)


REFUSED = {
    "empty folder": (only_text, {}, r"folder '.*d' holds no image.*\.png"),
    "missing path": (lambda tmp: folder(tmp / "pictures", TRAIN).with_name("picturse"), {}, r"picturse' does not.* mean 'pictures'"),
    "missing file": (lambda tmp: npz(tmp / "ab.npz", x=TRAIN).with_name("abc.npz"), {}, r"abc\.npz' does not.* mean 'ab\.npz'"),
    "another kind of file": (lambda tmp: write(tmp / "d.csv", b"a,b"), {}, r"d\.csv' is a \.csv file; expected a folder"),
    "no Parquet": (lambda tmp: write(tmp / "d.parquet", b"nonsense"), {}, r"d\.parquet cannot be read as Parquet"),
    "empty Parquet": (lambda tmp: write(tmp / "d.parquet", b""), {}, r"d\.parquet cannot be read as Parquet"),
    "no npz": (lambda tmp: write(tmp / "d.npz", b"nonsense"), {}, r"d\.npz cannot be read as \.npz"),
    "empty npz": (lambda tmp: write(tmp / "d.npz", b""), {}, r"d\.npz cannot be read as \.npz"),
    "torn npz": (torn_npz, {}, r"d\.npz cannot be read as \.npz"),
    "npy by the name of npz": (array_as_npz, {}, r"d\.npz"),
    "wrong column": (whole_table, {"column": "pictur"}, r"no column 'pictur'; did you mean 'picture'"),
    "column without images": (whole_table, {"column": "label"}, r"column 'label' of d\.parquet holds int64"),
    "image too small": (WHOLE_SOURCES["folder"], {"size": 9}, r"of 10 images are .* data\.size=9, the smallest .* 8×8; .* data\.size=8 "),
    "too few to cut": (lambda tmp: folder(tmp / "d", TRAIN[:2]), {}, r"2 items are too few to cut test and validation from; at least 3"),
    "no train split": (lambda tmp: npz(tmp / "d.npz", x_test=TEST), {}, r"splits test but no train split"),
    "split without data": (npz_with_empty_test, {}, r"d\.npz' has no image in its test split"),
    "arrays of other kinds": (floats, {}, r"d\.npz has no uint8 array .* it holds x_train"),
    "two arrays for a split": (lambda tmp: npz(tmp / "d.npz", a=TRAIN, b=TRAIN), {}, r"several uint8 image arrays for train \(a, b\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_is_named(name, tmp_path):
    make, config, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        opened(make(tmp_path), **config)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(InputError, match="split 'tset' is not one of train, validation, test"):
        open_data(DataConfig(source=str(folder(tmp_path / "d", TRAIN))), 3, ("tset",))


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_an_image_too_small_is_found_before_training(cache_mb, tmp_path):
    folder(tmp_path / "d", TRAIN)
    write(tmp_path / "d" / "small.png", solid(1, 7))
    with pytest.raises(InputError, match=r"smallest small\.png with 7×7"):
        Images(open_source(str(tmp_path / "d"), None, None)["train"], DataConfig(size=8, cache_mb=cache_mb), 3)


# ---------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (7, 7), (5, 12), (3, 1)])
def test_an_order_deals_every_item_once_per_epoch(count, batch):
    order = Order(count, batch, seed=1)
    stream = np.concatenate([order.at(step)[0] for step in range(count * 3)])
    epochs = stream.reshape(-1, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_an_order_is_a_function_of_seed_and_step():
    def flat(seed, step):
        return np.concatenate([part.ravel() for part in Order(100, 8, seed).at(step)]).tolist()

    forward = [flat(0, step) for step in range(30)]
    assert [flat(0, step) for step in reversed(range(30))] == forward[::-1]
    assert flat(1, 0) != flat(0, 0)
    draws = Order(100, 8, 0).at(3)[1]
    assert draws.shape == (8, 2) and (draws >= 0).all() and (draws < 1).all()


@pytest.fixture
def mixed(tmp_path):
    """A folder of images of differing sizes, to be cropped and mirrored at random."""
    for i, (height, width) in enumerate([(8, 20), (20, 8), (16, 16), (9, 8), (30, 40), (8, 8)] * 2):
        write(tmp_path / "train" / f"{i:02d}.png", noise(height, width, i))
    return tmp_path


def batches_of(source, parts, start=0, stop=6, batch=8, **config):
    config = DataConfig(source=str(source), size=8, **{"crop": "random", "flip": True, **config})
    images = Images(open_source(config.source, None, None)["train"], config, 3)
    return list(training_batches(images, Order(len(images), batch, seed=2), start, stop, parts))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crop", ["random", "center"])
def test_images_that_are_not_kept_are_the_same(mixed, crop, workers):
    kept = batches_of(mixed, [slice(0, 8)], crop=crop)
    again = batches_of(mixed, [slice(0, 8)], crop=crop, cache_mb=0, workers=workers)
    assert len(kept) == len(again) == 6
    assert all(torch.equal(a, b) for a, b in zip(kept, again))
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("name", WHOLE_SOURCES)
def test_images_travel_to_a_process_that_shares_nothing(name, tmp_path):
    """Where processes are spawned and not forked, workers get their images by pickle."""
    _, images = opened(WHOLE_SOURCES[name](tmp_path), cache_mb=0)
    assert values_of(pickle.loads(pickle.dumps(images["train"]))) == values_of(images["train"])


@pytest.mark.parametrize("cuts", [[slice(0, 4), slice(4, 8)], [slice(i, i + 1) for i in range(8)]], ids=["halves", "singles"])
def test_a_global_batch_is_the_same_however_it_is_cut(mixed, cuts):
    whole = batches_of(mixed, [slice(0, 8)])
    accumulated = batches_of(mixed, cuts)
    of_processes = [batches_of(mixed, [cut]) for cut in cuts]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat(accumulated[step * len(cuts) : (step + 1) * len(cuts)]), batch)
        assert torch.equal(torch.cat([mine[step] for mine in of_processes]), batch)


@pytest.mark.parametrize("start", [1, 3, 5])
def test_starting_later_is_skipping(mixed, start):
    whole, later = batches_of(mixed, [slice(0, 8)]), batches_of(mixed, [slice(0, 8)], start=start)
    assert len(later) == 6 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], later))


@pytest.mark.parametrize("world", [1, 2, 3, 20])
@pytest.mark.parametrize("limit", [None, 5, 100])
def test_in_order_deals_each_image_once_over_all_processes(tmp_path, world, limit):
    config = DataConfig(source=str(npz(tmp_path / "d.npz", x=TRAIN)), size=8)
    images = Images(open_source(config.source, None, None)["train"], config, 3)
    shares = [[b[:, 0, 0, 0].tolist() for b in in_order(images, 4, limit, rank, world)] for rank in range(world)]
    dealt = [list(itertools.chain(*share)) for share in shares]
    spread = {None: TRAIN, 5: [TRAIN[round(i * (len(TRAIN) - 1) / 4)] for i in range(5)], 100: TRAIN}[limit]
    assert sorted(itertools.chain(*dealt)) == spread
    assert all(share == sorted(share) for share in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(len(batch) == 4 for share in shares for batch in share[:-1])


def test_a_signal_goes_from_minus_one_to_one():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert torch.allclose(to_signal(batch).flatten(), torch.tensor([-1.0, -0.6, 1.0]), atol=1e-7)
    assert batch.flatten().tolist() == [0, 51, 255]


def test_a_subset_reads_what_it_names():
    whole = Collection([str(i) for i in range(10)], lambda i: Image.new("L", (1, 1), i))
    part = whole.subset([7, 2, 5]).subset([2, 0])
    assert list(part.names) == ["5", "7"]
    assert [part.read(i).getpixel((0, 0)) for i in range(2)] == [5, 7]


def test_hidden_files_are_no_data(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png", ".hidden.png", ".thumbnails/a.png", "e/.cache/f/a.png"):
        write(tmp_path / "d" / name, noise(8, 8))
    found = open_source(str(tmp_path / "d"), None, None)
    assert list(found["train"].names) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_folder_called_like_the_built_in_photographs_is_not_passed_over(tmp_path, monkeypatch):
    write(tmp_path / "photos" / "a.png", noise(8, 8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape("write ./photos")):
        open_source("photos", None, None)
    assert list(open_source("./photos", None, None)["train"].names) == ["a.png"]


def test_contents_change_where_files_do(tmp_path):
    before, same = (opened(folder(tmp_path / "d", TRAIN))[1].contents for _ in range(2))
    assert before == same and before["test"].startswith("1 items, ") and before["train"].startswith("10 items, ")
    write(tmp_path / "d" / "class0" / "more.png", solid(7))
    assert all(opened(tmp_path / "d")[1].contents[name] != before[name] for name in before if name != "validation")


def test_many_broken_files_do_not_use_up_the_files_a_process_may_open(tmp_path):
    resource = pytest.importorskip("resource")
    whole = png(noise(16, 16))
    for i in range(300):
        write(tmp_path / "d" / f"{i:03d}.png", whole if i % 4 == 3 else whole[: len(whole) // 2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, hard))
    try:
        images = Images(open_source(str(tmp_path / "d"), None, None)["train"], DataConfig(size=16), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(images) == 75


def test_a_program_that_may_open_no_more_files_does_not_blame_them(tmp_path):
    def read(i):
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many"):
        Images(Collection(["a"], read), DataConfig(size=8), 3)


def test_numpy_s_advice_to_load_unsafely_is_not_passed_on(tmp_path):
    (tmp_path / "text.npz").write_text("no array")
    with pytest.raises(InputError, match="cannot be read") as error:
        opened(tmp_path / "text.npz")
    assert "pickle" not in str(error.value)
