"""Waveforms: views that cost what they say, figures that move with what they measure, the same tokens whatever stands beside a sound."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from processes import Command

from conftest import FAMILY, build, signals
from hqvae.cli import main
from hqvae.config import PRESETS, override, preset
from hqvae.likelihood import FittedGaussian, SpectralConfig
from hqvae.metrics import AudioQuality, stft_distance
from hqvae.model import HQVAE
from hqvae.nets import NetConfig
from hqvae.quantize import Noise
from hqvae.spectra import log_mel, log_spectrum

RATE = 8000
VIEWS = SpectralConfig(weight=2.0, rate=RATE, n_ffts=(256, 64))


def noise(seconds=0.5, count=2, seed=0):
    return (
        torch.randn(count, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
        * 0.1
    )


def wave_model(name="rsqvae-audio", **changes) -> HQVAE:
    """A preset for waveforms, made small."""
    torch.manual_seed(0)
    config = preset(name).model
    model = HQVAE(
        replace(
            config,
            net=replace(config.net, widths=(8, 12), inner_blocks=1),
            spectral=VIEWS,
            **changes,
        )
    )
    model.scale_from(noise(count=4)[:, None])
    model.start_from(noise(count=4)[:, None], Noise(5))
    return model


# ------------------------------------------------------------------------------------------------ lengths


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_neither_padding_nor_batch_mates_change_a_token(family, axes):
    """Signals of several lengths in one batch, with rubbish where they have ended: the tokens and samples of each one alone."""
    model = build(*family, axes=axes).eval()
    x, lengths = signals(4, 48, axes, seed=2), [48, 41, 8, 1]
    alone = [model.encode(x[i : i + 1, ..., :length]) for i, length in enumerate(lengths)]
    rubbish = x.clone()
    for i, length in enumerate(lengths):
        rubbish[i, ..., length:] = 0.9 * (-1) ** i
    found = model.encode(rubbish, lengths)
    back = model.decode(found, size=x.shape[2:], lengths=lengths)
    for i, (codes, length) in enumerate(zip(alone, lengths)):
        for layer, code in enumerate(codes):
            count = code.shape[-1]
            assert torch.equal(found[layer][i, ..., :count], code[0]), (length, layer)
            assert not found[layer][i, ..., count:].any()
        expected = model.decode(codes, size=[*x.shape[2:-1], length])[0]
        assert (
            torch.allclose(back[i, ..., :length], expected, atol=1e-5)
            and not back[i, ..., length:].any()
        )
    assert any(
        not torch.equal(one, other) for one, other in zip(model.encode(rubbish), found)
    )  # without lengths rubbish is seen


@pytest.mark.parametrize("lengths", [[16, 16], [0, 16, 16, 16], [17, 16, 16, 16]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    model = build("ema", "one", axes=1).eval()
    codes = model.encode(signals(axes=1))
    for attempt in (
        lambda: model.encode(signals(axes=1), lengths),
        lambda: model.decode(codes, lengths=lengths),
    ):
        with pytest.raises(ValueError, match=r"expected 4 from 1 to 16"):
            attempt()


def test_the_networks_are_as_before_after_lengths():
    model = build("ema", "one", axes=1).eval()
    before = model.encode(signals(axes=1))
    model.encode(signals(axes=1), [3, 4, 5, 16])
    assert all(torch.equal(one, other) for one, other in zip(before, model.encode(signals(axes=1))))


# ------------------------------------------------------------------------------------------------ views


def test_a_view_costs_what_its_definition_says():
    """J gains weight · mean over views of (D/2) log of the view's mean squared difference, D the samples of the waveform."""
    model, x = wave_model().train(), noise(count=3)[:, None]
    seen = model(x, 1.0, Noise(3))
    assert seen.views.shape == (3, 4) and seen.sigma2.shape == (5,)
    costs = [x[0].numel() / 2 * math.log(float(apart.mean())) for apart in seen.views.T]
    terms = x[0].numel() / 2 * math.log(float(seen.distortion.mean()) / x[0].numel())
    terms += float((seen.fit.sum(1) - seen.entropy.sum(1)).mean())
    assert float(seen.loss.detach()) == pytest.approx(
        terms + VIEWS.weight * sum(costs) / 4, rel=1e-5
    )
    there, here = x[:, 0], seen.reconstruction[:, 0]
    expected = [log_spectrum(there, 256, 64, 1e-3) - log_spectrum(here, 256, 64, 1e-3)]
    expected.append(
        log_mel(there, RATE, 256, 64, 40, 0.0, 4000.0, 1e-3)
        - log_mel(here, RATE, 256, 64, 40, 0.0, 4000.0, 1e-3)
    )
    for found, apart in zip(seen.views.T, expected):
        torch.testing.assert_close(found, apart.square().mean((1, 2)))


@pytest.mark.parametrize("progressive", [0.0, 1.0])
def test_views_of_accumulated_batches_are_those_of_the_whole(progressive):
    model, x = wave_model(progressive=progressive).train(), noise(count=4)[:, None]
    whole = model(x, 1.0, Noise(3))
    whole.loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    halves = [slice(0, 2), slice(2, 4)]
    with torch.no_grad():
        sigma2 = torch.stack(
            [model(x[half], 1.0, Noise(3)._replace(samples=half.start)).sigma2 for half in halves]
        ).mean(0)
    for half in halves:
        (model(x[half], 1.0, Noise(3)._replace(samples=half.start), sigma2).loss / 2).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(sigma2) == (10 if progressive else 5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-6
        )


def test_views_send_gradients_where_the_waveform_agrees():
    """Half the amplitude in a band that hardly weighs in the squared error: the views see it."""
    x = noise(count=1)
    quiet = x.clone().requires_grad_()
    there, here = VIEWS.views(x[:, None] + 0.0), VIEWS.views(0.5 * quiet[:, None])
    sum((a - b).square().sum() for a, b in zip(there, here)).backward()
    assert torch.isfinite(quiet.grad).all() and (quiet.grad * x).sum() < 0  # louder is better


def test_silence_and_its_gradient_are_finite():
    model = wave_model().train()
    out = model(torch.zeros(2, 1, 4000), 1.0, Noise(3))
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_deterministic_systems_add_the_mean_square_of_views():
    model, x = wave_model("rqvae-audio").train(), noise(count=3)[:, None]
    out = model(x, 1.0, Noise(3))
    expected = (
        out.distortion.mean() / 4000 + out.fit.sum(1).mean() + VIEWS.weight * out.views.mean()
    )
    torch.testing.assert_close(out.loss, expected)


REFUSED = {
    "of pictures": (
        ["sqvae", "model.spectral.weight=1"],
        "spectral.weight=1 is for waveforms, with axes=1 and channels=1",
    ),
    "of another rate": (
        ["rsqvae-audio", "data.rate=8000"],
        "model.spectral.rate=16000, but data.rate=8000; expected the same",
    ),
    "longer than a segment": (
        ["rsqvae-audio", "data.seconds=0.05"],
        "a window of 2048 needs segments of more than 1024 samples, but these",
    ),
    "of endless segments": (["rsqvae-audio", "data.seconds=.inf"], "data.seconds"),
    "of nothing": (["rsqvae-audio", "data.seconds=1e-5"], "0 samples, and a segment needs 1"),
    "of odd windows": (
        ["rsqvae-audio", "model.spectral.n_ffts=[30]"],
        "window lengths are multiples of 4 from 16 on, not [30]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_views_that_cannot_be_are_refused(case, tmp_path, capsys):
    settings, words = REFUSED[case]
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", noise(1.0, 1)[0].numpy(), RATE)
    data = "photos" if settings[0] == "sqvae" else str(tmp_path)
    assert main(["train", *settings, "--data", data, "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ figures


def figures(x, x_hat, rate=RATE):
    quality = AudioQuality(rate)
    for one, other in zip(x.split(2), x_hat.split(2)):
        quality.add(one[:, None], other[:, None])
    return quality.values()


@pytest.mark.parametrize("decibel", [-10.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_of_what_is_alike_to_what_is_not(decibel):
    """Noise at right angles to the sound, and any factor on the sum."""
    x, other = noise(count=3), noise(count=3, seed=1)
    other -= (other * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    other *= x.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True) * 10 ** (-decibel / 20)
    assert figures(x, 3.0 * (x + other))["si_sdr"] == pytest.approx(decibel, abs=1e-3)


def test_a_gain_moves_log_spectra_by_its_logarithm():
    x = noise(count=3)
    found = figures(x, x * math.e**0.5)
    assert found["mel_distance"] == pytest.approx(0.5, abs=1e-4) and found[
        "log_mel_rmse"
    ] == pytest.approx(0.5, abs=1e-4)
    assert found["stft_distance"] == pytest.approx(0.5 + math.e**0.5 - 1, abs=1e-3)
    assert {figure for name, figure in figures(x, x).items() if name != "si_sdr"} == {
        0.0
    } and figures(x, x)["si_sdr"] > 60


def test_figures_are_means_over_segments_not_over_batches():
    x = noise(count=3)
    x_hat = x * torch.tensor([1.0, 1.0, math.e])[:, None]
    assert figures(x, x_hat)["mel_distance"] == pytest.approx(1 / 3, abs=1e-4)
    assert float(stft_distance(x, x_hat, RATE)[2]) == pytest.approx(math.e, abs=1e-3)


def test_figures_that_a_sound_cannot_have_are_left_out():
    silent = figures(torch.zeros(2, 4000), noise())
    assert silent.keys() == {"mel_distance", "log_mel_rmse"} and silent["mel_distance"] > 1
    assert figures(noise(0.01), noise(0.01, seed=1)).keys() == {"si_sdr"}


def test_one_silent_segment_does_not_rule_the_others():
    x, x_hat = noise(count=4), noise(count=4) * 0.9
    expected = figures(x[:3], x_hat[:3])["stft_distance"]
    x[3] = 0
    assert figures(x, x_hat)["stft_distance"] == pytest.approx(expected, rel=1e-5)


def test_a_silent_reconstruction_is_the_worst():
    assert figures(noise(), torch.zeros(2, 4000))["si_sdr"] == -100
    assert figures(noise(), noise(seed=1))["si_sdr"] > -60


def test_views_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        seen = VIEWS.views(noise()[:, None])
    for one, other in zip(seen, VIEWS.views(noise()[:, None])):
        assert one.dtype == torch.float32 and torch.equal(one, other)


# ------------------------------------------------------------------------------------------------ the command

AUDIO = [name for name, config in PRESETS.items() if config.model.axes == 1]


@pytest.mark.parametrize("name", AUDIO)
def test_train_evaluate_and_resume_waveforms_from_the_command(name, tmp_path, capsys):
    for split, seconds in (("train", 3.0), ("validation", 1.3), ("test", 1.7)):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", noise(seconds, 1)[0].numpy(), RATE)
    settings = [
        "model.net.widths=[8]",
        "model.net.inner_blocks=0",
        "data.seconds=0.3",
        "train.batch_size=2",
        "train.steps=4",
        "train.log_every=2",
    ]
    run = tmp_path / "run"
    words = [
        "train",
        name,
        "--data",
        str(tmp_path),
        "--out",
        str(run),
        "--accelerator",
        "cpu",
        *settings,
    ]
    assert main(words) == 0 and main([*words, "--resume"]) == 0
    assert (run / "report" / "training-reconstructions.png").stat().st_size > 1000
    assert main(["evaluate", str(run), "--accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert all(
        head in shown
        for head in (
            "RMSE (amplitude)",
            "SI-SDR dB",
            "STFT distance",
            "mel distance",
            "rate bits/s",
        )
    )
    measures = json.loads((run / "report" / "report.json").read_text())["measures"]
    levels = override(preset(name), settings).model.levels
    codes = sum(
        level.layers * math.ceil(4800 / levels[0].stride) * (levels[0].stride // level.stride) * 8
        for level in levels
    )
    assert measures["bits_per_second"] == pytest.approx(codes / 0.3)
    samples, rate = soundfile.read(run / "report" / "audio" / "0-original.wav")
    assert rate == 16000 and len(samples) == 4800 and np.abs(samples).max() > 0.05
    assert (run / "report" / "reconstructions.png").stat().st_size > 1000
    assert main(["evaluate", str(run), "--seconds", "1.1", "--accelerator", "cpu"]) == 0
    assert (
        json.loads((run / "report" / "report.json").read_text())["protocol"]["data"]["seconds"]
        == 1.1
    )
    assert len(soundfile.read(run / "report" / "audio" / "0-original.wav")[0]) == 17600
    for seconds, words in (
        ("0.05", "a window of 2048 needs segments of more than 1024"),
        ("inf", "expected a number above 0"),
        ("0", "above 0"),
    ):
        assert main(["evaluate", str(run), "--seconds", seconds, "--accelerator", "cpu"]) == 2
        assert words in capsys.readouterr().err


def test_a_codec_stands_beside_opus(tmp_path, capsys):
    """The script of docs/sound.md: Opus' bits are those of its file, ours those of the codes, and both are compared at full length."""
    script = importlib.util.spec_from_file_location(
        "opus", Path(__file__).parents[1] / "experiments" / "opus.py"
    )
    opus = importlib.util.module_from_spec(script)
    script.loader.exec_module(opus)
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16100) / 16000)
        soundfile.write(tmp_path / split / "a.wav", samples, 16000)
    run = tmp_path / "run"
    settings = [
        "model.net.widths=[8]",
        "model.net.inner_blocks=0",
        "data.seconds=0.3",
        "train.batch_size=2",
        "train.steps=1",
    ]
    assert (
        main(
            [
                "train",
                "rsqvae-audio",
                "--data",
                str(tmp_path),
                "--out",
                str(run),
                "--accelerator",
                "cpu",
                *settings,
            ]
        )
        == 0
    )
    opus.main(opus.Run.open(run), str(tmp_path), tmp_path / "speech")
    rows = json.loads((tmp_path / "speech.opus.json").read_text())["rows"]
    assert rows["run, 8 layers"]["bits_per_second"] == pytest.approx(126 * 64 / (16100 / 16000))
    assert (
        rows["Opus, level 0.9"]["si_sdr"] > 15
        and 20_000 < rows["Opus, level 0.9"]["bits_per_second"] < 50_000
    )
    assert rows["Opus, level 1"]["bits_per_second"] < rows["Opus, level 0.96"]["bits_per_second"]
    assert (
        tmp_path / "speech.opus.png"
    ).stat().st_size > 1000 and "Opus, level 1" in capsys.readouterr().out


def test_waveforms_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("hqvae.compare.jobs.Popen", Command)  # forks
    for split, seconds in (("train", 2.0), ("validation", 1.0), ("test", 1.0)):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", noise(seconds, 1)[0].numpy(), RATE)
    spec = tmp_path / "spec.yaml"
    settings = {"model.net.widths": [8], "model.net.inner_blocks": 0, "data.seconds": 0.3, "train.batch_size": 2, "train.steps": 2,
                "train.validate_every": 2}  # fmt: skip
    systems = {"RSQ": {"preset": "rsqvae-audio"}, "RQ": {"preset": "rqvae-audio"}}
    spec.write_text(json.dumps({"settings": settings, "systems": systems, "seeds": [0]}))
    assert (
        main(
            [
                "compare",
                str(spec),
                "--data",
                str(tmp_path),
                "--out",
                str(tmp_path / "out"),
                "--accelerator",
                "cpu",
            ]
        )
        == 0
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(head in page for head in ("SI-SDR dB", "mel distance", "log-mel RMSE"))
    assert any("reconstructions" in path.name for path in (tmp_path / "out" / "pictures").iterdir())


def test_segments_shorter_than_a_picture_s_window_are_trained_and_drawn(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "a.wav", noise(0.2, 1)[0].numpy(), RATE)
    settings = [
        "model.net.widths=[8]",
        "model.net.inner_blocks=0",
        "model.spectral.weight=0",
        "data.seconds=0.03",
        "train.steps=1",
    ]
    words = [
        "train",
        "rsqvae-audio",
        *settings,
        "train.batch_size=16",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
    ]
    assert (
        main([*words, "--accelerator", "cpu"]) == 0
        and main(["evaluate", str(tmp_path / "run"), "--accelerator", "cpu"]) == 0
    )
    measures = json.loads((tmp_path / "run" / "report" / "report.json").read_text())["measures"]
    assert measures["mel_distance"] is None and measures["si_sdr"] is not None


def test_seconds_are_for_sounds(tmp_path, capsys):
    np.savez(
        tmp_path / "pictures.npz",
        x=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
    )
    words = [
        "train",
        "sqvae",
        "--data",
        str(tmp_path / "pictures.npz"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert (
        main(
            [
                *words,
                "train.steps=1",
                "train.batch_size=2",
                "model.net.widths=[8]",
                "model.levels.0.codebook_size=8",
            ]
        )
        == 0
    )
    assert main(["evaluate", str(tmp_path / "run"), "--seconds", "2"]) == 2
    assert "is of images" in capsys.readouterr().err


def test_the_default_codec_has_the_rate_it_names():
    for name in ("rsqvae-audio", "rqvae-audio"):
        config = preset(name)
        assert config.model.bits_per_point * config.data.rate == 8000
    assert preset("hqvae-audio").model.bits_per_point * 16000 == 8000


def test_dilations_go_round():
    net = NetConfig(widths=(4,), dilations=(1, 3, 9))
    from hqvae.nets import res_blocks

    assert [block.wide.dilation for block in res_blocks(1, 4, net, 5)] == [
        (1,),
        (3,),
        (9,),
        (1,),
        (3,),
    ]
    assert res_blocks(1, 4, net, 5)(torch.zeros(1, 4, 7)).shape == (1, 4, 7)


def test_variances_of_views_are_those_of_the_batch():
    model, x = wave_model().train(), noise(count=3)[:, None]
    out = model(x, 1.0, Noise(3))
    torch.testing.assert_close(out.sigma2[1:], out.views.mean(0))
    torch.testing.assert_close(out.sigma2[0], FittedGaussian.variance(out.distortion, 4000))
