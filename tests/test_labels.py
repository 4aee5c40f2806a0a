"""Labels of items: each source gives those it has, and each stays with its item."""

import json

import numpy as np
import pytest
from data_files import TEST, TRAIN, folder, folders, opened, png, solid, write

from hqvae.data import IMAGE, FileIndex, ImageConfig, Splits, cut_splits, open_data, open_source
from hqvae.data.sources.hub import index_hub

NAMES = ["cat", "dog", "owl"]


def indexes_of(source, **config):
    return open_source(ImageConfig(source=str(source), **config))


def labels_of(source, **config):
    """Labels of the splits that a source declares."""
    return {name: index.labels for name, index in indexes_of(source, **config).items()}


def pictures_at(root, *paths):
    for path in paths:
        write(root / path, solid(7))
    return root


def table(path, names=None, **columns):
    """A Parquet file of pictures with further columns; `names` are the classes of `label`."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    count = len(next(iter(columns.values())))
    written = pa.table({"image": [png(solid(i)) for i in range(count)], **columns})
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        written = written.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(written, path)
    return path


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


def pictures(count):
    return np.zeros((count, 8, 8, 3), np.uint8)


# ------------------------------------------------------------------------------------------ indexes


def test_a_subset_keeps_each_label_with_its_item():
    whole = FileIndex([f"{i}" for i in range(6)], int, labels=[*range(5), None], label_names=NAMES)
    part = whole.subset([5, 2, 3]).subset([2, 0])
    assert (list(part.names), part.labels, part.label_names) == (["3", "5"], [3, None], NAMES)
    assert FileIndex(["a"], int).subset([0]).labels is None


def test_a_label_is_of_an_item():
    with pytest.raises(ValueError, match="2 labels for 3 items"):
        FileIndex(["a", "b", "c"], int, labels=[0, 1])


def test_splits_that_are_cut_keep_each_label_with_its_item():
    names = [f"{i}" for i in range(40)]
    whole = FileIndex(names, int, labels=list(range(40)), label_names=NAMES)
    for part in cut_splits({"train": whole}, {"test": 0.2, "validation": 0.1}, seed=3).values():
        assert [str(label) for label in part.labels] == list(part.names)
        assert part.label_names == NAMES


OTHERS = ["a", "b", "c"]


@pytest.mark.parametrize(
    "train, validation, expected",
    [(NAMES, tuple(NAMES), NAMES), (None, NAMES, NAMES), (NAMES, OTHERS, None), (None, None, None)],
)
def test_the_classes_of_all_splits_are_those_of_splits_that_agree(train, validation, expected):
    named = {"train": train, "validation": validation, "test": None}
    indexes = {
        split: FileIndex(["a"], int, labels=[0], label_names=names)
        for split, names in named.items()
    }
    assert Splits({}, indexes).label_names == expected


def test_a_dataset_has_the_labels_of_its_items(tmp_path):
    _, splits = opened(folder(tmp_path / "d", TRAIN, classes=3))
    for images in splits.values():
        assert images.labels == [key.split("/")[0] for key in images.keys]


def test_photographs_have_none():
    pytest.importorskip("skimage")
    assert {index.labels for index in indexes_of("photos", size=64).values()} == {None}


# ------------------------------------------------------------------------------------------ folders


def test_a_file_is_of_the_class_of_its_folder(tmp_path):
    assert labels_of(pictures_at(tmp_path / "d", "cat/1.png", "dog/old/2.png")) == {
        "train": ["cat", "dog"]
    }


def test_a_class_folder_lies_below_the_splits(tmp_path):
    root = folders(tmp_path / "d", "train", "test")
    found = labels_of(root)
    assert found["test"] == ["class0"] * len(TEST)
    assert sorted(found["train"]) == ["class0"] * 6 + ["class1"] * 6
    deep = pictures_at(tmp_path / "deep", "v1/train/cat/1.png", "v1/val/dog/2.png")
    assert labels_of(deep) == {"train": ["cat"], "validation": ["dog"]}


def test_a_file_beside_the_class_folders_has_none(tmp_path):
    root = pictures_at(tmp_path / "d", "train/1.png", "train/cat/2.png", "test/3.png")
    assert labels_of(root) == {"train": [None, "cat"], "test": None}
    assert labels_of(pictures_at(tmp_path / "flat", "1.png", "2.png")) == {"train": None}


@pytest.mark.parametrize(
    ("paths", "label"),
    [
        (["fold1/1.png", "fold2/2.png"], None),
        (["fold1/cat/1.png", "fold2/cat/2.png"], ["cat"]),
        (["cat/fold1/1.png", "cat/fold2/2.png"], ["cat"]),
        (["train/cat/1.png", "fold2/cat/2.png"], ["cat"]),
    ],
    ids=lambda value: " ".join(value) if value else "none",
)
def test_folds_are_no_classes(paths, label, tmp_path):
    """Neither the one that is named, nor those beside it that are called alike."""
    root = pictures_at(tmp_path / "d", *paths)
    assert labels_of(root, test_folders=("fold2",)) == {"train": label, "test": label}


def test_classes_beside_a_named_split_stay_classes(tmp_path):
    root = pictures_at(tmp_path / "d", "cat/1.png", "dog/2.png", "test/cat/3.png", "test/4.png")
    found = labels_of(root, test_folders=("test",))
    assert found == {"train": ["cat", "dog"], "test": [None, "cat"]}


SPLIT_TABLES = {
    "csv": (
        "metadata.csv",
        "file_name,split,label\nx/a.png,train,3\nx/b.png,train,\n",
        ["3", None],
    ),
    "jsonl": (
        "metadata.jsonl",
        '{"file_name": "x/a.png", "split": "train", "label": 3}\n'
        '{"file_name": "x/b.png", "split": "train", "label": null}\n',
        [3, None],
    ),
    "without labels": (
        "metadata.csv",
        "file_name,split\nx/a.png,train\nx/b.png,train\n",
        ["x"] * 2,
    ),
    "labels of no kind": (
        "metadata.jsonl",
        '{"file_name": "x/a.png", "split": "train", "label": 0.5}\n'
        '{"file_name": "x/b.png", "split": "train", "label": 1.5}\n',
        ["x"] * 2,
    ),
}


@pytest.mark.parametrize("name", SPLIT_TABLES)
def test_a_tables_labels_count_instead_of_folders(name, tmp_path):
    file, text, expected = SPLIT_TABLES[name]
    root = pictures_at(tmp_path / "d", "x/a.png", "x/b.png")
    (root / file).write_text(text)
    assert labels_of(root) == {"train": expected}


def test_a_split_table_of_parquet_has_labels_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    root = pictures_at(tmp_path / "d", "a.png", "b.png")
    rows = {"file_name": ["b.png", "a.png"], "split": ["train", "test"], "label": [0, 1]}
    parquet.write_table(pa.table(rows), root / "metadata.parquet")
    assert labels_of(root) == {"train": [0], "test": [1]}


# ------------------------------------------------------------------------------------------- tables

COLUMNS = {
    "integers": ({"label": [2, 0, None]}, [2, 0, None]),
    "strings": ({"label": ["dog", None, "cat"]}, ["dog", None, "cat"]),
    "truth values": ({"label": [True, False, None]}, [1, 0, None]),
    "called labels": ({"labels": [2, 0, 1]}, [2, 0, 1]),
    "called class": ({"class": [2, 0, 1]}, [2, 0, 1]),
    "fine and coarse": ({"coarse_label": [0, 0, 0], "fine_label": [2, 0, 1]}, [2, 0, 1]),
    "lists, and a class": ({"label": [[1], [2], [3]], "class": [2, 0, 1]}, [2, 0, 1]),
    "lists": ({"labels": [[1], [2], [3]]}, None),
    "floats": ({"label": [0.5, 1.0, 2.0]}, None),
    "nulls": ({"label": [None, None, None]}, None),
    "none": ({"other": [1, 2, 3]}, None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_tables_column_of_labels(name, tmp_path):
    columns, expected = COLUMNS[name]
    index = indexes_of(table(tmp_path / "d.parquet", **columns))["train"]
    assert (index.labels, index.label_names) == (expected, None)
    assert expected is None or list(map(type, index.labels)) == list(map(type, expected))


def test_strings_that_share_their_values_are_labels(tmp_path):
    """As pandas writes categories."""
    pa = pytest.importorskip("pyarrow")
    shared = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    assert labels_of(table(tmp_path / "d.parquet", label=shared)) == {
        "train": ["dog", "cat", "dog"]
    }


def test_names_of_classes_stand_in_the_schema(tmp_path):
    """A negative number is no label: the library `datasets` writes it where there is none."""
    index = indexes_of(table(tmp_path / "d.parquet", NAMES, label=[2, -1, 0]))["train"]
    assert (index.labels, index.label_names) == ([2, None, 0], NAMES)
    _, splits = open_data(ImageConfig(source=str(tmp_path / "d.parquet")), channels=3)
    assert splits["test"].index.label_names == NAMES


@pytest.mark.parametrize(
    "metadata", [b"no JSON", b"\xff", b"[]", b'{"info": {"features": {"label": {"names": [1]}}}}']
)
def test_other_metadata_names_no_classes(metadata, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = table(tmp_path / "d.parquet", label=[2, 0, 1])
    written = parquet.read_table(path).replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(written, path)
    index = indexes_of(path)["train"]
    assert (index.labels, index.label_names) == ([2, 0, 1], None)


def test_shards_of_a_split_have_their_labels_in_turn(tmp_path, caplog):
    table(tmp_path / "d" / "train-0.parquet", NAMES, label=[2, 1])
    table(tmp_path / "d" / "train-1.parquet", NAMES, label=[0])
    table(tmp_path / "d" / "test.parquet", other=[0.5])
    found = indexes_of(tmp_path / "d")
    assert (found["train"].labels, found["train"].label_names) == ([2, 1, 0], NAMES)
    assert (found["test"].labels, found["test"].label_names) == (None, None)
    assert caplog.text == ""


@pytest.mark.parametrize("other", [{"other": [0]}, {"label": ["cat"]}], ids=["none", "strings"])
def test_labels_that_only_some_shards_have_are_left_out_with_a_warning(other, tmp_path, caplog):
    table(tmp_path / "d" / "train-0.parquet", label=[2, 1])
    table(tmp_path / "d" / "train-1.parquet", **other)
    assert labels_of(tmp_path / "d") == {"train": None}
    assert "not all 2 tables of a split have a column 'label'" in caplog.text


def test_names_that_shards_disagree_on_are_none(tmp_path):
    table(tmp_path / "d" / "train-0.parquet", NAMES, label=[2, 1])
    table(tmp_path / "d" / "train-1.parquet", NAMES[::-1], label=[0])
    index = indexes_of(tmp_path / "d")["train"]
    assert (index.labels, index.label_names) == ([2, 1, 0], None)


def test_a_hub_data_set_has_the_labels_of_its_column(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folders(tmp_path / "d", "train", "test")
    index = index_hub(str(tmp_path / "d"), None, IMAGE)["train"]
    assert index.label_names == ["class0", "class1"]
    values = [index.open(i).getpixel((0, 0))[0] for i in range(len(index))]
    assert index.labels == [TRAIN.index(value) % 2 for value in values]
    flat = pictures_at(tmp_path / "flat", "train/a.png", "train/b.png")
    assert index_hub(str(flat), None, IMAGE)["train"].labels is None


# ------------------------------------------------------------------------------------------- arrays

ARCHIVES = {
    "x and y": {"x_train": pictures(3), "y_train": [2, 0, 1]},
    "x and y in capitals": {"X_train": pictures(3), "Y_train": [2, 0, 1]},
    "images and labels": {"train_images": pictures(3), "train_labels": [[2], [0], [1]]},
    "a lone array, labels": {"pictures": pictures(3), "labels": [2, 0, 1]},
    "a lone array, y": {"x": pictures(3), "y": [[2], [0], [1]]},
    "a lone array, bytes": {"x": pictures(3), "y": np.array([2, 0, 1], np.uint8)},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archives_labels_go_by_the_name_of_the_pictures(name, tmp_path):
    index = indexes_of(archive(tmp_path / "d.npz", **ARCHIVES[name]))["train"]
    assert (index.labels, index.label_names) == ([2, 0, 1], None)
    assert {type(label) for label in index.labels} == {int}


NO_LABELS = {
    "of another length": {"x_train": pictures(3), "y_train": [2, 0]},
    "floats": {"x_train": pictures(3), "y_train": [2.0, 0.0, 1.0]},
    "one-hot": {"x_train": pictures(3), "y_train": np.eye(3, dtype=int)},
    "objects": {"x_train": pictures(3), "y_train": np.array([None, {}, 1])},
    "of another split": {"x_train": pictures(3), "y_test": [2, 0, 1]},
    "of another name": {"x_train": pictures(3), "ages": [2, 0, 1]},
}


@pytest.mark.parametrize("name", NO_LABELS)
def test_other_arrays_are_no_labels(name, tmp_path):
    assert labels_of(archive(tmp_path / "d.npz", **NO_LABELS[name])) == {"train": None}


def test_each_array_has_its_own_labels(tmp_path):
    """And `labels` could be of either."""
    arrays = {"x_train": pictures(3), "x_test": pictures(2), "y_test": [5, 4], "labels": [1, 1, 1]}
    assert labels_of(archive(tmp_path / "d.npz", **arrays)) == {"train": None, "test": [5, 4]}
