"""From the command: a folder of pictures in, a run, a table, a diagnosis and pictures out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import IMAGE_PRESETS
from hqvae.cli import main
from hqvae.presets import PRESETS

CPU = ["--accelerator", "cpu"]
SETTINGS = [
    "model.net.widths=[8]",
    "model.net.blocks=1",
    "data.size=16",
    "train.batch_size=8",
    "train.steps=2",
    "train.epochs=null",
    "train.log_every=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures of several sizes and modes, one broken."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(30):
        width, height = generator.integers(20, 50, 2)
        colours = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((width, height))
        picture.convert(("RGB", "L", "RGBA")[i % 3]).save(root / f"{i}.png")
    (root / "broken.jpg").write_bytes(b"no picture")
    return str(root)


def train(name, data, run, *settings):
    return main(["train", name, "--data", data, "--out", str(run), *CPU, *SETTINGS, *settings])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of two steps, for those who evaluate it."""
    run = tmp_path_factory.mktemp("trained") / "vqvae"
    assert train("vqvae", folder, run) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, for those who change it."""
    return shutil.copytree(trained, tmp_path / "run")


def evaluate(run, *arguments):
    return main(["evaluate", str(run), *arguments, *CPU])


def report_of(run):
    return json.loads((run / "report" / "report.json").read_text())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_train_evaluate_doctor(name, folder, tmp_path, capsys):
    run = tmp_path / name
    assert train(name, folder, run) == 0
    assert evaluate(run) == 0
    shown = capsys.readouterr().out
    assert "PSNR" in shown and "level 0 layer 0" in shown
    report = report_of(run)
    layers = len(PRESETS[name].model.layers)
    assert len(report["measures"]["layers"]) == layers
    assert set(report["protocol"]) == {
        "data",
        "split",
        "items",
        *("noun", "point", "unit", "ratio"),
        "broken",
        "device",
        "dtype",
        "posterior",
        "model_sha256",
        "versions",
    }
    with Image.open(run / "report" / "reconstructions.png") as picture:
        assert picture.width > 200 and picture.height > 100 * (layers + 1) * 0.9
    assert main(["doctor", str(run), *CPU]) == 0
    assert "level 0 layer 0 (stride" in capsys.readouterr().out


def test_other_data_of_another_size(run, tmp_path, capsys):
    """A convolutional model takes any size; smaller images are refused with the way out."""
    small = str(tmp_path / "small.npz")
    np.savez(small, x_test=np.zeros((3, 10, 12, 3), np.uint8))
    assert evaluate(run, "--data", small) == 2
    assert "lower data.size to 10 (for evaluate: --size 10)" in capsys.readouterr().err
    assert evaluate(run, "--data", small, "--size", "10") == 0
    assert report_of(run)["measures"]["items"] == 3


def test_a_broken_picture_is_left_out_and_listed_in_memory_or_not(run):
    """Read from the disk, it is not replaced by its neighbour: same figures, same count."""
    broken = [{"split": "train", "key": "broken.jpg"}]
    listed = rows_of(run / "left-out.jsonl")
    assert [{name: row[name] for name in ("split", "key")} for row in listed] == broken
    config, reports = json.loads((run / "config.json").read_text()), []
    for cache_mb in (16, 0):
        config["data"]["cache_mb"] = cache_mb
        (run / "config.json").write_text(json.dumps(config))
        assert evaluate(run, "--split", "train") == 0
        reports.append(report_of(run))
        assert rows_of(run / "report" / "left-out.jsonl") == listed
    assert reports[0]["measures"] == reports[1]["measures"]
    counts = [(report["protocol"]["items"], report["protocol"]["broken"]) for report in reports]
    assert counts == [(25, 1)] * 2


def test_the_same_command_gives_the_same_report(folder, tmp_path):
    for name in ("one", "two"):
        assert train("hqvae", folder, tmp_path / name, "train.steps=4") == 0
        assert evaluate(tmp_path / name) == 0
    assert report_of(tmp_path / "one") == report_of(tmp_path / "two")


def test_data_that_has_grown_is_not_taken_for_the_same(folder, tmp_path, capsys, caplog):
    grown, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(folder, grown)
    assert train("vqvae", str(grown), run) == 0
    assert evaluate(run) == 0
    assert "has changed" not in caplog.text
    for i in range(9):
        shutil.copy(grown / "1.png", grown / f"00{i}.png")
    assert evaluate(run) == 0
    assert "has changed" in caplog.text and "may have been trained on" in caplog.text
    caplog.clear()
    assert evaluate(run, "--data", folder) == 0  # named by hand: nothing to compare with
    assert "has changed" not in caplog.text
    capsys.readouterr()
    assert train("vqvae", str(grown), run, "--resume") == 2
    assert "the train split of" in capsys.readouterr().err


def test_a_long_scan_of_evaluation_shows_its_progress(run, monkeypatch, capsys):
    monkeypatch.setattr("hqvae.data.scan._LONG_SCAN", 2)
    assert evaluate(run) == 0
    assert capsys.readouterr().err.startswith("reading 3 items\n")


def test_built_in_photographs_train(tmp_path):
    pytest.importorskip("skimage", reason="the photographs come with scikit-image (extra demo)")
    settings = [*SETTINGS, "data.size=64", "train.validation_items=8"]
    assert main(["train", "sqvae", "--out", str(tmp_path / "run"), *CPU, *settings]) == 0
