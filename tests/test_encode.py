"""Data sets become tokens: each item once, in order, and the same whoever computes them."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from data_files import torn_png, write
from token_files import (
    CUT,
    bytes_of,
    decoded,
    encode_words,
    encoded,
    left_out,
    photographs,
    picture,
    picture_table,
    pixels_of,
    rows,
    same_rows,
    shards_of,
    smooth,
    tokenizer_of,
    train_pictures,
    train_sounds,
)

import hqvae.tokenizer
from hqvae.cli import main
from hqvae.tokens import same_tokens
from hqvae.tokens.manifest import read_manifest


def keys_of(folder, split=None):
    return [row.key for row in rows(folder, split)]


def counts(folder):
    return {name: split.rows for name, split in read_manifest(folder).splits.items()}


# ------------------------------------------------------------------------------ rows


def test_there_is_one_row_for_each_picture_in_order(tokens, photographs, picture_run):
    found = rows(tokens)
    paths = sorted(str(path.relative_to(photographs)) for path in photographs.rglob("*.png"))
    assert sorted(row.key for row in found) == paths and counts(tokens) == CUT
    for split in CUT:
        assert keys_of(tokens, split) == sorted(keys_of(tokens, split))
    for row in found:
        assert row.label == row.key.split("/")[0]
        assert row.original_size == pixels_of(photographs / row.key).shape[:2]
        assert row.tokens.size == (16, 16) and row.tokens.shapes == ((2, 2),) * 2 + ((4, 4),) * 2
    expected = tokenizer_of(picture_run).encode([photographs / row.key for row in found])
    assert same_tokens([row.tokens for row in found], expected)


def array_file(tmp):
    """(source, key → picture, key → label) of an .npz with two splits."""
    split = {"x_train": [smooth(16, 16, i) for i in range(6)]}
    split["x_test"] = [smooth(16, 16, 90 + i) for i in range(3)]
    labels = {"y_train": np.arange(6) % 4, "y_test": np.arange(3) + 2}
    np.savez(tmp / "d.npz", **{name: np.stack(held) for name, held in split.items()}, **labels)
    held = {f"{name}[{i}]": one for name, held in split.items() for i, one in enumerate(held)}
    said = {key: int(labels["y" + key[1:-3]][int(key[-2])]) for key in held}
    return tmp / "d.npz", held, said


def table_of_strings(tmp):
    pictures = [picture(i) for i in range(7)]
    labels = ["élan", None, "b", "a", "b", "a", "a"]
    picture_table(tmp / "d" / "test.parquet", pictures, label=labels)
    keys = [f"test.parquet row {i}" for i in range(7)]
    return tmp / "d", dict(zip(keys, pictures)), dict(zip(keys, labels))


def table_of_numbers(tmp):
    pictures = [picture(i) for i in range(7)]
    source = picture_table(tmp / "d.parquet", pictures, label=[0, 1, 2**40, -3, 1, 1, 0])
    keys = [f"d.parquet row {i}" for i in range(7)]
    return source, dict(zip(keys, pictures)), dict(zip(keys, [0, 1, 2**40, -3, 1, 1, 0]))


def flat_folder(tmp):
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        write(tmp / "d" / name, picture(i))
    return tmp / "d", {name: picture(i) for i, name in enumerate(names)}, dict.fromkeys(names)


@pytest.mark.parametrize("whole", [False, True], ids=["as trained", "whole"])
@pytest.mark.parametrize("make", [array_file, table_of_strings, table_of_numbers, flat_folder])
def test_every_source_gives_its_keys_labels_and_pictures(make, whole, picture_run, tmp_path):
    source, held, labels = make(tmp_path)
    out = encoded(picture_run, source, tmp_path / "t", *(["--whole"] if whole else []))
    found = rows(out)
    assert [row.key for row in found] == list(held)
    assert {row.key: row.label for row in found} == labels
    expected = tokenizer_of(picture_run).encode([held[row.key] for row in found], whole)
    assert same_tokens([row.tokens for row in found], expected)
    assert [row.original_size for row in found] == [one.shape[:2] for one in held.values()]


def test_the_built_in_photographs_are_coded(picture_run, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    few = {"train": ("brick",), "validation": ("camera",)}
    monkeypatch.setattr("hqvae.data.sources.photos.PHOTOS", few)
    out = encoded(picture_run, "photos", tmp_path / "t", "--split", "validation")
    found = rows(out)
    assert len(set(keys_of(out))) == len(found) == read_manifest(out).splits["validation"].items
    assert {row.label for row in found} == {None} and len(found) == 32**2


def test_names_that_are_not_utf8_are_escaped(picture_run, tmp_path):
    folder = os.fsencode(tmp_path / "d") + b"/caf\xe9"
    os.makedirs(folder)
    for i in range(3):
        with open(folder + b"/\xff%d.png" % i, "wb") as file:
            file.write(write(tmp_path / "one.png", picture(i)).read_bytes())
    out = encoded(picture_run, tmp_path / "d", tmp_path / "t")
    assert keys_of(out) == [f"caf\\udce9/\\udcff{i}.png" for i in range(3)]
    assert {row.label for row in rows(out)} == {"caf\\udce9"}
    files = decoded(picture_run, out, tmp_path / "files")
    assert list(bytes_of(files)) == [f"caf_udce9/_udcff{i}.png" for i in range(3)]


# ------------------------------------------------------------------------------ sounds


def test_segments_of_sounds_are_named_by_their_first_sample(sound_run, sounds, tmp_path):
    out = encoded(sound_run, sounds, tmp_path / "t")
    starts = {"train/0.wav": [0, 4800, 9600, 11200], "train/3.wav": [0, 160]}
    starts |= {"validation/1.wav": [0, 4800, 6400], "test/2.wav": [0]}
    lengths = {"train/0.wav": 16000, "train/3.wav": 4960, "validation/1.wav": 11200}
    lengths["test/2.wav"] = 4000
    found = rows(out)
    keys = [f"{name}@{start}" for name, begins in starts.items() for start in begins]
    assert [row.key for row in found] == keys
    soundfile = pytest.importorskip("soundfile")
    segments = []
    for row in found:
        name, start = row.key.split("@")
        assert row.original_size == (lengths[name],) and row.tokens.size == (4800,)
        samples = soundfile.read(sounds / name, dtype="int16")[0][int(start) :][:4800]
        segments.append(np.pad(samples, (0, 4800 - len(samples))))
    assert same_tokens([row.tokens for row in found], tokenizer_of(sound_run).encode(segments))


@pytest.mark.parametrize("name", ["rsqvae-audio", "sqvae-mel"])
def test_whole_sounds_come_back_with_all_their_samples(name, sound_run, sounds, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    run = sound_run
    if name != "rsqvae-audio":
        run = train_sounds(sounds, tmp_path, name, "data.frontend.mels=16")
    out = encoded(run, sounds, tmp_path / "t", "--whole")
    found = rows(out)
    assert [row.key for row in found] == [f"{p}.wav" for p in SOUND_KEYS]
    expected = tokenizer_of(run).encode([sounds / row.key for row in found])
    assert same_tokens([row.tokens for row in found], expected)
    files = decoded(run, out, tmp_path / "files")
    for row in found:
        before = soundfile.info(sounds / row.key)
        after = soundfile.info(files / row.key)
        length = row.original_size[0]
        assert after.frames == length and after.samplerate == read_rate(run)
        assert abs(length - before.frames * after.samplerate / before.samplerate) <= 0.5


SOUND_KEYS = ("train/0", "train/3", "validation/1", "test/2")


def read_rate(run):
    return json.loads((run / "config.json").read_text())["data"]["rate"]


# ------------------------------------------------------------------------------ the same bytes


def test_threads_and_readers_change_no_byte(tokens, photographs, picture_run, tmp_path):
    threads = torch.get_num_threads()
    words = ("--shard-items", 8)
    for count in (1, 2):
        for workers in (1, 4):
            try:
                torch.set_num_threads(count)
                out = tmp_path / f"{count}-{workers}"
                encoded(picture_run, photographs, out, *words, "--workers", workers)
            finally:
                torch.set_num_threads(threads)
            assert bytes_of(out) == bytes_of(tokens)


def test_shards_of_another_size_hold_the_same_rows(tokens, photographs, picture_run, tmp_path):
    out = encoded(picture_run, photographs, tmp_path / "t", "--shard-items", 10)
    assert same_rows(rows(out), rows(tokens)) and shards_of(out).keys() != shards_of(tokens).keys()
    one = encoded(picture_run, photographs, tmp_path / "one")
    assert same_rows(rows(one), rows(tokens)) and len(shards_of(one)) == 3


def test_a_block_of_few_batches_changes_no_byte(
    tokens, photographs, picture_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("hqvae.encode.local._BATCHES", 1e-4)
    monkeypatch.setattr("hqvae.data.items._AT_ONCE", 3)
    out = encoded(picture_run, photographs, tmp_path / "t", "--shard-items", 8)
    assert bytes_of(out) == bytes_of(tokens)


def test_data_that_have_moved_give_the_same_bytes(tokens, photographs, picture_run, tmp_path):
    moved = shutil.copytree(photographs, tmp_path / "elsewhere")
    out = encoded(picture_run, moved, tmp_path / "t", "--shard-items", 8)
    assert shards_of(out) == shards_of(tokens) and counts(out) == CUT
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (out, tokens)]
    assert [manifest.pop("source") for manifest in manifests] == [str(moved), str(photographs)]
    assert manifests[0] == manifests[1]


# ------------------------------------------------------------------------------ what is broken


def with_broken(root, count=12):
    """A folder in which two pictures are broken, one is no picture and one is too small."""
    for i in range(count):
        write(root / f"{i:02d}.png", picture(i))
    write(root / "03.png", torn_png())
    write(root / "05.png", b"no picture")
    write(root / "07.png", torn_png())
    write(root / "09.png", smooth(15, 40, 0))
    return root


def test_what_is_broken_is_left_out_and_listed(picture_run, tmp_path, capsys):
    source = with_broken(tmp_path / "d")
    capsys.readouterr()
    out = encoded(picture_run, source, tmp_path / "t", "--shard-items", 4)
    said = capsys.readouterr().out.splitlines()
    listed = left_out(out)
    assert [entry["key"] for entry in listed] == ["03.png", "05.png", "07.png", "09.png"]
    assert {entry["split"] for entry in listed} == {"train"}
    assert listed[3]["reason"] == "smaller than data.size=16"
    assert listed[1]["reason"] == "cannot identify image file"
    assert "truncated" in listed[0]["reason"]
    split = read_manifest(out).splits["train"]
    assert (split.items, split.rows, split.left_out) == (12, 8, 4)
    assert sum(read_manifest(out).left_out.values()) == 4
    assert read_manifest(out).left_out["smaller than data.size=16"] == 1
    assert said[0].startswith("4 items are left out; ") and len(said) == 2
    # None takes another's place.
    kept = [f"{i:02d}.png" for i in range(12) if i not in (3, 5, 7, 9)]
    assert keys_of(out) == kept
    expected = tokenizer_of(picture_run).encode([source / key for key in kept])
    assert same_tokens([row.tokens for row in rows(out)], expected)


def test_what_is_broken_is_so_in_a_folder_elsewhere(picture_run, tmp_path):
    """Reasons name no place, so that shards are the same."""
    out = encoded(picture_run, with_broken(tmp_path / "d"), tmp_path / "t")
    shutil.move(tmp_path / "d", tmp_path / "e")
    assert shards_of(encoded(picture_run, tmp_path / "e", tmp_path / "u")) == shards_of(out)


def test_a_small_picture_is_coded_whole(picture_run, tmp_path):
    source = with_broken(tmp_path / "d")
    write(source / "one.png", smooth(1, 1, 0))
    out = encoded(picture_run, source, tmp_path / "t", "--whole")
    assert [entry["key"] for entry in left_out(out)] == ["03.png", "05.png", "07.png"]
    small = {row.key: row for row in rows(out)}
    assert small["09.png"].tokens.size == (15, 40) and small["one.png"].tokens.size == (1, 1)


def test_a_set_of_broken_pictures_has_no_row(picture_run, tmp_path, capsys):
    write(tmp_path / "d" / "a.png", torn_png())
    out = encoded(picture_run, tmp_path / "d", tmp_path / "t")
    assert rows(out) == [] and counts(out) == {"train": 0}
    assert bytes_of(decoded(picture_run, out, tmp_path / "files")) == {}


def test_broken_sounds_are_listed_with_and_without_segments(sound_run, sounds, tmp_path):
    source = shutil.copytree(sounds, tmp_path / "d")
    content = (source / "train" / "0.wav").read_bytes()
    (source / "train" / "9.wav").write_bytes(b"no sound")
    (source / "train" / "empty.wav").write_bytes(content[:44])
    for words in ([], ["--whole"], ["--shard-items", 1]):
        out = encoded(sound_run, source, tmp_path / "-".join(map(str, ["t", *words])), *words)
        listed = left_out(out)
        assert [entry["key"] for entry in listed] == ["train/9.wav", "train/empty.wav"], words
        split = read_manifest(out).splits["train"]
        assert (split.left_out, split.items) == (2, split.rows + 2)
        same = encoded(sound_run, sounds, f"{out}-good", *words)
        assert same_rows(rows(out), rows(same))


# ------------------------------------------------------------------------------ splits


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
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = parquet.read_table(own).drop_columns("other").rename_columns(["scan"])
    parquet.write_table(pa.table(table), tmp_path / "scans.parquet")
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


# ------------------------------------------------------------------------------ whole pictures


def test_whole_pictures_are_coded_in_windows_and_come_back_at_their_size(
    picture_run, tmp_path, monkeypatch
):
    monkeypatch.setitem(hqvae.tokenizer._LARGEST, 2, 64)  # or four margins
    source = tmp_path / "d"
    sizes = [(16, 16), (700, 17), (7, 900), (120, 666), (1, 1), (33, 48)]
    for i, size in enumerate(sizes):
        write(source / f"{i}.png", smooth(*size, i))
    tokenizer = tokenizer_of(picture_run)
    assert len(tokenizer._encoding.of((120, 666))) > 1
    out = encoded(picture_run, source, tmp_path / "t", "--whole")
    assert [row.original_size for row in rows(out)] == sizes
    assert [row.tokens.size for row in rows(out)] == sizes
    expected = tokenizer.encode(sorted(source.iterdir()), whole=True)
    assert same_tokens([row.tokens for row in rows(out)], expected)
    files = decoded(picture_run, out, tmp_path / "files")
    for i, size in enumerate(sizes):
        assert pixels_of(files / f"{i}.png").shape == (*size, 3)
