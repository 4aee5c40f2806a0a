"""The command: a person's mistake ends in one sentence and exit code 2, and leaves nothing behind.

A full disk leaves a usable run.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hqvae
from hqvae.cli import main
from hqvae.overrides import override
from hqvae.presets import PRESETS

TINY = [
    "model.levels.0.codebook_size=8",
    "model.levels.0.dim=4",
    "model.net.widths=[8]",
    "model.net.blocks=0",
    "data.size=8",
    "train.steps=1",
    "train.batch_size=4",
    "train.precision=32-true",
]


def train(*more, data="{data}", out="{out}", preset="sqvae"):
    return ["train", preset, *TINY, f"--data={data}", "--out", out, *more]


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Data, a finished run, an empty folder and other things to name in a command."""
    root = tmp_path_factory.mktemp("cli")
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "toy.npz", x_train=images, x_test=images[:4], x_val=images[4:8])
    (root / "torn.npz").write_bytes((root / "toy.npz").read_bytes()[:2000])
    (root / "empty").mkdir()
    found = {
        name: str(root / path)
        for name, path in {
            "data": "toy.npz",
            "torn": "torn.npz",
            "empty": "empty",
            "run": "run",
        }.items()
    }
    assert main([word.format(**{**found, "out": found["run"]}) for word in train()]) == 0
    return found


@pytest.fixture
def call(places, tmp_path, capsys):
    """Run a command with `{data}`, `{run}`, `{out}` … put in.

    Gives (exit code, standard output, lines of standard error).
    """

    def command(words):
        capsys.readouterr()
        code = main(
            [
                word.format(**places, out=tmp_path / "out", missing=tmp_path / "missing")
                for word in words
            ]
        )
        output = capsys.readouterr()
        return code, output.out, output.err.splitlines()

    return command


REFUSED = {
    "unknown preset": (
        ["train", "sqvea", "--out", "{out}"],
        ["preset 'sqvea'", "did you mean 'sqvae'"],
    ),
    "misspelt key": (train("train.stepz=3"), ["train.stepz", "did you mean 'steps'"]),
    "misspelt group": (train("trian.steps=3"), ["trian", "did you mean 'train'"]),
    "wrong type": (train("train.steps=many"), ["train.steps", "many", "integer"]),
    "no value": (train("train.steps"), ["'train.steps'", "key=value"]),
    "unreadable value": (train("train.lr=[1"), ["train.lr", "[1"]),
    "strides that are not nested": (
        train("model.levels.0.stride=6", preset="sqvae2"),
        ["model.levels", "4 follows 6"],
    ),
    "one code": (train("model.levels.0.codebook_size=1"), ["model.levels.0.codebook_size=1", "2"]),
    "no such layer": (train("model.levels.3.dim=4"), ["model.levels.3.dim", "0 to 0"]),
    "negative seed of the data": (train("data.seed=-1"), ["data.seed=-1"]),
    "two channels": (train("model.channels=2"), ["model.channels=2"]),
    "one axis": (train("model.axes=1"), ["model.axes=1"]),
    "missing data": (train(data="{missing}"), ["missing' does not exist"]),
    "unknown hub data set": (
        train(data="nobody/nothing-at-all"),
        ["'nobody/nothing-at-all'", "no file or folder"],
    ),
    "empty folder": (train(data="{empty}"), ["empty' holds no image"]),
    "torn data": (train(data="{torn}"), ["torn.npz cannot be read"]),
    "images too small": (train("data.size=64"), ["8×8", "data.size=64"]),
    "folder in use": (train(out="{run}"), ["run' already holds a run", "--resume"]),
    "folder that is a file": (train(out="{data}"), ["toy.npz' is a file"]),
    "folder in a file": (train(out="{data}/run"), ["toy.npz/run' cannot be made"]),
    "resume with another config": (
        train("train.lr=0.5", "--resume", out="{run}"),
        ["train.lr is 0.001 there and 0.5 here"],
    ),
    "resume of nothing": (train("--resume"), ["out' holds no run", "begin it without --resume"]),
    "batch that cannot be divided": (
        train("train.accumulate=3"),
        ["train.batch_size=4", "3 accumulated"],
    ),
    "unknown accelerator": (train("--accelerator", "cudda"), ["accelerator", "cudda"]),
    "no devices": (train("--devices", "0"), ["--devices 0"]),
    "devices that are no number": (train("--devices", "many"), ["--devices", "many"]),
    "no preset": (["train", "--out", "{out}"], ["preset"]),
    "no folder": (["train", "sqvae"], ["--out"]),
    "unknown verb": (["trian", "sqvae", "--out", "{out}"], ["trian", "train"]),
    "a setting as a flag": (
        ["train", "sqvae", "--out", "{out}", "--steps", "10"],
        ["--steps; ", "settings have no dashes: train.steps=10"],
    ),
    "a setting as a flag with its value": (
        ["train", "sqvae", "--out", "{out}", "--batch-size=7"],
        ["settings have no dashes: train.batch_size=7"],
    ),
    "half a key": (train("steps=10"), ["'steps'", "did you mean train.steps=10?"]),
    "an external quantizer": (
        train("model.quantizer.kind=fsq"),
        ["expected model.quantizer.kind=external model.quantizer.name=fsq"],
    ),
    "diagnose nothing": (["doctor"], ["run requires", "such as: hqvae doctor runs/first"]),
    "evaluate no word": (["evaluate"], ["run requires", "such as: hqvae evaluate runs/first"]),
    "train into nothing": (["train", "sqvae"], ["--out", "such as: hqvae train"]),
    "train nothing": (["train", "--out", "{out}"], ["train needs a preset", "hqvae"]),
    "unknown option": (train("--devicse", "1"), ["--devicse", "--devices"]),
    "evaluate no run": (["evaluate", "{empty}"], ["empty' is no run", "config.json"]),
    "evaluate nothing": (["evaluate", "{missing}"], ["missing' is no run"]),
    "evaluate an unknown split": (
        ["evaluate", "{run}", "--split", "tset"],
        ["split 'tset'", "did you mean 'test'"],
    ),
    "evaluate missing data": (
        ["evaluate", "{run}", "--data", "{missing}"],
        ["missing' does not exist"],
    ),
    "evaluate on an unknown accelerator": (
        ["evaluate", "{run}", "--accelerator", "cudda"],
        ["cudda", "did you mean 'cuda'"],
    ),
    "evaluate batches of none": (["evaluate", "{run}", "--batch-size", "0"], ["batch", "0"]),
    "evaluate no images": (["evaluate", "{run}", "--limit", "0"], ["limit", "0"]),
    "evaluate less than no images": (["evaluate", "{run}", "--limit", "-1"], ["limit", "-1"]),
    "evaluate without ablation": (["evaluate", "{run}", "--shuffle-items", "0"], ["shuffle", "0"]),
    "diagnose no run": (["doctor", "{empty}"], ["empty' is no run"]),
    "diagnose an unknown split": (["doctor", "{run}", "--split", "all"], ["split 'all'"]),
    "unknown preset to list": (["presets", "sqvea"], ["preset 'sqvea'", "did you mean 'sqvae'"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_ends_in_one_sentence(name, call, places, tmp_path):
    words, said = REFUSED[name]
    run_before = sorted(os.listdir(places["run"]))
    code, out, errors = call(words)
    assert (code, out, len(errors)) == (2, "", 1), (out, errors)
    assert errors[0].startswith("hqvae: ")
    assert all(word in errors[0] for word in said), errors[0]
    assert list(tmp_path.iterdir()) == []
    assert sorted(os.listdir(places["run"])) == run_before


@NO_CUDA
@pytest.mark.parametrize("words", [train(), ["evaluate", "{run}"]], ids=["train", "evaluate"])
def test_a_missing_accelerator_is_named(words, call, tmp_path):
    code, out, errors = call([*words, "--accelerator", "cuda"])
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith("hqvae: ") and "cuda" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error():
    words = f"{sys.executable} -m hqvae.cli presets rsqvae | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_a_process_of_its_own_says_one_line_and_exits_with_2(tmp_path):
    words = ["train", "sqvae", "--data", str(tmp_path / "missing"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "hqvae.cli", *words], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hqvae: data ") and "missing' does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ what goes well


@pytest.mark.parametrize("verb", ["train", "evaluate", "doctor", "presets"])
def test_every_verb_helps_with_examples(verb, call):
    code, out, errors = call([verb, "--help"])
    assert (code, errors) == (0, [])
    assert "Examples" in out and f"hqvae {verb} " in out.split("Examples")[1]


def test_the_first_page_names_every_verb(call):
    code, out, _ = call(["--help"])
    assert code == 0
    assert all(f" {verb} " in out for verb in ("train", "evaluate", "doctor", "presets"))


def test_the_version_is_the_packages(call):
    assert call(["--version"])[:2] == (0, f"{hqvae.__version__}\n")


@pytest.mark.parametrize("name", PRESETS)
def test_a_listed_preset_can_be_given_back_as_settings(name, call):
    code, out, errors = call(["presets", name])
    assert (code, errors) == (0, [])
    settings = [line for line in out.splitlines() if line and not line.startswith("# ")]
    assert override(PRESETS[name], settings) == PRESETS[name]


def test_all_presets_are_listed(call):
    code, out, _ = call(["presets"])
    assert code == 0
    assert all(f" {name} " in out for name in PRESETS)


@pytest.mark.parametrize(
    "name", ["2024", "1e3", "-3", "null", "true", "a: b", "# c", 'quote"d', "ünï", "😀"]
)
def test_any_name_of_a_folder_is_a_name(name, call, tmp_path, monkeypatch):
    """Not a number, not YAML: the folder is found, and only its images are refused."""
    (tmp_path / name).mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(train("data.size=9", data=name))
    assert code == 2 and "data.size=9" in errors[-1], errors


def weights_of(run):
    return (Path(run) / "model.safetensors").read_bytes()


def test_a_run_has_its_files_and_can_be_measured(call, places):
    code, out, errors = call(["evaluate", "{run}"])
    assert (code, errors) == (0, [])
    assert "4 images, test split" in out and "level 0 layer 0" in out
    expected = {"config.json", "log.jsonl", "model.safetensors", "checkpoints", "report"}
    assert set(os.listdir(places["run"])) == expected
    written = {"report.json", "reconstructions.png", "whole-picture.png"}
    assert written <= set(os.listdir(f"{places['run']}/report"))
    code, out, errors = call(["doctor", "{run}", "--split", "validation"])
    assert (code, errors) == (0, [])
    assert out.startswith("validation split, 4 images at ")


def test_resuming_a_finished_run_changes_nothing(call, places):
    weights = weights_of(places["run"])
    code, _, errors = call(train("--resume", out="{run}"))
    assert code == 0, errors
    assert weights_of(places["run"]) == weights


def test_too_little_memory_is_one_sentence(monkeypatch, capsys):
    def overview():
        raise MemoryError("8 GB")

    monkeypatch.setattr("hqvae.presets.overview", overview)
    assert main(["presets"]) == 2
    assert capsys.readouterr().err == "hqvae: not enough memory: 8 GB; close what needs it\n"


# ------------------------------------------------------------------------------ a full disk


FILES = [
    "config.json",
    "training-reconstructions.png",
    "training-layers.png",
    "000000001.pt",
    "model.safetensors",
]


def full(monkeypatch, owner, name, culprit):
    """Let one writing step fail as on a full disk, once.

    It fails when it is about the file named `culprit`, any when that is empty.
    """
    real, spent = getattr(owner, name), []

    def fails(*arguments, **options):
        about = [
            os.readlink(f"/proc/self/fd/{a}") if name == "fsync" else str(getattr(a, "name", a))
            for a in arguments
        ]
        if not spent and any(culprit in text for text in about):
            spent.append(culprit)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, fails)
    return spent


CASES = [
    *((os, "replace", culprit) for culprit in FILES),
    (os, "fsync", "000000001.pt"),
    (torch, "save", ""),
]


@pytest.mark.parametrize(("owner", "name", "culprit"), CASES, ids=[f"{n} {c}" for _, n, c in CASES])
def test_a_full_disk_leaves_a_run_that_goes_on(
    owner, name, culprit, call, places, tmp_path, monkeypatch
):
    """Once there is space, the same command with --resume ends as a run that never stopped."""
    if name == "fsync" and not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to know which file is flushed")
    with monkeypatch.context() as patch:
        spent = full(patch, owner, name, culprit)
        code, _, errors = call(train())
    assert spent == [culprit]
    assert code == 2
    assert errors[-1].startswith("hqvae: no space left") and "Traceback" not in "\n".join(errors)
    assert [path for path in tmp_path.rglob("*") if "partial" in path.name] == []
    created = (tmp_path / "out" / "config.json").exists()
    assert created == (culprit != "config.json")
    code, _, errors = call(train("--resume") if created else train())
    assert code == 0, errors
    assert weights_of(tmp_path / "out") == weights_of(places["run"])
    assert call(["evaluate", "{out}"])[0] == 0


def test_data_whose_name_is_not_utf8_can_be_reported_on():
    """As a terminal shows it: what it cannot show is escaped."""
    code = "from hqvae.cli import main; main(['presets']); print('\\udce9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0 and done.stdout.endswith(b"\\udce9\n")
