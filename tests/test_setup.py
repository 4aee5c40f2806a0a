"""Setting a training up: what it leaves, what it refuses, how processes share it."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import solid, torn_png, write
from lightning.fabric import Fabric
from training import ROTATION, SETTINGS, level_settings, same, tiny, trained, weights

from conftest import IMAGE_PRESETS
from hqvae.apart import check_apart
from hqvae.compare.jobs import HQVAE_COMMAND
from hqvae.data import Splits, open_data
from hqvae.errors import InputError
from hqvae.overrides import from_dict, override
from hqvae.presets import preset
from hqvae.run import Run
from hqvae.train import rank_slices, train
from hqvae.train.setup import check_data, make_fabric, record_left_out


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_every_preset_trains_and_leaves_a_whole_run(name, image_file, tmp_path):
    run = trained(tiny(name, image_file), tmp_path)
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert names == {
        "config.json",
        "model.safetensors",
        "log.jsonl",
        "checkpoints/000000004.pt",
        "checkpoints/000000004.sha256",
        "checkpoints/000000008.pt",
        "checkpoints/000000008.sha256",
        "report/training-layers.png",
        "report/training-reconstructions.png",
    }
    logged = run.entries("pretrain") + run.entries("train")
    assert [entry["step"] for entry in logged] == [2, 4, 6, 8]
    assert [entry["step"] for entry in run.entries("validation")] == [4, 8]
    saved = json.loads((run.path / "config.json").read_text())
    saved.pop("versions")
    saved.pop("format")
    assert saved.pop("fingerprints").keys() == {"train", "validation", "test"}
    assert from_dict(saved) == run.config
    model = run.load_model()
    side = 16 // model.stride
    assert model.encode(torch.zeros(1, 3, 16, 16))[0].shape == (1, side, side)


def test_epochs_count_passes_over_the_training_items(image_file, tmp_path):
    settings = ["train.epochs=2", "train.validate_epochs=1"]
    run = trained(tiny("vqvae", image_file, *settings), tmp_path)
    assert run.load_checkpoint()["step"] == round(2 * 51 / 8)
    assert [entry["step"] for entry in run.entries("validation")] == [6, 12, 13]


# --------------------------------------------------------------------- what cannot be read


@pytest.fixture
def broken_folder(tmp_path):
    """Thirty images, two of which are broken in each split."""
    for split in ("train", "validation"):
        for i in range(15):
            content = torn_png() if i in (3, 7) else solid(10 * i, 16)
            write(tmp_path / "data" / split / f"{i:02d}.png", content)
    return str(tmp_path / "data")


BROKEN = {(split, f"{split}/{i:02d}.png") for split in ("train", "validation") for i in (3, 7)}


def left_out(run):
    return {(row["split"], row["key"]) for row in run.read_lines("left-out.jsonl")}


@pytest.mark.parametrize("cache_mb", [16, 0], ids=["in memory", "from disk"])
def test_a_run_lists_what_cannot_be_read(cache_mb, broken_folder, tmp_path):
    """Known at the start of what is kept in memory, else once it was read."""
    settings = [f"data.cache_mb={cache_mb}", "data.workers=0", "train.validation_items=15"]
    run = trained(tiny("vqvae", broken_folder, *settings), tmp_path)
    assert left_out(run) == BROKEN
    assert all(row["reason"] for row in run.read_lines("left-out.jsonl"))
    (run.path / "left-out.jsonl").unlink()
    config = replace(run.config.data, cache_mb=cache_mb)
    record_left_out(run, open_data(config, 3, ("train", "validation"))[1])
    assert left_out(run) == (BROKEN if cache_mb else set())
    assert (run.path / "left-out.jsonl").exists() == bool(cache_mb)


class Found(Splits):
    """Stands for splits of which this is known to be broken."""

    def __init__(self, found):
        self.found = found

    def left_out(self):
        return self.found


def test_what_was_listed_before_stays_listed(tmp_path):
    run = Run.create(tmp_path / "run", preset("vqvae"))
    one = {"split": "train", "key": "a.png", "reason": "torn"}
    other = {"split": "validation", "key": "b.png", "reason": "empty"}
    for found in ([], [one], [other], [other, one], []):
        record_left_out(run, Found(found))
    assert run.read_lines("left-out.jsonl") == [one, other]


def test_a_long_scan_shows_its_progress(image_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hqvae.data.scan._LONG_SCAN", 10)
    trained(tiny("vqvae", image_file, "train.steps=1"), tmp_path)
    assert capsys.readouterr().err.startswith("reading 51 items\n")


# ------------------------------------------------------------------------------ refused


def refused_before_anything_is_written(config, folder, message):
    with pytest.raises(InputError, match=message):
        trained(config, folder)
    assert not (folder / "run").exists()


def test_only_a_posterior_has_a_nearest_code_phase(image_file, tmp_path):
    config = tiny("vqvae", image_file, "phases.nearest_fraction=0.5")
    message = (
        r"phases\.nearest_fraction=0\.5 replaces the posterior of a stochastic quantizer, "
        r"and model\.quantizer\.kind=deterministic has none"
    )
    refused_before_anything_is_written(config, tmp_path, message)
    with pytest.raises(InputError, match="leave no step for samples"):
        tiny("sqvae", image_file, "phases.pretrain_fraction=0.25", "phases.nearest_fraction=0.75")


def test_nothing_starts_after_the_autoencoder_from_a_random_init(image_file, tmp_path):
    config = tiny("vqvae-paper", image_file, "phases.pretrain_fraction=0.1")
    refused_before_anything_is_written(config, tmp_path, r"init\.kind=kmeans")


def test_a_codebook_that_moves_in_every_pass_is_not_accumulated(image_file, tmp_path):
    config = tiny("vqvae-paper", image_file, *ROTATION, "train.accumulate=2")
    message = r"train\.accumulate=2: the codebook of model\.quantizer\.name=rotation"
    refused_before_anything_is_written(config, tmp_path, message)


def test_images_without_a_difference_are_refused(tmp_path):
    np.savez(tmp_path / "grey.npz", x=np.full((60, 16, 16, 3), 128, np.uint8))
    config = tiny("rsqvae", str(tmp_path / "grey.npz"), "model.levels.0.stride=16")
    refused_before_anything_is_written(config, tmp_path, "differ from each other")


def test_a_stride_larger_than_the_images_is_refused(image_file, tmp_path):
    config = tiny("sqvae", image_file, "model.levels.0.stride=64")
    message = r"stride=64 is larger than the images, which have 16×16 points"
    refused_before_anything_is_written(config, tmp_path, message)


def test_fewer_validation_items_than_processes_are_refused(image_file):
    config = tiny("sqvae", image_file)
    data, splits = open_data(config.data, 3, ("train", "validation"))
    config = replace(config, data=data)
    check_data(config, splits, 1)
    with pytest.raises(InputError, match=r"validation image\(s\) cannot be shared by 999 proc"):
        check_data(config, splits, 999)


def test_devices_that_do_not_exist_are_refused(image_file, tmp_path):
    with pytest.raises(InputError, match="'abacus' does not exist; expected one of: auto"):
        train(tiny("sqvae", image_file), str(tmp_path / "run"), accelerator="abacus")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 99_999_999}, r"devices=99999999: expected 1 to \d+, the cores of"),
        ({"devices": -1}, r"devices=-1: expected 1 to"),
        ({"nodes": 0}, r"nodes=0: expected at least 1"),
        ({"nodes": 2}, r"nodes=2: the machines have no place to meet; expected MASTER_ADDR"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, message, image_file, tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=message):
        trained(tiny("sqvae", image_file), tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_machine_says_whom_it_waits_for(monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "first.machine")
    monkeypatch.setattr(Fabric, "launch", lambda fabric: None)
    make_fabric(preset("sqvae"), "cpu", 1, 2)
    assert capsys.readouterr().err == "waiting for the processes of 2 machines\n"


@pytest.mark.parametrize("out", ["data/train/run", "data/run/../train/run"])
def test_a_run_inside_of_its_data_is_refused(out, broken_folder, tmp_path):
    with pytest.raises(InputError, match=r"lies inside of data=.* a folder elsewhere"):
        train(tiny("vqvae", broken_folder), str(tmp_path / out), accelerator="cpu")
    beside = Path(broken_folder)
    assert sorted(path.name for path in beside.iterdir()) == ["train", "validation"]


def test_a_run_beside_the_splits_of_its_data_is_none_of_them(broken_folder, tmp_path):
    config = tiny("vqvae", broken_folder, "train.steps=1")
    assert train(config, str(tmp_path / "data" / "run"), accelerator="cpu") is not None
    shutil.rmtree(tmp_path / "data" / "validation")
    with pytest.raises(InputError, match="would be read as data"):  # `train` alone is all of it
        train(config, str(tmp_path / "data" / "other"), accelerator="cpu")
    shutil.move(tmp_path / "data" / "train", tmp_path / "data" / "all")
    with pytest.raises(InputError, match="would be read as data"):
        train(config, str(tmp_path / "data" / "other"), accelerator="cpu")


def test_a_run_without_a_name_is_refused(image_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="out='' names no folder"):
        train(tiny("vqvae", image_file), "", accelerator="cpu")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- processes


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_slices_cover_the_batch_once(world, accumulate):
    settings = ["train.batch_size=16", f"train.accumulate={accumulate}"]
    config = override(preset("sqvae"), settings).train
    covered = [
        sample
        for rank in range(world)
        for part in rank_slices(config, rank, world)
        for sample in range(16)[part]
    ]
    assert covered == list(range(16))


def test_a_batch_that_cannot_be_shared_is_refused():
    config = override(preset("sqvae"), ["train.batch_size=17", "train.accumulate=2"]).train
    with pytest.raises(InputError, match=r"by 2 process\(es\) × 2 .* nearest: 16"):
        rank_slices(config, 0, 2)


def test_two_processes_cannot_train_into_one_folder(image_file, tmp_path):
    config = tiny("vqvae", image_file)
    run = trained(config, tmp_path)
    before = weights(run)
    with run.locked(), pytest.raises(InputError, match="another process is training"):
        trained(config, tmp_path, resume=True)
    assert same(before, weights(run))
    assert trained(config, tmp_path, resume=True) is not None


def test_two_processes_train_as_one(image_file, tmp_path):
    """Through pretraining, samples and nearest codes: each leaves others without a gradient.

    Theirs are accumulated besides.
    """
    settings = [
        "phases.pretrain_fraction=0.25",
        "phases.nearest_fraction=0.5",
        "train.precision=32-true",
        "train.lr=1e-4",
        "train.weight_ema=0.5",
    ]
    one = trained(tiny("rsqvae", image_file, *settings), tmp_path)
    words = ["train", "rsqvae", "--data", image_file, "--out", str(tmp_path / "two")]
    words += ["--accelerator", "cpu", "--devices", "2", *SETTINGS, *level_settings(1), *settings]
    words += ["train.accumulate=2"]
    done = subprocess.run([*HQVAE_COMMAND, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    of_one, of_two = weights(one), weights(Run.open(tmp_path / "two"))
    assert of_one.keys() == of_two.keys()
    for key in of_one:
        assert torch.allclose(of_one[key], of_two[key], atol=2e-4), key
    # As if both had been killed after step 4.
    newest = max((tmp_path / "two" / "checkpoints").glob("*8.pt"))
    newest.unlink()
    command = [*HQVAE_COMMAND, *words, "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert newest.is_file() and same(of_two, weights(Run.open(tmp_path / "two")))


@pytest.mark.parametrize(("columns", "allowed"), [("split", True), ("label", False)])
def test_a_table_of_splits_alone_lets_a_run_lie_among_the_data(columns, allowed, tmp_path):
    (tmp_path / "metadata.csv").write_text(f"file_name,{columns}\na.png,train\n")
    if allowed:
        check_apart(tmp_path / "run", str(tmp_path))
    else:
        with pytest.raises(InputError, match="would be read as data"):
            check_apart(tmp_path / "run", str(tmp_path))


def test_the_home_folder_is_found_in_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="would be read as data"):
        check_apart(tmp_path / "pictures" / "run", "~/pictures")
