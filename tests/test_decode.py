"""Tokens become files: the model's reconstructions, each under the name of its item."""

import errno
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from data_files import write
from PIL import Image
from token_files import (
    bytes_of,
    decode_words,
    decoded,
    encode_words,
    encoded,
    photographs,
    picture,
    pixels_of,
    refused,
    rows,
    smooth,
    tokenizer_of,
)

from hqvae.cli import main
from hqvae.decode import file_name
from hqvae.run import Run
from hqvae.tiling.batches import batch_size

# ------------------------------------------------------------------------------ round trip


@pytest.fixture(scope="module")
def files(picture_run, tokens, tmp_path_factory):
    """The pictures of the tokens of the photographs."""
    return decoded(picture_run, tokens, tmp_path_factory.mktemp("files") / "f")


def test_a_file_is_the_reconstruction_of_its_item(files, photographs, picture_run):
    """In the batch that a tokenizer computes, to the last grey value."""
    model = Run.open(picture_run).load_model()
    count = batch_size((16, 16), tokenizer_of(picture_run).points)
    keys = sorted(str(path.relative_to(photographs)) for path in photographs.rglob("*.png"))
    x = torch.cat([model.preprocess(photographs / key) for key in keys])
    x = torch.cat([x, x[-1:].expand(count - len(x), -1, -1, -1)])
    with torch.no_grad():
        pictures = model.postprocess(model(x).reconstruction)
    assert list(bytes_of(files)) == keys
    for key, expected in zip(keys, pictures):
        assert np.array_equal(pixels_of(files / key), np.asarray(expected)), key
        assert Image.open(files / key).format == "PNG"


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_first_layers_give_a_coarser_file(layers, files, tokens, picture_run, tmp_path):
    out = decoded(picture_run, tokens, tmp_path / "f", "--layers", layers)
    found = rows(tokens)
    pictures = tokenizer_of(picture_run).decode([row.tokens for row in found], layers)
    for row, expected in zip(found, pictures):
        assert np.array_equal(pixels_of(out / row.key), np.asarray(expected))
    assert (bytes_of(out) == bytes_of(files)) == (layers == 4)


def test_what_is_printed_says_how_many(picture_run, tokens, tmp_path, capsys):
    capsys.readouterr()
    decoded(picture_run, tokens, tmp_path / "f")
    assert capsys.readouterr().out == f"{tmp_path / 'f'} holds 40 files\n"


def test_segments_of_sounds_are_files_of_their_own_without_silence_behind(
    sound_run, sounds, tmp_path
):
    soundfile = pytest.importorskip("soundfile")
    tokens = encoded(sound_run, sounds, tmp_path / "t")
    out = decoded(sound_run, tokens, tmp_path / "f")
    found = rows(tokens)
    assert sorted(bytes_of(out)) == sorted(f"{row.key}.wav" for row in found)
    sounds_of = tokenizer_of(sound_run).decode([row.tokens for row in found])
    for row, expected in zip(found, sounds_of):
        samples, rate = soundfile.read(out / f"{row.key}.wav")
        assert rate == 16_000 and soundfile.info(out / f"{row.key}.wav").subtype == "PCM_16"
        heard = expected[: row.original_size[0]]
        np.testing.assert_allclose(samples, heard, atol=1 / 32768, rtol=0)


def test_rows_are_read_as_they_are_needed(files, tokens, picture_run, tmp_path, monkeypatch):
    """A shard may hold thousands of whole sounds: a few rows at a time make the same files."""
    monkeypatch.setattr("hqvae.tokens.shards._AT_ONCE", 3)
    monkeypatch.setattr("hqvae.decode._AT_ONCE", 1e-4)
    assert bytes_of(decoded(picture_run, tokens, tmp_path / "f")) == bytes_of(files)


# ------------------------------------------------------------------------------ names


NAMES = {
    "cats/a.png": "cats/a.png",
    "a.PNG": "a.PNG",
    "b.jpg": "b.jpg.png",
    "a.b/c": "a.b/c.png",
    "train.parquet row 7": "train.parquet row 7.png",
    "x_train[3]": "x_train[3].png",
    "../../etc/a.png": "_/_/etc/a.png",
    "/etc/a.png": "_/etc/a.png",
    "a//b/./c.png": "a/_/b/_/c.png",
    "..": "_.png",
    "": "_.png",
    "\\..\\a:b*c?.png": "_.._a_b_c_.png",
    'n\0ul\n"<a>|.png': "n_ul___a__.png",
    "naïve/猫.png": "naïve/猫.png",
}


@pytest.mark.parametrize("key", NAMES, ids=ascii)
def test_a_key_becomes_a_name_below_the_folder(key):
    assert file_name(key, ".png") == NAMES[key]


def test_a_long_name_is_shortened_and_stays_its_own(tmp_path):
    long = ["é" * 125 + end for end in (".jpg", "b.jpg")]
    names = [file_name(f"{name}/{name}", ".png") for name in long]
    assert names[0] != names[1]
    for name in names:
        assert all(len(part.encode()) < 240 for part in name.split("/"))
        write(tmp_path / f".{name.split('/')[0]}.partial", b"")


def test_names_that_no_file_system_takes_stay_below_the_folder(picture_run, tokens, tmp_path):
    """Keys of a source that is no folder may be anything."""
    keys = [*NAMES, "a.jpg", "a.jpg.png", "a:jpg", "a_jpg", "x", "x.png", "x.png/y", "é" * 130]
    folder = renamed(tokens, keys, tmp_path / "t")
    out = decoded(picture_run, folder, tmp_path / "deep" / "f")
    assert [path.name for path in tmp_path.iterdir()] in (["t", "deep"], ["deep", "t"])
    assert len(bytes_of(tmp_path / "deep")) == len(keys) == len(bytes_of(out))
    written = bytes_of(out)
    for row in rows(folder):
        expected = tokenizer_of(picture_run).decode([row.tokens])[0]
        names = [name for name in written if np.array_equal(pixels_of(out / name), expected)]
        assert names, row.key
    again = decoded(picture_run, folder, tmp_path / "again")
    assert bytes_of(again) == written
    assert {"a.jpg.png", "a_jpg.png", "x.png"} < written.keys()


def renamed(tokens, keys, out):
    """A folder of as many tokens as there are keys, each with one of them."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from hqvae.tokens.manifest import file_sha256

    content = json.loads((tokens / "manifest.json").read_text())
    content["made"]["shard_items"] = 40
    content["made"]["data"]["splits"] = {"train": {"items": len(keys), "fingerprint": "x"}}
    name = "train-00000-of-00001.parquet"
    table = pa.concat_tables(parquet.read_table(path) for path in sorted(tokens.glob("*.parquet")))
    table = table.slice(0, len(keys)).set_column(0, "key", pa.array(keys, pa.string()))
    out.mkdir()
    parquet.write_table(table, out / name)
    shard = {"name": name, "rows": len(keys), "bytes": (out / name).stat().st_size}
    shard["sha256"] = file_sha256(out / name)
    split = {"items": len(keys), "rows": len(keys), "left_out": 0, "shards": [shard]}
    content["splits"] = {"train": split}
    (out / "manifest.json").write_text(json.dumps(content))
    return out


def test_pictures_whose_names_differ_in_their_endings_share_no_file(picture_run, tmp_path):
    source = tmp_path / "d"
    for i, name in enumerate(["a.bmp", "a.bmp.png", "a.png", "b/a.png"]):
        write(source / name, picture(i))
    out = decoded(picture_run, encoded(picture_run, source, tmp_path / "t"), tmp_path / "f")
    names = list(bytes_of(out))
    assert len(names) == 4 and {"a.bmp.png", "a.png", "b/a.png"} < set(names)


# ------------------------------------------------------------------------------ refused


def test_tokens_of_another_model_are_refused(picture_run, sound_run, tokens, tmp_path, capsys):
    line = refused(decode_words(sound_run, tokens, tmp_path / "f"), capsys)
    assert "are of another model than run" in line and not (tmp_path / "f").exists()


@pytest.mark.parametrize("layers", [0, -1, 5])
def test_layers_that_are_not_there_are_refused(layers, picture_run, tokens, tmp_path, capsys):
    line = refused(decode_words(picture_run, tokens, tmp_path / "f", "--layers", layers), capsys)
    assert f"--layers {layers}: expected 1 to 4, as the tokens have" in line
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_are_not_there_are_refused(
    picture_run, tokens, photographs, tmp_path, capsys, copied
):
    (tmp_path / "file").touch()
    (copied / "train-00001-of-00005.parquet").unlink()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "a.png", smooth(4, 4, 0))
    before = bytes_of(tmp_path)
    for place, out, said in [
        (photographs, "f", "holds no tokens: it has no manifest.json"),
        (tmp_path / "missing", "f", "holds no tokens"),
        (tmp_path / "file", "f", "holds no tokens"),
        (copied, "f", "train-00001-of-00005.parquet is missing, which manifest.json names"),
        (tokens, "full", "already holds files; choose another folder"),
        (tokens, "file", "already holds files; choose another folder"),
        (tokens, "file/f", "file"),
    ]:
        assert said in refused(decode_words(picture_run, place, tmp_path / out), capsys), said
    assert bytes_of(tmp_path) == before and not (tmp_path / "f").exists()


def test_tokens_that_are_not_complete_are_refused(picture_run, tmp_path, monkeypatch, capsys):
    source = photographs(tmp_path / "d", 4)

    def stop(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hqvae.encode.Job.finish", stop)
        assert main(encode_words(picture_run, source, tmp_path / "t")) == 130
    line = refused(decode_words(picture_run, tmp_path / "t", tmp_path / "f"), capsys)
    assert "are not complete; the same `hqvae encode` as before goes on with them" in line


def test_a_run_without_weights_is_refused(picture_run, tokens, tmp_path, capsys):
    run = shutil.copytree(picture_run, tmp_path / "run")
    (run / "model.safetensors").unlink()
    found = decoded(run, tokens, tmp_path / "f")  # its checkpoint has them
    assert len(bytes_of(found)) == 40
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    assert "has no weights yet" in refused(decode_words(run, tokens, tmp_path / "g"), capsys)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said(number, picture_run, tokens, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(number, "it is full")

    monkeypatch.setattr("os.fsync", full)
    line = refused(decode_words(picture_run, tokens, tmp_path / "f"), capsys)
    assert line.endswith("free some, and the same command goes on into another folder")


def test_what_is_printed_can_be_pasted(picture_run, photographs, tmp_path, capsys):
    """Names with spaces too."""
    run = shutil.copytree(picture_run, tmp_path / "my run")
    capsys.readouterr()
    out = encoded(run, photographs, tmp_path / "my tokens", "--split", "validation")
    words = shlex.split(capsys.readouterr().out.partition("next: ")[2])
    assert words == ["hqvae", "decode", str(run), str(out), "--out", "decoded"]
