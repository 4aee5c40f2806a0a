"""Measures: means over the split whatever the batches, and an ablation that knows a dead layer."""

import dataclasses
import math

import pytest
import torch

from conftest import build, signals
from hqvae.data import PIXEL_UNIT, SignalUnit
from hqvae.measure import measure
from hqvae.metrics import SSIM, Distortion, Metric

AMPLITUDE = SignalUnit(scale=1.0, name="amplitude", step=1 / 32768, per_second=16_000.0)


def eight_bit(count=10, seed=3):
    """Signals of 8-bit values."""
    return ((signals(count, seed=seed) + 1) * 127.5).round() / 127.5 - 1


def in_batches(x, size):
    return list(x.split(size))


def measured(model, batches, unit=PIXEL_UNIT, **options):
    metrics: list[Metric] = [Distortion(unit.scale), SSIM()]
    return measure(model, batches, unit, metrics, **options)


def test_no_figure_depends_on_the_batch_size(member):
    x = eight_bit(140)
    one, many = (measured(member, in_batches(x, size), shuffle_items=133) for size in (140, 27))
    figures, others = one.entry(), many.entry()
    assert figures.pop("bits_per_second") is others.pop("bits_per_second") is None
    for key in figures.keys() - {"layers"}:
        assert figures[key] == pytest.approx(others[key], rel=1e-4), key
    assert {"rmse", "psnr", "ssim", "bits_per_dim", "loss", "items"} <= figures.keys()
    close = {"perplexity": 1e-6, "used": 0, "positions": 0}
    for layer, other in zip(figures["layers"], others["layers"]):
        assert layer.pop("perplexity_free") is other.pop("perplexity_free") is None
        for key, value in layer.items():
            tolerance = close.get(key, 1e-3)
            assert value == pytest.approx(other[key], rel=tolerance, abs=1e-5), key


def test_figures_have_their_textbook_values(member):
    x = eight_bit()
    found = measured(member, [x])
    codes = member.encode(x)
    error = (x - member.decode(codes).clamp(-1, 1)).square().flatten(1).mean(1)
    assert found.items == len(x)
    assert found.figures["rmse"] == pytest.approx(127.5 * error.mean().sqrt().item(), rel=1e-5)
    assert found.psnr == pytest.approx((10 * torch.log10(4 / error)).mean().item(), rel=1e-5)
    rate = sum(
        layer[0].numel() * math.log2(place.codebook_size)
        for layer, place in zip(codes, member.config.layers)
    )
    assert found.bits_per_point == pytest.approx(rate / 256)
    assert found.layers[-1].rmse_cumulative == pytest.approx(found.figures["rmse"], rel=1e-6)
    for index, layer in enumerate(found.layers):
        counts = torch.bincount(codes[index].flatten()).double()
        p = counts[counts > 0] / counts.sum()
        assert layer.perplexity == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)
        assert layer.used == len(p)


@pytest.mark.parametrize("quantizer", ["stochastic", "ema"])
def test_the_loss_is_the_training_objective_in_evaluation_mode(quantizer):
    """Of one batch without clamping: σ² is then the same."""
    model, x = build(quantizer, "hybrid").eval(), eight_bit()
    assert model(x).reconstruction.abs().max() <= 1
    assert measured(model, [x]).loss == pytest.approx(model(x).loss.item(), rel=1e-4)


@pytest.mark.parametrize("likelihood", ["gaussian", "mse"])
def test_bits_per_dim_of_a_deterministic_model_is_rate_plus_gaussian(likelihood):
    model, x = build("ema", "residual", likelihood=likelihood).eval(), eight_bit()
    found = measured(model, [x])
    error = (x - model(x).reconstruction).square().mean().item() + (2 / 255) ** 2 / 12
    gaussian = 0.5 * math.log2(2 * math.pi * math.e * error) + math.log2(127.5)
    expected = gaussian + found.bits_per_point / 3
    assert found.sigma2 == pytest.approx(error, rel=1e-5)
    assert found.bits_per_dim == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_dim_deterministic == pytest.approx(expected, rel=1e-5)


def test_bits_per_second_are_bits_per_point_times_points_per_second():
    model = build("ema", "one", axes=1).eval()
    found = measured(model, [signals(axes=1)], AMPLITUDE)
    assert found.bits_per_second == pytest.approx(16_000 * found.bits_per_point)
    assert measured(model, [signals(axes=1)]).bits_per_second is None


def test_a_layer_that_always_says_the_same_carries_nothing():
    """All codes far away but one: the layer is constant, and its shuffle changes nothing."""
    model = build("ema", "two").eval()
    with torch.no_grad():
        model.levels[1].quantizer.codebooks[0].vectors[1:] += 1e6
    alive, dead = measured(model, [eight_bit()]).layers
    assert dead.perplexity == pytest.approx(1) and dead.used == 1
    assert dead.ablation_drop_db == pytest.approx(0, abs=1e-6)
    assert alive.used > 1


def test_ablation_counts_only_the_items_it_used():
    found = measured(build("ema", "one"), in_batches(eight_bit(), 2), shuffle_items=4)
    assert found.shuffled_items == 4 and found.items == 10


def test_every_measure_is_finite(member):
    found = measured(member, [eight_bit()]).entry()
    layers = found.pop("layers")
    numbers = [value for entry in (found, *layers) for value in entry.values()]
    assert all(math.isfinite(value) for value in numbers if value is not None)


def test_the_entry_has_the_figures_beside_the_rest():
    found = measured(build("ema", "one"), [eight_bit()])
    entry = found.entry()
    assert "figures" not in entry and entry["psnr"] == found.psnr
    names = {field.name for field in dataclasses.fields(found)} - {"figures"}
    assert entry.keys() == names | found.figures.keys()


def test_no_signal_is_refused():
    with pytest.raises(ValueError, match="no signal to measure on"):
        measured(build("ema", "one"), [])
