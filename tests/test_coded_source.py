"""Which items are coded, and in which splits: those of the run, or those of other data."""

import numpy as np
import pyarrow.parquet as parquet
import pytest
from data_files import write
from token_files import (
    CUT,
    counts,
    encode_words,
    encoded,
    photographs,
    picture,
    picture_table,
    rows,
    same_rows,
    train_pictures,
)

from hqvae.cli import main


def test_nothing_is_said_of_how_to_train(picture_run, tmp_path, caplog):
    write(tmp_path / "d" / "grey.png", np.full((20, 20, 3), 7, np.uint8))
    encoded(picture_run, tmp_path / "d", tmp_path / "t")
    assert caplog.text == ""


def test_other_data_have_splits_of_their_own(picture_run, tmp_path):
    for split, count in {"train": 3, "val": 1, "test": 2}.items():
        photographs(tmp_path / "d" / split, count)
    out = encoded(picture_run, tmp_path / "d", tmp_path / "t")
    assert counts(out) == {"train": 3, "validation": 1, "test": 2}
    one = encoded(picture_run, tmp_path / "d", tmp_path / "one", "--split", "validation")
    assert counts(one) == {"validation": 1}
    assert same_rows(rows(one), rows(out, "validation"))


@pytest.mark.parametrize("count", [1, 2, 41])
def test_other_data_without_splits_are_all_train(count, picture_run, tmp_path):
    out = encoded(picture_run, photographs(tmp_path / "d", count), tmp_path / "t")
    assert counts(out) == {"train": count}


def test_the_own_data_are_meant_where_none_are_named(tokens, picture_run, tmp_path):
    out = tmp_path / "t"
    words = ["encode", str(picture_run), "--out", str(out), "--split", "test"]
    assert main([*words, "--accelerator", "cpu"]) == 0
    assert counts(out) == {"test": CUT["test"]} and same_rows(rows(out), rows(tokens, "test"))


def test_own_data_that_have_changed_keep_their_cut_with_a_warning(picture_run, tmp_path, caplog):
    source = photographs(tmp_path / "d", 20)
    run = train_pictures(str(source), tmp_path)
    write(source / "cat" / "new.png", picture(99))
    out = encoded(run, source, tmp_path / "t")
    assert counts(out) == {"train": 18, "validation": 1, "test": 2}
    assert caplog.text.count("has changed since run") == 1


def test_other_data_need_not_have_the_folders_of_the_own(tmp_path, caplog):
    """Folders that the run's config names as splits are those of its own data."""
    for fold in ("fold1", "fold2"):
        photographs(tmp_path / "d" / fold, 9)
    (tmp_path / "d" / "notes.txt").touch()
    run = train_pictures(str(tmp_path / "d"), tmp_path, "data.test_folders=[fold2]")
    caplog.clear()
    own = encoded(run, tmp_path / "d", tmp_path / "own")
    assert counts(own) == {"train": 8, "validation": 1, "test": 9}
    assert caplog.text.count("1 .txt file") == 1  # said once
    other = encoded(run, photographs(tmp_path / "other", 5), tmp_path / "t")
    assert counts(other) == {"train": 5}


def test_other_tables_need_not_have_the_column_of_the_own(tmp_path):
    pictures = [picture(i) for i in range(20)]
    own = picture_table(tmp_path / "own.parquet", pictures, other=[b"x"] * 20)
    run = train_pictures(str(own), tmp_path, "data.column=image")
    assert sum(counts(encoded(run, own, tmp_path / "o")).values()) == 20
    table = parquet.read_table(own).drop_columns("other").rename_columns(["scan"])
    parquet.write_table(table, tmp_path / "scans.parquet")
    assert counts(encoded(run, tmp_path / "scans.parquet", tmp_path / "t")) == {"train": 20}


@pytest.mark.parametrize(
    ("split", "said"),
    [("test", "has no test split; expected one of: train"), ("tset", "did you mean 'test'?")],
)
def test_a_split_that_is_not_there_is_said(split, said, picture_run, tmp_path, capsys):
    source = photographs(tmp_path / "d", 3)
    words = encode_words(picture_run, source, tmp_path / "t", "--split", split)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "t").exists()
