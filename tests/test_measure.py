"""Measures: means over the split whatever the batches, ablation that knows a dead layer, findings that name it."""

import dataclasses
import math

import pytest
import torch
from conftest import build, signals

from hqvae.data import PIXEL_UNIT, to_signal
from hqvae.doctor import diagnose
from hqvae.likelihood import SpectralConfig
from hqvae.measure import LayerMeasures, Measures, findings, measure
from hqvae.model import HQVAEConfig
from hqvae.quantize import EMAConfig

STOCHASTIC, DETERMINISTIC = HQVAEConfig(), HQVAEConfig(quantizer=EMAConfig())


def eight_bit(count=10, seed=3):
    return ((signals(count, seed=seed) + 1) * 127.5).round().to(torch.uint8)


def measured(model, batches, **options):
    return measure(model, map(to_signal, batches), PIXEL_UNIT, **options)


def in_batches(images, size):
    return [images[i : i + size] for i in range(0, len(images), size)]


def test_no_figure_depends_on_the_batch_size(member):
    images = eight_bit(140)
    one, many = (
        measured(member, in_batches(images, size), shuffle_images=133) for size in (140, 3)
    )
    for key in (
        "images",
        "shuffled_images",
        "rmse",
        "psnr",
        "ssim",
        "bits_per_dim",
        "bits_per_dim_nearest",
        "bits_per_pixel",
        "loss",
    ):
        assert getattr(one, key) == pytest.approx(getattr(many, key), rel=1e-4), key
    for a, b in zip(one.layers, many.layers):
        assert (a.perplexity, a.used, a.positions) == pytest.approx(
            (b.perplexity, b.used, b.positions), rel=1e-6
        )
        assert (a.rmse_after, a.entropy_bits) == pytest.approx(
            (b.rmse_after, b.entropy_bits), rel=1e-3, abs=1e-5
        )
        assert (a.rmse_shuffled, a.psnr_loss) == pytest.approx(
            (b.rmse_shuffled, b.psnr_loss), rel=1e-3, abs=1e-5
        )


def test_figures_have_their_textbook_values(member):
    images = eight_bit()
    found, x = measured(member, [images]), images.float() / 127.5 - 1
    x_hat = member.decode(member.encode(x)).clamp(-1, 1)
    error = (x - x_hat).square().flatten(1).mean(1)
    assert found.rmse == pytest.approx(127.5 * error.mean().sqrt().item(), rel=1e-5)
    assert found.psnr == pytest.approx((10 * torch.log10(4 / error)).mean().item(), rel=1e-5)
    rate = sum(
        c[0].numel() * math.log2(layer.quantizer.codebook_size)
        for c, layer in zip(member.encode(x), member.layers)
    )
    assert found.bits_per_pixel == pytest.approx(rate / 256)
    assert found.layers[-1].rmse_after == pytest.approx(found.rmse, rel=1e-6)
    for index, layer in enumerate(found.layers):
        counts = torch.bincount(member.encode(x)[index].flatten()).double()
        p = counts[counts > 0] / counts.sum()
        assert layer.perplexity == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)
        assert layer.used == len(p)


def test_bits_per_dim_of_a_deterministic_model_is_rate_plus_gaussian():
    model, images = build("ema", "residual").eval(), eight_bit()
    found, x = measured(model, [images]), images.float() / 127.5 - 1
    error = (x - model(x).reconstruction).square().mean().item() + (2 / 255) ** 2 / 12
    expected = (
        0.5 * math.log2(2 * math.pi * math.e * error) + math.log2(127.5) + found.bits_per_pixel / 3
    )
    assert found.bits_per_dim == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_dim_nearest == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_always_says_the_same_carries_nothing():
    """All codes far away but one: the layer is constant, its shuffle changes nothing, and both alarms name it."""
    model = build("ema", "two").eval()
    with torch.no_grad():
        model.layers[1].quantizer.codebook[1:] += 1e6
    found = measured(model, [eight_bit()])
    dead, alive = found.layers[1], found.layers[0]
    assert (
        dead.perplexity == pytest.approx(1)
        and dead.used == 1
        and dead.psnr_loss == pytest.approx(0, abs=1e-6)
    )
    assert alive.used > 1
    kinds = {(f.layer, f.kind) for f in findings(found, model.config)}
    assert {("level 1 layer 0", "carries nothing")} <= kinds


def test_ablation_counts_only_the_images_it_used():
    found = measured(build("ema", "one"), in_batches(eight_bit(), 2), shuffle_images=4)
    assert found.shuffled_images == 4 and found.images == 10


def layer(**changes):
    healthy = {
        "level": 0, "layer": 0, "stride": 4, "positions": 64, "codebook_size": 512, "perplexity": 400.0, "used": 510, "entropy_bits": 1.0,
        "s2": 0.1, "rmse_after": 10.0, "psnr_after": 28.0, "rmse_shuffled": 50.0, "psnr_loss": 14.0,
    }  # fmt: skip
    return LayerMeasures(**{**healthy, **changes})


def measures(*layers):
    return Measures(100, 10.0, 28.0, 0.9, 4.0, 3.9, 0.5, 0.01, -1000.0, 100, layers)


@pytest.mark.parametrize(
    ("changes", "stochastic", "kinds"),
    [
        ({}, True, []),
        ({"perplexity": 51.0}, True, ["collapsed"]),
        ({"perplexity": 52.0}, True, []),
        ({"psnr_loss": 0.04}, True, ["carries nothing"]),
        ({"psnr_loss": 0.06}, True, []),
        # Errors of the whole split and of the shuffled part are of other signals: they say nothing about each other.
        ({"rmse_shuffled": 9.0}, True, []),
        # 100 images of one position each can show no more than 100 codes.
        ({"positions": 1, "perplexity": 30.0}, True, []),
        ({"positions": 1, "perplexity": 9.0}, True, ["collapsed"]),
        ({"entropy_bits": 8.7}, True, ["posterior uniform"]),
        ({"s2": math.exp(35)}, True, ["variance at its bound"]),
        ({"s2": math.exp(-35)}, True, ["variance at its bound"]),
        ({"s2": 1e14}, True, []),
        ({"s2": 0.0}, False, []),
        ({"entropy_bits": 8.7}, False, []),
        # Failure mode 2: the posterior is uniform, so a soft perplexity would read 512, while the layer carries nothing.
        (
            {"entropy_bits": 9.0, "psnr_loss": -0.1, "perplexity": 3.0},
            True,
            ["carries nothing", "collapsed", "posterior uniform"],
        ),
    ],
)
def test_findings_stand_at_their_thresholds(changes, stochastic, kinds):
    assert [
        f.kind
        for f in findings(measures(layer(**changes)), STOCHASTIC if stochastic else DETERMINISTIC)
    ] == kinds


def test_the_doctor_says_every_problem_with_a_remedy():
    bad = measures(layer(), layer(layer=1, perplexity=3.0, psnr_loss=0.0, psnr_after=27.0))
    text = "\n".join(diagnose(bad, findings(bad, STOCHASTIC), STOCHASTIC))
    assert (
        "PROBLEM level 0 layer 1 carries nothing" in text
        and "PROBLEM level 0 layer 1 collapsed" in text
        and text.count("TRY:") >= 3
    )
    assert "1.00 dB worse than without it" in text
    good = measures(layer())
    assert "No layer has collapsed" in "\n".join(diagnose(good, [], STOCHASTIC))


def test_every_measure_is_finite(member):
    found = dataclasses.asdict(measured(member, [eight_bit()]))
    numbers = [v for v in found.values() if isinstance(v, float)] + [
        v for one in found["layers"] for v in one.values()
    ]
    assert all(math.isfinite(number) for number in numbers)


def test_advice_knows_what_is_already_done():
    dead = measures(layer(psnr_loss=0.0))
    assert "model.progressive=1" in findings(dead, HQVAEConfig())[0].advice
    assert "model.progressive" not in findings(dead, HQVAEConfig(progressive=1.0))[0].advice


@pytest.mark.parametrize(
    ("config", "advised"),
    [
        (STOCHASTIC, True),
        (HQVAEConfig(channels=1, axes=1, spectral=SpectralConfig(weight=1)), False),
    ],
)
def test_hardening_is_not_advised_where_it_is_refused(config, advised):
    soft = measures(layer(entropy_bits=8.0))
    assert ("train.hard" in "\n".join(diagnose(soft, [], config))) == advised


def test_the_rate_is_not_called_idle_for_want_of_images():
    few = Measures(1, 10.0, 28.0, 0.9, 4.0, 3.9, 0.5, 0.01, -1000.0, 1, (layer(perplexity=60.0),))
    assert "idle" not in "\n".join(diagnose(few, [], STOCHASTIC))
    assert "idle" in "\n".join(diagnose(measures(layer(perplexity=60.0)), [], STOCHASTIC))
