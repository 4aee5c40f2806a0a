"""A folder that is not what its manifest says, or not what was asked for, is refused and kept."""

import copy
import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from data_files import write
from token_files import (
    bytes_of,
    decode_words,
    encode_words,
    encoded,
    photographs,
    picture_table,
    refused,
    rows,
    smooth,
)

from hqvae.cli import main
from hqvae.errors import InputError
from hqvae.run import Run
from hqvae.tokens.manifest import TokenFolder

WORDS = ("--shard-items", 8)

# ------------------------------------------------------------------------------ refused


def flip(path, byte=60):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def foreign(folder):
    parquet.write_table(pa.table({"a": [1]}), folder / "a.parquet")


TRAIN = "train-00001-of-00005.parquet"
DAMAGE = {
    "a byte": (lambda f: flip(f / TRAIN), f"{TRAIN} is damaged: it has not the checksum"),
    "a byte of the footer": (lambda f: flip(f / TRAIN, -200), f"{TRAIN} is damaged"),
    "cut": (lambda f: os.truncate(f / TRAIN, 2000), f"{TRAIN} is damaged"),
    "cut to nothing": (lambda f: os.truncate(f / TRAIN, 0), f"{TRAIN} is damaged"),
    "doubled": (lambda f: shutil.copy(f / TRAIN, f / "more.parquet"), "take it out"),
    "foreign": (foreign, "a.parquet is no"),
    "newer": (lambda f: change(f, format=2), "manifest.json has format 2, and this version"),
    "no JSON": (lambda f: os.truncate(f / "manifest.json", 99), "manifest.json is damaged"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "expected a JSON object"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "holds"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_damage_is_found_and_named(verb, name, copied, picture_run, photographs, tmp_path, capsys):
    damage, said = DAMAGE[name]
    damage(copied)
    before = bytes_of(copied)
    if verb == "encode":
        words = encode_words(picture_run, photographs, copied, *WORDS)
    else:
        words = decode_words(picture_run, copied, tmp_path / "files")
    line = refused(words, capsys)
    assert said.replace("is no", "is no" if verb == "decode" else "is none") in line
    assert bytes_of(copied) == before and not (tmp_path / "files").exists()


def test_what_is_said_of_a_damaged_shard_helps(copied, tokens, picture_run, photographs, capsys):
    flip(copied / TRAIN)
    words = encode_words(picture_run, photographs, copied, *WORDS)
    assert "delete it, and the same `hqvae encode` writes it again" in refused(words, capsys)
    (copied / TRAIN).unlink()
    assert main(words) == 0
    assert bytes_of(copied) == bytes_of(tokens)


def paths_into(value, path=()):
    """All keys of JSON, and of its parts."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from paths_into(part, (*path, key))


OTHERS = [None, 7, -1, 0.5, "x", [], {}, True, [7], {"a": 7}, "../../x", 10**30]


def test_a_manifest_of_another_shape_is_said_to_be_damaged(copied, picture_run, photographs):
    """Every key is deleted and retyped in turn: it is refused, or what is read is as before."""
    path = copied / "manifest.json"
    content = json.loads(path.read_text())
    choose = random.Random(0)
    read = 0
    for keys in paths_into(content):
        for other in ["deleted", *choose.sample(OTHERS, 4)]:
            changed = copy.deepcopy(content)
            parent = changed
            for key in keys[:-1]:
                parent = parent[key]
            if other == "deleted":
                del parent[keys[-1]]
            else:
                parent[keys[-1]] = other
            path.write_text(json.dumps(changed))
            try:
                folder = TokenFolder(copied)
                for _, shard in folder.shards():
                    folder.check(shard)
                assert folder.manifest.layout.stride and folder.manifest.rows >= 0
                read += 1
            except InputError as error:
                assert "\n" not in str(error)
    assert 0 < read < 300  # free texts, and numbers that nothing depends on


def run_without_weights(picture_run, tmp_path):
    run = shutil.copytree(picture_run, tmp_path / "weightless")
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    return run


NOT_OURS = {
    "engine": (["--engine", "nonsense"], "engine 'nonsense' does not exist"),
    "workers": (["--workers", "0"], "--workers 0: expected at least 1"),
    "shard items": (["--shard-items", "0"], "--shard-items 0: expected at least 1"),
    "accelerator": (["--accelerator", "gpu"], "accelerator 'gpu' does not exist"),
    "address": (["--address", "auto"], "--address 'auto' is of a Ray cluster"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_options_that_cannot_be_are_refused(name, picture_run, photographs, tmp_path, capsys):
    words, said = NOT_OURS[name]
    words = ["encode", str(picture_run), "--data", str(photographs), *words]
    assert said in refused([*words, "--out", str(tmp_path / "t")], capsys)
    assert list(tmp_path.iterdir()) == []


OTHER_COMMANDS = {
    "of other data": {"source": lambda tmp: photographs(tmp / "other", 5)},
    "prepared in another way": {"words": [*WORDS, "--whole"]},
    "in shards of another size": {"words": ["--shard-items", 9]},
    "in shards of another size ": {"words": []},
    "of other splits": {"words": [*WORDS, "--split", "test"]},
    "of another model": {"run": lambda run, tmp: another_run(run, tmp)},
}


def another_run(run, tmp):
    """The same run, with one weight that is another."""
    other = shutil.copytree(run, tmp / "run")
    model = Run.open(other).load_model()
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 0.5
    Run.open(other).save_model(model)
    return other


@pytest.mark.parametrize("said", OTHER_COMMANDS)
def test_tokens_of_something_else_are_not_gone_on_with(
    said, copied, picture_run, photographs, tmp_path, capsys
):
    command = {"words": WORDS, **OTHER_COMMANDS[said]}
    source = command["source"](tmp_path) if "source" in command else photographs
    run = command["run"](picture_run, tmp_path) if "run" in command else picture_run
    before = bytes_of(copied)
    line = refused(encode_words(run, source, copied, *command["words"]), capsys)
    assert said.strip().removeprefix("of other splits") in line
    assert line.endswith("choose another folder") and bytes_of(copied) == before


def test_what_is_no_place_for_tokens_is_refused(picture_run, tmp_path, capsys):
    source = photographs(tmp_path / "d", 4)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    before = bytes_of(tmp_path)
    for data, out, said in [
        (source, source / "t", "lies inside of --data"),
        (source, tmp_path / "file", "is a file; expected a new folder"),
        (source, tmp_path / "file" / "t", "cannot be made: Not a directory"),
        (source, tmp_path / "full", "already holds files that are no tokens"),
        (tmp_path / "empty", tmp_path / "t", "holds no image"),
        (tmp_path / "missing", tmp_path / "t", "does not exist"),
        (tmp_path / "full", tmp_path / "t", "holds no image"),
    ]:
        assert said in refused(encode_words(picture_run, data, out), capsys)
    run = run_without_weights(picture_run, tmp_path)
    line = refused(encode_words(run, source, tmp_path / "t"), capsys)
    assert "has no weights yet" in line
    shutil.rmtree(run)
    assert bytes_of(tmp_path) == before and not (tmp_path / "t").exists()


def test_tokens_lie_nowhere_among_data(picture_run, tmp_path, capsys):
    """Parquet is read wherever it lies: beside folders of splits too, where a run may be."""
    for split in ("train", "test"):
        picture_table(tmp_path / "d" / split / "0000.parquet", [smooth(16, 16, 1)] * 4)
    before = bytes_of(tmp_path)
    for out in ("d", "d/tokens", "d/train/tokens"):
        line = refused(encode_words(picture_run, tmp_path / "d", tmp_path / out), capsys)
        assert "lies inside of --data" in line and bytes_of(tmp_path) == before


def test_an_empty_folder_serves(picture_run, tmp_path):
    source = photographs(tmp_path / "d", 4)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / ".manifest.json.partial").touch()  # of a process that was killed
    assert len(rows(encoded(picture_run, source, tmp_path / "t"))) == 4


# ------------------------------------------------------------------------------ the same names


def array_source(folder, values):
    path = folder / "d.npz"
    np.savez(path, x_train=np.stack([smooth(16, 16, value) for value in values]))
    return path


def table_source(folder, values):
    return picture_table(folder / "d.parquet", [smooth(16, 16, value) for value in values])


def labelled_source(folder, values):
    """The same pictures always, with other labels."""
    lines = ["file_name,split,label"]
    for i, value in enumerate(values):
        write(folder / f"{i}.png", smooth(16, 16, i))
        lines.append(f"{i}.png,train,{value}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("make", [array_source, table_source, labelled_source])
def test_data_of_the_same_names_do_not_mix(make, picture_run, tmp_path, capsys):
    """What lies in an archive or a table, and labels, may differ where names do not."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = make(tmp_path / "one", range(6))
    other = make(tmp_path / "other", range(10, 16))
    out = encoded(picture_run, one, tmp_path / "t", "--shard-items", 2)
    whole = bytes_of(out)
    (out / "train-00001-of-00003.parquet").unlink()
    line = refused(encode_words(picture_run, other, out, "--shard-items", 2), capsys)
    assert "holds tokens of other data, or of other splits" in line
    moved = shutil.copytree(tmp_path / "one", tmp_path / "moved")
    same = moved if one.is_dir() else moved / one.name
    assert bytes_of(encoded(picture_run, same, out, "--shard-items", 2)) == whole
