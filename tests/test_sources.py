"""Where data come from: splits that a source has are kept, missing ones are cut from it."""

import itertools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    TEST,
    TRAIN,
    WHOLE_SOURCES,
    folder,
    folders,
    noise,
    npz,
    opened,
    png,
    solid,
    table,
    tables,
    tables_at,
    train_split,
    values_of,
    write,
)
from PIL import Image

from hqvae.data import (
    IMAGE,
    FileIndex,
    ImageConfig,
    cut_splits,
    open_data,
    open_source,
    sequential_batches,
)
from hqvae.data.sources.hub import index_hub
from hqvae.errors import InputError


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
    "tables in folders": lambda tmp: tables_at(
        tmp / "d", "default/train/0000.parquet", "default/test/0000.parquet"
    ),
    "tables with a name before": lambda tmp: tables_at(
        tmp / "d", "gray-10-train.parquet", "gray-10-test.parquet"
    ),
    "shards with a name before": lambda tmp: tables_at(
        tmp / "d", "gray-train-00000-of-00001.parquet", "gray_test_0.parquet"
    ),
    "links to folders": lambda tmp: links(tmp / "d", folders(tmp / "kept", "a", "b")),
    "npz": lambda tmp: npz(tmp / "d.npz", x_train=TRAIN, x_test=TEST),
    "npz by other names": lambda tmp: npz(tmp / "d.npz", train_images=TRAIN, test_images=TEST),
}


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
    assert {split_name: len(values) for split_name, values in parts.items()} == {
        "train": 5,
        "validation": 3,
        "test": 4,
    }
    assert sorted(itertools.chain(*parts.values())) == TRAIN


def test_the_cut_is_a_function_of_the_seed(tmp_path):
    source = folder(tmp_path / "d", TRAIN)
    cuts = [
        [values_of(part) for part in opened(source, seed=seed, test=0.3)[1].values()]
        for seed in (3, 3, 4)
    ]
    assert cuts[0] == cuts[1] != cuts[2]


@pytest.mark.parametrize("shares", [(0.05, 0.1), (0.49, 0.49), (0.3, 0.49), (1e-9, 1e-9)], ids=str)
def test_three_items_and_more_can_be_cut_by_any_shares(shares):
    """None of the splits is empty, and none takes all."""
    shares = dict(zip(("validation", "test"), shares))
    for count in range(3, 40):
        whole = FileIndex([str(i) for i in range(count)], int)
        parts = cut_splits({"train": whole}, shares, seed=0)
        assert all(len(part) for part in parts.values())
        assert sorted(name for part in parts.values() for name in part.names) == sorted(whole.names)


def test_a_subset_reads_what_it_names():
    whole = FileIndex([str(i) for i in range(10)], lambda i: Image.new("L", (1, 1), i))
    part = whole.subset([7, 2, 5]).subset([2, 0])
    assert list(part.names) == ["5", "7"]
    assert [part.open(i).getpixel((0, 0)) for i in range(2)] == [5, 7]


def test_fingerprints_change_where_files_do(tmp_path):
    before, same = (opened(folder(tmp_path / "d", TRAIN))[1].fingerprints for _ in range(2))
    assert before == same
    assert before["test"].startswith("1 items, ") and before["train"].startswith("10 items, ")
    write(tmp_path / "d" / "class0" / "more.png", solid(7))
    after = opened(tmp_path / "d")[1].fingerprints
    assert all(after[name] != before[name] for name in ("train", "test"))


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", ["valid", "val", "dev", "validation"])
def test_a_validation_folder_goes_by_several_names(name, tmp_path):
    folders(tmp_path / "d", "train", name)
    _, images = opened(tmp_path / "d")
    assert values_of(images["validation"]) == TEST


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


def test_hidden_files_are_no_data(tmp_path):
    seen = ["a.png", "b.png", "c.png", "d.png"]
    for name in (*seen, ".hidden.png", ".thumbnails/a.png", "e/.cache/f/a.png"):
        write(tmp_path / "d" / name, noise(8, 8))
    indexes = open_source(ImageConfig(source=str(tmp_path / "d")))
    assert list(indexes["train"].names) == seen


def test_split_folders_are_found_below_other_folders(tmp_path):
    """At the least depth where there are any: test pictures are never trained on."""
    for top in ("a", "b"):
        folder(tmp_path / "d" / top / "train2017", TRAIN)
        folder(tmp_path / "d" / top / "test2017", TEST)
    _, images = opened(tmp_path / "d")
    assert values_of(images["test"]) == [*TEST, *TEST]
    assert len(images["train"]) + len(images["validation"]) == 2 * len(TRAIN)


def test_a_class_that_is_called_like_a_split_can_be_named_as_one(tmp_path):
    classes(tmp_path, "cat", "dog", "test")
    _, images = opened(tmp_path, test_folders=("test",))
    assert values_of(images["test"]) == [20, 21, 22, 23]
    assert len(images["train"]) == 7


def test_one_line_counts_what_a_folder_leaves_out(tmp_path, caplog):
    folders(tmp_path, "train", "val")
    for name in ("loose.png", "a.txt", "b.txt", "c.JSON", "metadata.csv", ".hidden"):
        write(tmp_path / name, b"x")
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "train" / "round").symlink_to(tmp_path)
    opened(tmp_path, channels=1)
    (line,) = caplog.messages
    for words in (
        "1 image outside of train, val;",
        "folder 'test', which has no file of the kind;",
        "2 .txt and 1 .json files;",
        "1 link ('train/round') to a folder that it lies in;",
        "1 link ('train/gone.png') to nothing",
    ):
        assert words in f"{line};"


def test_linked_folders_are_followed_wherever_they_lead(tmp_path, caplog):
    """Also to a class beside the splits, and to another split, which is said."""
    root = tmp_path / "d"
    folder(root / "raw" / "cat", TRAIN)
    (root / "train").mkdir()
    (root / "train" / "cat").symlink_to("../raw/cat")
    indexes = open_source(ImageConfig(source=str(root)))
    assert list(indexes) == ["train"] and len(indexes["train"]) == len(TRAIN)
    assert caplog.messages == []
    folder(root / "test", TEST)
    (root / "val").symlink_to("test")
    indexes = open_source(ImageConfig(source=str(root)))
    assert {name: len(index) for name, index in indexes.items()} == {
        "test": len(TEST),
        "train": len(TRAIN),
        "validation": len(TEST),
    }
    assert caplog.messages == [f"{len(TEST)} images are in test and validation alike, by links"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, caplog):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    classes(tmp_path, "cat", "locked")
    monkeypatch.setattr(os, "scandir", refuse)
    assert len(open_source(ImageConfig(source=str(tmp_path)))["train"]) == 4
    assert "1 folder ('locked') that may not be read" in caplog.text


def test_a_folder_whose_name_is_much_like_a_splits_is_said_to_be_trained_on(tmp_path, caplog):
    classes(tmp_path, "train-clean", "test-clean", "test-other", "latest")
    open_source(ImageConfig(source=str(tmp_path)))
    assert len(caplog.messages) == 2
    assert "'test-clean' is taken for training; data.test_folders=[test-clean]" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_the_folder_says_the_splits(kind, tmp_path, caplog):
    folder(tmp_path, [*TRAIN, *TEST])
    names = [f"./class0/{value:03d}.png" for value in (*TRAIN[1:], *TEST)] + ["class0/gone.png"]
    splits = ["train"] * (len(TRAIN) - 1) + ["Test"] * (len(TEST) + 1)
    rows = [{"file_name": name, "split": split} for name, split in zip(names, splits)]
    if kind == "csv":
        lines = ["file_name,split", *(f"{row['file_name']},{row['split']}" for row in rows)]
        write(tmp_path / "metadata.csv", "\n".join(lines).encode())
    elif kind == "jsonl":
        write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    else:
        parquet_of(tmp_path / "metadata.parquet", rows)
    indexes = open_source(ImageConfig(source=str(tmp_path)))
    assert (len(indexes["train"]), len(indexes["test"])) == (len(TRAIN) - 1, len(TEST))
    assert f"1 image that metadata.{kind} gives no split" in caplog.text
    assert f"1 file of metadata.{kind} that cannot be found ('class0/gone.png')" in caplog.text


def test_tables_without_items_do_not_hide_the_pictures_of_a_folder(tmp_path, caplog):
    """As `metadata.parquet` of an image folder; tables of pictures are read, and the rest said."""
    folder(tmp_path, TRAIN)
    parquet_of(tmp_path / "metadata.parquet", [{"file_name": "class0/000.png", "label": 3}])
    parquet_of(tmp_path / "labels.parquet", [{"label": 3}])
    indexes = open_source(ImageConfig(source=str(tmp_path)))
    assert len(indexes["train"]) == len(TRAIN) and "1 .parquet file" in caplog.text
    table(tmp_path / "pictures.parquet", TEST, True)
    assert len(open_source(ImageConfig(source=str(tmp_path)))["train"]) == len(TEST)
    assert "12 .png and 1 .parquet files" in caplog.messages[-1]


NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def test_names_that_are_not_utf8_are_names_like_others(tmp_path, caplog):
    """On the disk, in a table, in the log, in fingerprints and in the list of what is left out."""
    try:
        folder(tmp_path / "d", TRAIN)
        write(tmp_path / "d" / NOT_UTF8, solid(7))
        write(tmp_path / "d" / f"broken-{NOT_UTF8}", b"no image")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    _, images = opened(tmp_path / "d", channels=1, test=0.01, validation=0.01)
    broken = [item["key"] for item in images.left_out()]
    assert broken == [f"broken-{NOT_UTF8}"] and 7 in values_of(images["train"])
    assert json.loads(json.dumps(images.left_out())) == images.left_out()
    assert caplog.messages and set(images.fingerprints) == {"train", "validation", "test"}
    other = NOT_UTF8.replace(os.fsdecode(b"\xe9"), os.fsdecode(b"\xe8"))
    (tmp_path / "d" / NOT_UTF8).rename(tmp_path / "d" / other)
    again = opened(tmp_path / "d", channels=1, test=0.01, validation=0.01)[1]
    assert again.fingerprints["train"] != images.fingerprints["train"]
    rows = f"file_name,split\n{other},test\nclass0/000.png,train\n"
    write(tmp_path / "d" / "metadata.csv", rows.encode(errors="surrogateescape"))
    assert list(open_source(ImageConfig(source=str(tmp_path / "d")))["test"].names) == [other]


# -------------------------------------------------------------------------------- tables and arrays


def parquet_of(path, rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    parquet.write_table(Table.from_pylist(rows), path)
    return path


def test_rows_may_name_a_file_in_place_of_its_bytes(tmp_path, caplog):
    """By an absolute path, or one from the table's folder on; the name need not be UTF-8."""
    write(tmp_path / "files" / "a.png", solid(1))
    cells = [
        {"bytes": None, "path": str(tmp_path / "files" / "a.png")},
        {"bytes": None, "path": "files/a.png"},
        {"bytes": png(solid(2)), "path": "inline.png"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "files/gone.png"},
        None,
    ]
    path = parquet_of(tmp_path / "d.parquet", [{"picture": cell} for cell in cells])
    path = path.rename(tmp_path / os.fsdecode(b"d\xe9.parquet"))
    images = train_split(path, channels=1, size=8)
    assert values_of(images) == [1, 1, 2]
    reasons = [reason for _, reason in images.left_out()]
    assert reasons[0] == reasons[2] == "its row has neither bytes nor a path"
    assert "gone.png" in reasons[1]


def test_the_damaged_file_of_several_is_named(tmp_path):
    """Whatever is damaged: no traceback, and no sound file is blamed."""
    tables(tmp_path, True)
    path = tmp_path / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(4, len(whole) - 8, 40):
            damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            open_source(ImageConfig(source=str(tmp_path)))
        except InputError as error:
            refused += 1
            assert path.name in str(error) and "train-00000" not in str(error)
    assert refused > 30


def test_shards_of_different_columns_are_named(tmp_path):
    tables(tmp_path, True)
    path = tmp_path / "train-00001-of-00002.parquet"
    parquet_of(path, [{"photo": png(solid(1))}])
    with pytest.raises(InputError, match=rf"{path.name} has no column 'picture'.*photo"):
        opened(tmp_path)
    parquet_of(path, [{"picture": 3}])
    with pytest.raises(InputError, match=rf"'picture' of {path.name} holds int64, not images"):
        opened(tmp_path)
    parquet_of(path, [{"picture": png(solid(value))} for value in TRAIN[5:]])
    assert values_of(opened(tmp_path)[1]["test"]) == TEST  # bytes beside structs


def test_labels_of_objects_do_not_hide_the_pictures_of_an_archive(tmp_path, caplog):
    pictures = np.stack([solid(value) for value in TRAIN])
    labels = np.array(["cat"] * 12, dtype=object)
    path = arrays(tmp_path, x=pictures, y=labels, masks=np.zeros((12, 8, 8, 2), np.uint8))
    assert len(open_source(ImageConfig(source=str(path)))["train"]) == 12
    of_labels, of_masks = caplog.messages
    assert of_labels == "array 'y' holds object, which are no labels"
    assert "the array masks is left out: it is uint8 [12, 8, 8, 2]" in of_masks


def test_the_column_is_chosen_by_name(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    columns = {
        name: [png(solid(v + shift)) for v in TRAIN] for name, shift in (("left", 0), ("right", 1))
    }
    parquet.write_table(Table.from_pydict({**columns, "label": TRAIN}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"2 image columns \(left, right\).*data\.column"):
        opened(tmp_path / "d.parquet")
    _, images = opened(tmp_path / "d.parquet", column="right")
    assert all(v % 10 == 1 for v in values_of(images["train"]))


def test_a_broken_row_is_named_by_its_own_file(tmp_path, caplog):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    tables(tmp_path / "d", False)
    parquet.write_table(
        Table.from_pydict({"picture": [png(solid(1)), b"no image"]}),
        tmp_path / "d" / "train-00002-of-00003.parquet",
    )
    opened(tmp_path / "d", column="picture", validation=0.01)
    assert "train-00002-of-00003.parquet row 1" in caplog.text


def test_grey_arrays_with_and_without_an_axis_of_channels(tmp_path):
    for name, shape in (("flat", (12, 8, 8)), ("deep", (12, 8, 8, 1))):
        np.savez(
            tmp_path / f"{name}.npz",
            x_train=np.arange(12, dtype=np.uint8).repeat(64).reshape(shape),
            y_train=np.arange(12),
        )
    flat, deep = (
        opened(tmp_path / f"{name}.npz", channels=1)[1]["train"] for name in ("flat", "deep")
    )
    assert values_of(flat) == values_of(deep)
    assert next(sequential_batches(flat, 3)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_with_channels_first_are_the_same_images(channels, tmp_path):
    last = np.random.default_rng(0).integers(0, 256, (8, 9, 10, channels), dtype=np.uint8)
    found = []
    for name, array in (("last", last), ("first", last.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / f"{name}.npz", x_train=array, x_test=array, x_val=array)
        _, splits = opened(tmp_path / f"{name}.npz", channels, size=8)
        found.append(next(sequential_batches(splits["train"], 8)))
    assert torch.equal(*found)


def test_numpy_s_advice_to_load_unsafely_is_not_passed_on(tmp_path):
    (tmp_path / "text.npz").write_text("no array")
    with pytest.raises(InputError, match="cannot be read") as error:
        opened(tmp_path / "text.npz")
    assert "pickle" not in str(error.value)


# ------------------------------------------------------------------------------------------ the hub


def test_a_hub_data_set_is_read_as_the_library_gives_it(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folders(tmp_path / "d", "train", "test")
    indexes = index_hub(str(tmp_path / "d"), None, IMAGE)
    assert {name: len(part) for name, part in indexes.items()} == {
        "train": len(TRAIN),
        "test": len(TEST),
    }
    assert sorted(indexes["test"].open(i).getpixel((0, 0))[0] for i in range(3)) == TEST
    copied = pickle.loads(pickle.dumps(indexes["test"]))  # as a spawned worker gets it
    assert sorted(copied.open(i).getpixel((0, 0))[0] for i in range(3)) == TEST
    assert len(index_hub(str(tmp_path / "d"), "image", IMAGE)["train"]) == len(TRAIN)
    with pytest.raises(InputError, match="no image column 'imagee'; did you mean 'image'"):
        index_hub(str(tmp_path / "d"), "imagee", IMAGE)


def test_a_hub_data_set_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(InputError, match="nothing-there"):
        index_hub(str(tmp_path / "nothing-there"), None, IMAGE)


# ----------------------------------------------------------------------------- built-in photographs


def test_photos_of_one_split_are_in_no_other():
    pytest.importorskip("skimage")
    indexes = cut_splits(
        open_source(ImageConfig(size=128)), {"test": 0.1, "validation": 0.05}, seed=0
    )
    titles = [{name.split("/")[0] for name in part.names} for part in indexes.values()]
    assert all(titles) and not any(a & b for a, b in itertools.combinations(titles, 2))
    assert all(
        part.open(i).size == (128, 128) for part in indexes.values() for i in range(len(part))
    )


def test_a_crop_knows_the_photograph_that_it_is_from():
    pytest.importorskip("skimage")
    test = open_data(ImageConfig(size=128), 3, ("test",))[1]["test"]
    for i in (0, len(test) - 1):
        title = test.keys[i].split("/")[0]
        assert test.whole(i).shape == {"astronaut": (3, 512, 512), "chelsea": (3, 300, 451)}[title]


def test_pictures_of_a_folder_are_whole_themselves(tmp_path):
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (i, 0, 0)).save(tmp_path / f"{i}.png")
    test = open_data(ImageConfig(source=str(tmp_path), size=16), 3, ("test",))[1]["test"]
    name, whole = test.read(0)
    assert torch.equal(test.whole(0), whole) and whole.shape[1:] == (30, 40 + int(name[0]))


def test_the_largest_size_of_photos_is_the_one_that_the_message_says():
    pytest.importorskip("skimage")
    with pytest.raises(InputError, match=r"data\.size=2000") as refused:
        open_source(ImageConfig(size=2000))
    largest = int(re.search(r"at most (\d+)", str(refused.value)).group(1))
    assert all(len(part) for part in open_source(ImageConfig(size=largest)).values())
    with pytest.raises(InputError):
        open_source(ImageConfig(size=largest + 1))


def test_a_folder_called_like_the_built_in_photographs_is_not_passed_over(tmp_path, monkeypatch):
    write(tmp_path / "photos" / "a.png", noise(8, 8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape("write ./photos")):
        open_source(ImageConfig())
    assert list(open_source(ImageConfig(source="./photos"))["train"].names) == ["a.png"]


# ------------------------------------------------------------------------------------------ refused


def only_text(tmp):
    return write(tmp / "d" / "notes.txt", b"x").parent


def torn_npz(tmp):
    whole = npz(tmp / "whole.npz", x_train=TRAIN).read_bytes()
    return write(tmp / "d.npz", whole[: len(whole) // 2])


def array_as_npz(tmp):
    np.save(tmp / "x.npy", np.stack([solid(v) for v in TRAIN]))
    return (tmp / "x.npy").rename(tmp / "d.npz")


def npz_with_empty_test(tmp):
    np.savez(
        tmp / "d.npz",
        x_train=np.stack([solid(v) for v in TRAIN]),
        x_test=np.zeros((0, 8, 8, 3), np.uint8),
    )
    return tmp / "d.npz"


def floats(tmp):
    np.savez(tmp / "d.npz", x_train=np.zeros((12, 8, 8, 3), np.float32))
    return tmp / "d.npz"


def arrays(tmp, **named):
    np.savez(tmp / "d.npz", **named)
    return tmp / "d.npz"


def classes(root, *names):
    for number, name in enumerate(names):
        folder(root / name, [10 * number + i for i in range(4)])
    return root


def whole_table(tmp):
    return table(tmp / "d.parquet", TRAIN, True)


REFUSED = {
    "empty folder": (only_text, {}, r"folder '.*d' holds no image.*\.png"),
    "missing path": (
        lambda tmp: folder(tmp / "pictures", TRAIN).with_name("picturse"),
        {},
        r"picturse' does not.* mean 'pictures'",
    ),
    "missing file": (
        lambda tmp: npz(tmp / "ab.npz", x=TRAIN).with_name("abc.npz"),
        {},
        r"abc\.npz' does not.* mean 'ab\.npz'",
    ),
    "another kind of file": (
        lambda tmp: write(tmp / "d.csv", b"a,b"),
        {},
        r"d\.csv' is a \.csv file; expected a folder, \.parquet or \.npz",
    ),
    "no Parquet": (
        lambda tmp: write(tmp / "d.parquet", b"nonsense"),
        {},
        r"d\.parquet cannot be read as Parquet",
    ),
    "empty Parquet": (
        lambda tmp: write(tmp / "d.parquet", b""),
        {},
        r"d\.parquet cannot be read as Parquet",
    ),
    "no npz": (
        lambda tmp: write(tmp / "d.npz", b"nonsense"),
        {},
        r"d\.npz cannot be read as \.npz",
    ),
    "empty npz": (lambda tmp: write(tmp / "d.npz", b""), {}, r"d\.npz cannot be read as \.npz"),
    "torn npz": (torn_npz, {}, r"d\.npz cannot be read as \.npz"),
    "npy by the name of npz": (array_as_npz, {}, r"d\.npz"),
    "wrong column": (
        whole_table,
        {"column": "pictur"},
        r"no column 'pictur'; did you mean 'picture'",
    ),
    "column without images": (
        whole_table,
        {"column": "label"},
        r"column 'label' of d\.parquet holds int64, not images",
    ),
    "image too small": (
        WHOLE_SOURCES["folder"],
        {"size": 9},
        r"of 10 images are .* data\.size=9, the smallest .* 8×8; .* lower data\.size to 8 ",
    ),
    "too few to cut": (
        lambda tmp: folder(tmp / "d", TRAIN[:2]),
        {},
        r"2 items are too few to cut test and validation from; at least 3",
    ),
    "no train split": (
        lambda tmp: npz(tmp / "d.npz", x_test=TEST),
        {},
        r"splits test but no train split",
    ),
    "split without data": (npz_with_empty_test, {}, r"d\.npz' has no image in its test split"),
    "arrays of other kinds": (
        floats,
        {},
        r"d\.npz has no pictures: it holds x_train float32 \[12, 8, 8, 3\]; expected uint8 \[N, H",
    ),
    "array of objects": (
        lambda tmp: arrays(tmp, images=np.array([None, 1, "x"], dtype=object)),
        {},
        r"d\.npz .* holds images object \[3\]; expected uint8 \[N, H, W\]",
    ),
    "two channels": (
        lambda tmp: arrays(tmp, images=np.zeros((12, 8, 8, 2), np.uint8)),
        {},
        r"d\.npz .* holds images uint8 \[12, 8, 8, 2\]; expected .* 1, 3 or 4 channels",
    ),
    "five channels": (
        lambda tmp: arrays(tmp, images=np.zeros((12, 5, 8, 8), np.uint8)),
        {},
        r"d\.npz .* holds images uint8 \[12, 5, 8, 8\]; expected .* 1, 3 or 4 channels",
    ),
    "archive in a folder": (
        lambda tmp: arrays(tmp, images=np.zeros((12, 8, 8), np.uint8)).parent,
        {},
        r"holds no image .*; to read an \.npz, name the file itself: .*d\.npz",
    ),
    "class called test": (
        lambda tmp: classes(tmp / "d", "cat", "dog", "test"),
        {},
        r"folder 'test' in '.*d' is called like the test split, and 8 images lie outside of it "
        r"\('cat', 'dog'\): if it is a class, rename it; if .* set data\.test_folders=\[test\]",
    ),
    "class called train": (
        lambda tmp: classes(tmp / "d", "bus", "train"),
        {},
        r"folder 'train' in .* like the train split, and 4 images lie outside .* take the others",
    ),
    "two arrays for a split": (
        lambda tmp: npz(tmp / "d.npz", a=TRAIN, b=TRAIN),
        {},
        r"several uint8 image arrays for train \(a, b\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_is_named(name, tmp_path):
    make, config, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        opened(make(tmp_path), **config)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(InputError, match="split 'tset' is not one of train, validation, test"):
        open_data(ImageConfig(source=str(folder(tmp_path / "d", TRAIN))), 3, ("tset",))


# ------------------------------------------------------------------------------ content


def test_an_archive_says_what_each_split_holds(tmp_path):
    """By its directory, also of labels, and the same whether it is compressed."""

    def contents(save=np.savez, **arrays):
        save(tmp_path / "d.npz", **arrays)
        indexes = open_source(ImageConfig(source=str(tmp_path / "d.npz")))
        return [indexes[split].content for split in ("train", "test")]

    pictures = np.stack([noise(8, 8, seed) for seed in range(3)])
    labels = np.arange(3)
    before = contents(x_train=pictures, y_train=labels, x_test=pictures)
    assert (
        contents(np.savez_compressed, x_train=pictures, y_train=labels, x_test=pictures) == before
    )
    changed = contents(x_train=pictures, y_train=labels, x_test=pictures + 1)
    assert changed[0] == before[0] and changed[1] != before[1]
    relabelled = contents(x_train=pictures, y_train=labels + 1, x_test=pictures)
    assert relabelled[0] != before[0] and relabelled[1] == before[1]


def test_a_table_says_what_each_split_holds(tmp_path):
    def contents(values):
        tables(tmp_path, True)
        table(tmp_path / "test-00000-of-00001.parquet", values, True)
        indexes = open_source(ImageConfig(source=str(tmp_path)))
        return [indexes[split].content for split in ("train", "test")]

    before = contents(TEST)
    assert contents(TEST) == before
    changed = contents([3, 4, *TEST])
    assert changed[0] == before[0] and changed[1] != before[1]


def test_splits_that_are_cut_keep_what_is_said_of_the_whole(tmp_path):
    _, splits = opened(npz(tmp_path / "d.npz", images=TRAIN))
    assert len({split.index.content for split in splits.values()} - {None}) == 1
    _, splits = opened(folder(tmp_path / "d", TRAIN))
    assert {split.index.content for split in splits.values()} == {None}
