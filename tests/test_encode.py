"""Data sets become tokens: each item once, in order, and the same whoever computes them."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from data_files import torn_png, write
from token_files import (
    CUT,
    bytes_of,
    counts,
    decoded,
    encoded,
    left_out,
    picture,
    picture_table,
    pixels_of,
    rows,
    same_rows,
    same_tokens,
    shards_of,
    smooth,
    tokenizer_of,
    train_sounds,
)

import hqvae.data.audio_dataset
import hqvae.tokenizer
from hqvae.cli import main
from hqvae.run import Run
from hqvae.tokens.manifest import read_manifest


def keys_of(folder, split=None):
    return [row.key for row in rows(folder, split)]


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


def table_of_hashes(tmp):
    hashes = np.array([2**63, 1], np.uint64)
    source = picture_table(tmp / "d.parquet", [picture(i) for i in range(2)], label=hashes)
    keys = ["d.parquet row 0", "d.parquet row 1"]
    return source, dict(zip(keys, map(picture, range(2)))), dict(zip(keys, [str(2**63), "1"]))


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
@pytest.mark.parametrize(
    "make", [array_file, table_of_strings, table_of_numbers, table_of_hashes, flat_folder]
)
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
    monkeypatch.setattr("hqvae.encode.local.block_points", lambda tokenizer: 1)
    monkeypatch.setattr("hqvae.data.items._MOST_AT_ONCE", 3)
    out = encoded(picture_run, photographs, tmp_path / "t", "--shard-items", 8)
    assert bytes_of(out) == bytes_of(tokens)


def test_row_groups_end_at_the_same_rows(tokens, photographs, picture_run, tmp_path, monkeypatch):
    monkeypatch.setattr("hqvae.tokens.shards._ROW_GROUP", 100)  # codes; an item has 40
    many = encoded(picture_run, photographs, tmp_path / "many", "--shard-items", 8)
    monkeypatch.setattr("hqvae.encode.local.block_points", lambda tokenizer: 1)
    few = encoded(picture_run, photographs, tmp_path / "few", "--shard-items", 8)
    assert bytes_of(many) == bytes_of(few) and same_rows(rows(few), rows(tokens))
    assert parquet.read_metadata(few / "train-00000-of-00005.parquet").num_row_groups == 3


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
    assert said[0].startswith("4 item(s) are left out; ") and len(said) == 2
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
    out = tmp_path / "t"
    words = ["encode", str(picture_run), "--data", str(tmp_path / "d"), "--out", str(out)]
    assert main([*words, "--accelerator", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "none of 1 items could be coded" in said and "left-out.jsonl has them all" in said
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


def test_segments_that_a_file_does_not_have_are_named(sound_run, sounds, tmp_path, monkeypatch):
    """The header of one promises twice as much as there is."""
    length_at = hqvae.data.audio_dataset.length_at

    def doubled(file, rate):
        length = length_at(file, rate)
        return length._replace(frames=length.frames * (2 if length.frames == 4960 else 1))

    monkeypatch.setattr("hqvae.data.audio_dataset.length_at", doubled)
    out = encoded(sound_run, sounds, tmp_path / "t")
    assert [entry["key"] for entry in left_out(out)] == ["train/3.wav@4800", "train/3.wav@5120"]
    assert keys_of(out).count("train/3.wav@0") == 1


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


def test_weights_that_training_replaces_meanwhile_are_those_of_the_manifest(
    picture_run, photographs, tmp_path, monkeypatch
):
    """The digest is of what was loaded, however often a checkpoint falls between."""
    run = shutil.copytree(picture_run, tmp_path / "run")
    load = Run.load_model
    times = []

    def load_and_train(self):
        model = load(self)
        times.append(None)
        if len(times) < 4:
            with torch.no_grad():
                next(model.parameters()).mul_(1.5)
            self.save_model(model)
        return model

    monkeypatch.setattr(Run, "load_model", load_and_train)
    out = encoded(run, photographs, tmp_path / "t")
    monkeypatch.undo()
    expected = tokenizer_of(run).encode([photographs / row.key for row in rows(out)])
    assert len(times) == 4
    assert same_tokens([row.tokens for row in rows(out)], expected)
    assert read_manifest(out).made["model"]["sha256"] == Run.open(run).weights_sha256()
