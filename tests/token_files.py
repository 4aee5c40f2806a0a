"""Data sets, runs and folders of tokens for the tests of `hqvae encode` and `hqvae decode`."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from data_files import png, write
from training import tiny, trained

from hqvae.cli import main
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.manifest import read_manifest
from hqvae.tokens.shards import read_shard, rows_of

SIZE = 16  # of the pictures that the run was trained on
COUNT = 40  # pictures of `photographs`
CLASSES = ("cat", "dog", "owl")
CUT = {"train": 34, "validation": 2, "test": 4}  # of `COUNT` by the config's shares and seed


def smooth(height, width, seed):
    """A picture that resizing and coding have something to do with."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 4, 4)))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return fine[0].permute(1, 2, 0).numpy().astype(np.uint8)


def picture(i):
    """The i-th of some pictures, each of a size of its own."""
    return smooth(SIZE + i % 5 * 3, SIZE + i % 3 * 7, i)


def photographs(root, count=COUNT):
    """A folder of classes."""
    for i in range(count):
        write(root / CLASSES[i % 3] / f"{i:03d}.png", picture(i))
    return root


def train_pictures(source, folder, *settings):
    """A small run on pictures: two levels, of two layers each."""
    return trained(tiny("hqvae", source, f"data.size={SIZE}", *settings), folder).path


def sounds(root, seconds=(1.0, 0.7, 0.25, 0.31), rate=16_000):
    """A folder of sounds in three splits."""
    soundfile = pytest.importorskip("soundfile")
    generator = np.random.default_rng(0)
    for i, length in enumerate(seconds):
        split = ("train", "validation", "test")[i % 3]
        samples = 0.1 * generator.standard_normal(round(length * rate))
        (root / split).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / split / f"{i}.wav", samples, rate)
    return root


def train_sounds(source, folder, name="rsqvae-audio", *settings):
    """A small run on sounds, in segments of 0.3 seconds."""
    words = ["train", name, "--data", str(source), "--out", str(folder / "run")]
    words += ["model.net.widths=[8]", "data.seconds=0.3", "train.steps=2", "train.batch_size=2"]
    assert main([*words, *settings, "--accelerator", "cpu"]) == 0
    return folder / "run"


def encode_words(run, data, out, *words):
    """The command that codes data on the CPU."""
    return ["encode", *map(str, (run, "--data", data, "--out", out, *words)), "--accelerator=cpu"]


def encoded(run, data, out, *words):
    """The folder of the tokens of data."""
    assert main(encode_words(run, data, out, *words)) == 0
    return Path(out)


def decode_words(run, tokens, out, *words):
    """The command that decodes tokens on the CPU."""
    return ["decode", *map(str, (run, tokens, "--out", out, *words)), "--accelerator=cpu"]


def decoded(run, tokens, out, *words):
    """The folder of files of tokens."""
    assert (
        main(["decode", *map(str, (run, tokens, "--out", out, *words)), "--accelerator=cpu"]) == 0
    )
    return Path(out)


def refused(words, capsys):
    """The one sentence of a command that is refused."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hqvae: ")
    return line


def bytes_of(folder):
    """Name → content of all files below a folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def shards_of(folder):
    """Name → content of the shards."""
    return {name: held for name, held in bytes_of(folder).items() if name.endswith(".parquet")}


def rows(folder, split=None):
    """All rows, or those of a split, in order."""
    splits = read_manifest(folder).splits
    return [
        row
        for name, files in splits.items()
        if split in (None, name)
        for shard in files.shards
        for row in rows_of(read_shard(Path(folder) / shard.name))
    ]


def counts(folder):
    """Rows of every split."""
    return {name: split.rows for name, split in read_manifest(folder).splits.items()}


def same_tokens(one, other):
    """Whether two lists hold the same codes and sizes."""
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one, other):
    equal = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(one.codes, other.codes)]
    return one.size == other.size and len(one.codes) == len(other.codes) and all(equal)


def same_rows(one, other):
    """Whether two lists of rows agree to the last code."""
    said = [[row[:3] for row in side] for side in (one, other)]
    return said[0] == said[1] and same_tokens(*([row.tokens for row in s] for s in (one, other)))


def left_out(folder):
    """What the list of what is left out holds."""
    path = Path(folder) / "left-out.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tokenizer_of(run):
    """The tokenizer of a run, on the CPU."""
    return Tokenizer.from_pretrained(run)


def picture_table(path, pictures, **columns):
    """A Parquet file of pictures, and other columns."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": [png(pixels) for pixels in pictures], **columns}), path)
    return path


def pixels_of(path):
    """Of a picture file, as an array."""
    from PIL import Image

    with Image.open(io.BytesIO(Path(path).read_bytes())) as opened:
        return np.asarray(opened)
