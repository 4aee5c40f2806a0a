"""Waveforms from the command: trained, measured, compared, and refused where spectra cannot be."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from processes import Command

from hqvae.cli import main
from hqvae.data import AudioConfig, ShuffledBatches, WaveConfig, open_data, starting_signals
from hqvae.overrides import override
from hqvae.presets import PRESETS, preset
from hqvae.run import Run

RATE = 8000
AUDIO = [
    name
    for name, config in PRESETS.items()
    if config.data.kind == "audio" and config.model.axes == 1
]
SMALL = ["model.net.widths=[8]", "model.net.inner_blocks=0", "data.seconds=0.3"]
SEGMENT = 4800  # samples of 0.3 seconds at the presets' 16 kHz


def write_splits(folder, rate=RATE, **seconds):
    """Noise, one file for each split, so that none is cut off."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "validation", "test"):
        samples = 0.1 * torch.randn(round(seconds.get(split, 1.0) * rate), generator=generator)
        (folder / split).mkdir()
        soundfile.write(folder / split / "a.wav", samples.numpy(), rate)


def train(name, folder, *settings):
    """(the words of the command, the run's folder)."""
    run = folder / "run"
    words = ["train", name, "--data", str(folder), "--out", str(run), "--accelerator", "cpu"]
    return [*words, *SMALL, *settings], run


def evaluate(run, *options):
    return main(["evaluate", str(run), "--accelerator", "cpu", *map(str, options)])


def report_of(run):
    return json.loads((run / "report" / "report.json").read_text())


# ------------------------------------------------------------------------- train and evaluate


@pytest.fixture(params=AUDIO, scope="module")
def finished(request, tmp_path_factory):
    """(preset, run) of every preset for waveforms, trained and resumed."""
    folder = tmp_path_factory.mktemp(request.param)
    write_splits(folder, train=3.0, validation=1.3, test=1.7)
    settings = ("train.batch_size=2", "train.steps=4", "train.log_every=2")
    words, run = train(request.param, folder, *settings)
    assert main(words) == 0 and main([*words, "--resume"]) == 0
    return request.param, run


def test_waveforms_are_trained_and_measured_from_the_command(finished, capsys):
    name, run = finished
    assert (run / "report" / "training-reconstructions.png").stat().st_size > 1000
    assert evaluate(run) == 0
    shown = capsys.readouterr().out
    heads = ("RMSE (amplitude)", "SI-SDR dB", "STFT distance", "mel distance", "rate bits/s")
    assert all(head in shown for head in heads)
    levels = override(preset(name), SMALL).model.levels
    positions = math.ceil(SEGMENT / levels[0].stride)  # of the coarsest level
    codes = sum(level.layers * positions * levels[0].stride // level.stride for level in levels)
    assert report_of(run)["measures"]["bits_per_second"] == pytest.approx(codes * 8 / 0.3)
    samples, rate = soundfile.read(run / "report" / "audio" / "0-original.wav")
    assert rate == 16000 and len(samples) == SEGMENT and np.abs(samples).max() > 0.05
    assert (run / "report" / "reconstructions.png").stat().st_size > 1000


def test_segments_of_an_evaluation_may_have_another_length(finished, capsys):
    _, run = finished
    assert evaluate(run, "--seconds", 1.1) == 0
    assert report_of(run)["protocol"]["data"]["seconds"] == 1.1
    assert len(soundfile.read(run / "report" / "audio" / "0-original.wav")[0]) == 17600
    for seconds, words in (
        ("0.05", "a window of 2048 needs segments of more than 1024"),
        ("inf", "expected a number above 0"),
        ("0", "above 0"),
    ):
        capsys.readouterr()
        assert evaluate(run, "--seconds", seconds) == 2
        assert words in capsys.readouterr().err


def test_waveforms_have_a_nearest_code_phase_too(tmp_path, capsys):
    write_splits(tmp_path)
    settings = ("train.batch_size=2", "train.steps=4", "phases.nearest_fraction=0.5")
    words, run = train("rsqvae-audio", tmp_path, *settings, "train.validate_every=2")
    assert main(words) == 0
    assert "nearest codes from step 2 on" in capsys.readouterr().err
    assert Run.open(run).load_model().posterior == "nearest_code"
    first, last = Run.open(run).entries("validation")
    assert all(layer["entropy_bits"] > 0 for layer in first["layers"])
    assert all(layer["entropy_bits"] == 0 for layer in last["layers"])


def test_segments_shorter_than_a_pictures_window_are_trained_and_drawn(tmp_path):
    write_splits(tmp_path, train=0.2, validation=0.2, test=0.2)
    settings = ("model.spectral.weight=0", "data.seconds=0.03", "train.steps=1")
    words, run = train("rsqvae-audio", tmp_path, *settings, "train.batch_size=16")
    assert main(words) == 0 and evaluate(run) == 0
    measures = report_of(run)["measures"]
    assert "mel_distance" not in measures and measures["si_sdr"] is not None


def test_seconds_are_for_audio(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    run = tmp_path / "run"
    words = ["train", "sqvae", "--data", str(tmp_path / "images.npz"), "--out", str(run)]
    settings = ["train.steps=1", "train.batch_size=2", "model.levels.0.codebook_size=8"]
    assert main([*words, *settings, "model.net.widths=[8]", "--accelerator", "cpu"]) == 0
    assert evaluate(run, "--seconds", 2) == 2
    assert "is of images, which have none" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- refused

REFUSED = {
    "of images": (
        ["sqvae", "model.spectral.weight=1"],
        "spectral.weight=1 is for waveforms, with axes=1 and channels=1",
    ),
    "of another rate": (
        ["rsqvae-audio", "data.rate=8000"],
        "spectral.rate=16000, but the data's rate is 8000",
    ),
    "longer than a segment": (
        ["rsqvae-audio", "data.seconds=0.05"],
        "a window of 2048 needs segments of more than 1024 samples, but these have 800",
    ),
    "of endless segments": (["rsqvae-audio", "data.seconds=.inf"], "data.seconds"),
    "of nothing": (["rsqvae-audio", "data.seconds=1e-5"], "0 samples, and a segment needs 1"),
    "of odd windows": (
        ["rsqvae-audio", "model.spectral.n_ffts=[30]"],
        "windows are multiples of 4 from 16 to 2^20, not [30]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spectra_that_cannot_be_are_refused(case, tmp_path, capsys):
    words, message = REFUSED[case]
    write_splits(tmp_path)
    data = "photos" if words[0] == "sqvae" else str(tmp_path)
    run = tmp_path / "run"
    assert main(["train", *words, "--data", data, "--out", str(run)]) == 2
    assert message in capsys.readouterr().err and not run.exists()


# ----------------------------------------------------------------------------------- silence


def write_silence(folder, sound=0.0, seconds=12.0):
    """Two files for each split with so many seconds of noise in their middle."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        for number in range(2):
            samples = np.zeros(round(seconds * RATE))
            middle = len(samples) // 2
            loud = slice(middle, middle + round(sound * RATE))
            samples[loud] = 0.1 * generator.standard_normal(len(samples[loud]))
            soundfile.write(folder / split / f"{number}.wav", samples, RATE)
    return folder


def opened_waves(folder, **config):
    wave = {"rate": RATE, "seconds": 0.3, "frontend": WaveConfig(), **config}
    return open_data(AudioConfig(source=str(folder), **wave), 1, ("train",), 1)[1]["train"]


@pytest.mark.parametrize("name", AUDIO)
def test_every_preset_starts_on_recordings_with_long_silences(name, tmp_path):
    """Also with a seed whose first batch is silent."""
    write_silence(tmp_path, sound=0.5)
    dataset = opened_waves(tmp_path)
    orders = [ShuffledBatches(len(dataset), 2, seed) for seed in range(8)]
    silent = [o for o in orders if not dataset.training_batch(*o.at(0)).any()]
    settings = ("train.batch_size=2", "train.steps=3", "train.validation_items=2")
    words, run = train(name, tmp_path, *settings, f"train.seed={silent[0].seed}")
    assert main(words) == 0 and (run / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["rsqvae-audio", "rsqvae-mel"])
def test_data_that_are_silent_throughout_are_refused_in_a_sentence(name, tmp_path, capsys):
    run = tmp_path / "run"
    data = str(write_silence(tmp_path, seconds=1.0))
    words = ["train", name, "--data", data, "--out", str(run), "data.seconds=0.3"]
    assert main([*words, "--accelerator", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert "every segment of the training split is silent or the same constant" in shown
    assert shown.count("\n") == 1 and not run.exists()


def test_a_model_starts_on_the_first_batches_where_these_are_heard(tmp_path):
    write_splits(tmp_path, train=6.0)
    dataset = opened_waves(tmp_path)
    order = ShuffledBatches(len(dataset), 4, 0)
    expected = torch.cat([dataset.training_batch(*order.at(step)) for step in (3, 4)])
    found = starting_signals(dataset, order, 3, 2)
    assert torch.equal(found, dataset.signal(expected))


def test_silent_and_faint_batches_give_their_places_to_others(tmp_path):
    """Faint ones stand behind the others of an epoch, and silent ones nowhere."""
    write_silence(tmp_path, sound=0.5)
    faint = 1e-4 * np.random.default_rng(1).standard_normal(6 * RATE)
    soundfile.write(tmp_path / "train" / "faint.wav", faint, RATE, subtype="FLOAT")
    dataset = opened_waves(tmp_path)
    order = ShuffledBatches(len(dataset), 2, 0)
    spreads = starting_signals(dataset, order, 0, 40).unflatten(0, (-1, 2)).flatten(1).std(1)
    heard = int((spreads > 1e-2).sum())
    assert 1 <= heard < 10 < len(spreads) < 40 and (spreads > 0).all()
    assert (spreads[:heard] > 1e-2).all() and (spreads[heard:] < 2e-4).all()


# ---------------------------------------------------------------------------------- compared


def test_waveforms_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("hqvae.compare.jobs.Popen", Command)  # forks, without seconds of imports
    write_splits(tmp_path, train=2.0)
    settings = {
        "model.net.widths": [8],
        "model.net.inner_blocks": 0,
        "data.seconds": 0.3,
        "train.batch_size": 2,
        "train.steps": 2,
        "train.validate_every": 2,
    }
    systems = {"RSQ": {"preset": "rsqvae-audio"}, "RQ": {"preset": "rqvae-audio"}}
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(json.dumps({"settings": settings, "systems": systems, "seeds": [0]}))
    words = ["compare", str(spec), "--data", str(tmp_path), "--out", str(out)]
    assert main([*words, "--accelerator", "cpu"]) == 0
    page = (out / "report.html").read_text()
    assert all(head in page for head in ("SI-SDR dB", "mel distance", "log-mel RMSE"))
    assert any("reconstructions" in path.name for path in out.rglob("*.png"))


def test_a_codec_stands_beside_opus(tmp_path, capsys):
    """experiments/opus.py: Opus' bits are those of its file, ours those of the codes.

    Both are compared at full length.
    """
    script = Path(__file__).parents[1] / "experiments" / "opus.py"
    spec = importlib.util.spec_from_file_location("opus", script)
    opus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(opus)
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16100) / 16000)
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", samples, 16000)
    words, run = train("rsqvae-audio", tmp_path, "train.batch_size=2", "train.steps=1")
    assert main(words) == 0
    opus.main(Run.open(run), str(tmp_path), tmp_path / "speech")
    rows = json.loads((tmp_path / "speech.opus.json").read_text())["rows"]
    assert rows["run, 8 layers"]["bits_per_second"] == pytest.approx(126 * 64 / (16100 / 16000))
    careful = rows["Opus, level 0.9"]
    assert careful["si_sdr"] > 15 and 20_000 < careful["bits_per_second"] < 50_000
    assert rows["Opus, level 1"]["bits_per_second"] < rows["Opus, level 0.96"]["bits_per_second"]
    assert (tmp_path / "speech.opus.png").stat().st_size > 1000
    assert "Opus, level 1" in capsys.readouterr().out
