"""Every numeric setting and flag at its ends: it trains a step, or is refused in one sentence."""

import inspect
import re
from typing import get_args

import numpy as np
import pytest
import torch
from training import SETTINGS, level_settings

import hqvae.config as config_module
from hqvae.cli import app, main
from hqvae.config import check_memory, check_together
from hqvae.config_class import settings
from hqvae.errors import InputError
from hqvae.overrides import override
from hqvae.presets import PRESETS
from hqvae.train import loop as loop_module
from hqvae.train import train

ENDS = ["0", "-1", ".nan", ".inf", "1e12"]
SMALL = [
    "model.net.widths=[4]",
    "model.net.blocks=0",
    "model.net.inner_blocks=0",
    "train.batch_size=4",
    "train.validation_items=1",
    "train.precision=32-true",
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A few images, arrays, and a few sounds where they can be read."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(root / "images.npz", x=images)
    np.savez(root / "vectors.npz", x=generator.standard_normal((24, 6)))
    np.savez(root / "series.npz", x=generator.standard_normal((24, 16, 3)))
    arrays = {"vectors": str(root / "vectors.npz"), "series": str(root / "series.npz")}
    found = {"images": str(root / "images.npz"), **arrays}
    try:
        import soundfile
        import soxr  # noqa: F401
    except ImportError:
        return found
    (root / "audio").mkdir()
    for i in range(12):
        sound = 0.1 * generator.standard_normal(4000)
        soundfile.write(root / "audio" / f"{i}.wav", sound, 16_000)
    return {**found, "audio": str(root / "audio")}


def numeric(value):
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def cases():
    """(preset, setting): every numeric setting that there is, once for each kind of config."""
    known = set()
    for name, config in PRESETS.items():
        for key, _, value in settings(config):
            group = config.model.quantizer.kind if "quantizer" in key else config.data.kind
            listed = isinstance(value, tuple) and value and isinstance(value[0], int)
            if (numeric(value) or listed) and (key, group) not in known:
                known.add((key, group))
                for end in ENDS:
                    yield name, f"{key}=[{end}]" if listed else f"{key}={end}"


CASES = list(cases())


def test_the_walk_meets_every_kind_of_setting():
    keys = {setting.split("=")[0] for _, setting in CASES}
    assert {"train.lr", "model.net.widths", "model.levels.1.stride", "data.frontend.hop"} <= keys
    assert {"data.size", "phases.temperature.decay", "model.spectral.floor"} <= keys


@pytest.mark.parametrize("name", PRESETS)
def test_the_ends_of_every_setting(name, sources, tmp_path, monkeypatch):
    """One step, as if asked to stop in it, without the files that a stop leaves."""
    monkeypatch.setattr(loop_module.Stop, "requested", True)
    monkeypatch.setattr(loop_module.TrainState, "save", lambda state, run: None)
    kind = PRESETS[name].data.kind
    if kind == "arrays":
        kind = "series" if PRESETS[name].model.axes else "vectors"
    if kind not in sources:
        pytest.skip("needs the extra audio")
    length = {"audio": ["data.seconds=0.1"], "images": ["data.size=16"]}.get(kind, [])
    small = [*SETTINGS[5:], *SMALL, *length, f"data.source={sources[kind]}"]
    small += level_settings(len(PRESETS[name].model.levels))
    config = override(PRESETS[name], small)
    for number, setting in enumerate(setting for of, setting in CASES if of == name):
        try:
            train(override(config, [setting]), str(tmp_path / str(number)), accelerator="cpu")
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, setting
        except Exception as error:
            raise AssertionError(f"{setting} ends in {error!r}") from error


def flags():
    """(verb, flag) of everything in the command that is a number."""
    for verb in ("train", "evaluate", "doctor", "compare"):
        command = app[verb].default_command
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            hint = parameter.annotation
            kinds = {hint, *get_args(hint), *[k for part in get_args(hint) for k in get_args(part)]}
            if kinds & {int, float} and bool not in kinds:
                yield verb, f"--{parameter.name.replace('_', '-')}"


@pytest.fixture(scope="module")
def finished(sources, tmp_path_factory):
    """(the words of a small run, its folder, a spec)."""
    root = tmp_path_factory.mktemp("finished")
    words = ["sqvae", *SMALL, *level_settings(1), "train.steps=1", "data.size=16"]
    words += ["--data", sources["images"], "--accelerator", "cpu"]
    assert main(["train", *words, "--out", str(root / "run")]) == 0
    (root / "spec.yaml").write_text("systems: {A: {preset: sqvae}}\nsettings: {train.stepz: 1}\n")
    return words, root


FLAGS = list(flags())


@pytest.mark.parametrize(("verb", "flag"), FLAGS, ids=map("".join, FLAGS))
def test_the_ends_of_every_flag(verb, flag, finished, sources, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    words, root = finished
    given = {
        "train": [*words, "--out", str(tmp_path / "out")],
        "compare": [str(root / "spec.yaml"), "--data", sources["images"], "--out", str(tmp_path)],
    }.get(verb, [str(root / "run"), "--accelerator", "cpu"])
    for end in ("0", "-1", "nan", "inf", "1e12", "1000000000000"):
        capsys.readouterr()
        code = main([verb, *given, f"{flag}={end}"])
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        if code:
            assert code == 2 and re.match("hqvae: .", errors.splitlines()[-1]), errors


def test_the_walk_of_flags_meets_all():
    assert {"--devices", "--nodes", "--batch-size", "--limit", "--seconds", "--size"} <= {
        flag for _, flag in FLAGS
    }


def test_a_side_of_one_pixel_is_refused(finished, capsys):
    assert main(["evaluate", str(finished[1] / "run"), "--size", "1"]) == 2
    assert "--size 1: input should be greater than or equal to 2" in capsys.readouterr().err


def test_what_no_machine_has_memory_for_is_refused():
    config = override(PRESETS["sqvae"], ["model.net.widths=[65536]"])
    with pytest.raises(InputError, match=r"weights need .* GB of memory .* this machine has"):
        check_together(config)
    check_memory(10**6, "a few values")


def test_a_batch_that_fits_into_no_memory_is_refused(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(config_module.os, "sysconf", lambda name: 2**14)  # 256 MB
    settings = [*SMALL, *level_settings(1), "data.size=16", f"data.source={sources['images']}"]
    config = override(PRESETS["sqvae"], [*settings, "train.batch_size=1000000"])
    with pytest.raises(InputError, match=r"train\.batch_size=1000000 images need 3 GB"):
        train(config, str(tmp_path / "run"), accelerator="cpu")


@pytest.mark.parametrize("decay", [1e-30, 1.0, 1e9])
def test_a_temperature_never_falls_to_zero(decay):
    config = override(PRESETS["sqvae"], [f"phases.temperature.decay={decay}"])
    assert config.phases.temperature.at(10**9, 10**12) > 0
    logits = torch.tensor([1.0, -1.0]) / config.phases.temperature.at(10**9, 10**12)
    assert torch.softmax(logits, 0).isfinite().all()
