"""From the command: a folder of pictures in, a run, a table, a diagnosis and pictures out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import IMAGE_PRESETS
from hqvae.cli import main
from hqvae.config import PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures of several sizes and modes, one broken."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(30):
        width, height = generator.integers(20, 50, 2)
        picture = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(
            (width, height)
        )
        picture.convert(("RGB", "L", "RGBA")[i % 3]).save(root / f"{i}.png")
    (root / "broken.jpg").write_bytes(b"no picture")
    return str(root)


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_train_evaluate_doctor(name, folder, tmp_path, capsys):
    run = str(tmp_path / name)
    settings = [
        "model.net.widths=[8]",
        "data.size=16",
        "train.batch_size=8",
        "train.steps=4",
        "train.log_every=2",
    ]
    assert (
        main(["train", name, "--data", folder, "--out", run, "--accelerator", "cpu", *settings])
        == 0
    )
    assert main(["evaluate", run, "--accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "PSNR" in shown and "level 0 layer 0" in shown
    report = json.loads((tmp_path / name / "report" / "report.json").read_text())
    layers = sum(level.layers for level in PRESETS[name].model.levels)
    assert len(report["measures"]["layers"]) == layers
    assert set(report["protocol"]) == {
        "data",
        "split",
        "images",
        "unit",
        "broken",
        "device",
        "dtype",
        "model_sha256",
        "versions",
    }
    with Image.open(tmp_path / name / "report" / "reconstructions.png") as picture:
        assert picture.width > 200 and picture.height > 100 * (layers + 1) * 0.9
    assert main(["doctor", run, "--accelerator", "cpu"]) == 0
    assert "level 0 layer 0 (stride" in capsys.readouterr().out


def test_other_data_of_another_size(folder, tmp_path, capsys):
    """A convolutional model takes any size.

    Smaller images than the training's are refused with the way out.
    """
    run = str(tmp_path / "run")
    settings = ["model.net.widths=[8]", "data.size=16", "train.batch_size=8", "train.steps=2"]
    assert (
        main(["train", "vqvae", "--data", folder, "--out", run, "--accelerator", "cpu", *settings])
        == 0
    )
    np.savez(tmp_path / "small.npz", x_test=np.zeros((3, 10, 12, 3), np.uint8))
    capsys.readouterr()
    assert (
        main(["evaluate", run, "--data", str(tmp_path / "small.npz"), "--accelerator", "cpu"]) == 2
    )
    assert "lower data.size to 10 (for evaluate: size=10)" in capsys.readouterr().err
    assert (
        main(
            [
                "evaluate",
                run,
                "--data",
                str(tmp_path / "small.npz"),
                "--accelerator",
                "cpu",
                "--size",
                "10",
            ]
        )
        == 0
    )
    assert (
        json.loads((tmp_path / "run" / "report" / "report.json").read_text())["measures"]["images"]
        == 3
    )


def test_a_broken_picture_is_left_out_and_counted_in_memory_or_not(folder, tmp_path):
    """Read from the disk, it is not replaced by its neighbour: the same figures, and the same count."""
    run = tmp_path / "run"
    settings = ["model.net.widths=[8]", "data.size=16", "train.batch_size=8", "train.steps=2"]
    assert (
        main(
            [
                "train",
                "vqvae",
                "--data",
                folder,
                "--out",
                str(run),
                "--accelerator",
                "cpu",
                *settings,
            ]
        )
        == 0
    )
    config, reports = json.loads((run / "config.json").read_text()), []
    for cache_mb in (16, 0):
        config["data"]["cache_mb"] = cache_mb
        (run / "config.json").write_text(json.dumps(config))
        assert main(["evaluate", str(run), "--split", "train", "--accelerator", "cpu"]) == 0
        reports.append(json.loads((run / "report" / "report.json").read_text()))
    assert reports[0]["measures"] == reports[1]["measures"]
    assert [(report["protocol"]["images"], report["protocol"]["broken"]) for report in reports] == [
        (25, 1)
    ] * 2


def test_the_same_command_gives_the_same_report(folder, tmp_path, capsys):
    settings = ["model.net.widths=[8]", "data.size=16", "train.batch_size=8", "train.steps=4"]
    reports = []
    for name in ("one", "two"):
        assert (
            main(
                [
                    "train",
                    "hqvae",
                    "--data",
                    folder,
                    "--out",
                    str(tmp_path / name),
                    "--accelerator",
                    "cpu",
                    *settings,
                ]
            )
            == 0
        )
        assert main(["evaluate", str(tmp_path / name), "--accelerator", "cpu"]) == 0
        reports.append(json.loads((tmp_path / name / "report" / "report.json").read_text()))
    assert reports[0] == reports[1]


def test_data_that_has_grown_is_not_taken_for_the_same(folder, tmp_path, capsys, caplog):
    grown, run = tmp_path / "pictures", str(tmp_path / "run")
    shutil.copytree(folder, grown)
    words = [
        "train",
        "vqvae",
        "--data",
        str(grown),
        "--out",
        run,
        "--accelerator",
        "cpu",
        "model.net.widths=[8]",
        "data.size=16",
        "train.batch_size=8",
        "train.steps=2",
    ]
    assert main(words) == 0
    assert main(["evaluate", run, "--accelerator", "cpu"]) == 0
    assert "has changed" not in caplog.text
    for i in range(9):
        shutil.copy(grown / "1.png", grown / f"00{i}.png")
    assert main(["evaluate", run, "--accelerator", "cpu"]) == 0
    assert "has changed" in caplog.text and "may have been trained on" in caplog.text
    caplog.clear()
    assert (
        main(["evaluate", run, "--data", folder, "--accelerator", "cpu"]) == 0
    )  # of its own: nothing to compare with
    assert "has changed" not in caplog.text
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "the train split of" in capsys.readouterr().err


def test_built_in_photographs_train(tmp_path):
    pytest.importorskip("skimage", reason="the photographs come with scikit-image (extra demo)")
    settings = [
        "model.net.widths=[8]",
        "data.size=16",
        "train.batch_size=8",
        "train.steps=2",
        "train.validation_images=8",
    ]
    assert (
        main(["train", "sqvae", "--out", str(tmp_path / "run"), "--accelerator", "cpu", *settings])
        == 0
    )
