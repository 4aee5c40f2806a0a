"""Figures with known values, and that batches add up to the split."""

import math

import pytest
import torch

from hqvae.metrics import SSIM, AudioQuality, Distortion, Mean, Metric, Usage, psnr, ssim
from hqvae.metrics.audio import stft_distance


@pytest.mark.parametrize(
    ("mean_square", "decibel"),
    [(4.0, 0.0), (0.4, 10.0), (0.04, 20.0), (4e-5, 50.0), ((2 / 255) ** 2, 48.1308)],
)
def test_psnr_of_signals_two_wide(mean_square, decibel):
    assert float(psnr(torch.tensor([mean_square]))) == pytest.approx(decibel, abs=1e-4)


def test_psnr_is_per_signal_and_finite_where_nothing_is_missed():
    values = psnr(torch.tensor([0.0, 0.04]))
    assert (
        values.isfinite().all()
        and values[0] > 100
        and float(values[1]) == pytest.approx(20.0, abs=1e-4)
    )


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(11, 11), (16, 24)])
@pytest.mark.parametrize("count", [1, 3])
def test_ssim_of_identical_images_is_one(count, size):
    x = images(count, 3, *size)
    torch.testing.assert_close(ssim(x, x), torch.ones(count))


def test_ssim_is_per_image_and_falls_with_noise():
    x = images(3, 3, 16, 16)
    noisy = x + torch.tensor([0.0, 0.1, 1.0]).view(3, 1, 1, 1) * images(3, 3, 16, 16).flip(3)
    one, some, much = ssim(x, noisy).tolist()
    assert one == pytest.approx(1.0, abs=1e-5) and 0.5 < some < 0.999 and much < some
    torch.testing.assert_close(ssim(x[1:2], noisy[1:2]), ssim(x, noisy)[1:2])


def test_ssim_of_flat_images_is_the_luminance_term():
    """With no variance at all, (2ab + c)/(a² + b² + c) remains, c = (0.01 · 2)²."""
    a, b, c = 0.5, 0.25, (0.01 * 2) ** 2
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert float(value) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), rel=1e-3)


@pytest.mark.parametrize("size", [(10, 16), (16, 10), (4, 4)])
def test_images_smaller_than_the_window_have_no_ssim(size):
    assert ssim(images(2, 3, *size), images(2, 3, *size)) is None
    metric = SSIM()
    metric.add(images(2, 3, *size), images(2, 3, *size))
    assert metric.values() == {}


def test_signals_that_are_no_images_have_no_ssim():
    metric = SSIM()
    metric.add(images(2, 1, 64), images(2, 1, 64))
    assert metric.values() == {}


def test_distortion_has_its_textbook_values():
    """RMSE of the mean squared error; PSNR as a mean of decibels, which is another thing."""
    x = torch.zeros(2, 3, 8, 8)
    x_hat = x + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    metric = Distortion(scale=127.5)
    metric.add(x[:1], x_hat[:1])
    metric.add(x[1:], x_hat[1:])
    values = metric.values()
    assert values["mse"] == pytest.approx(0.05) and values["rmse"] == pytest.approx(
        127.5 * 0.05**0.5
    )
    decibels = [10 * math.log10(4 / 0.01), 10 * math.log10(4 / 0.09)]
    assert values["psnr"] == pytest.approx(sum(decibels) / 2, abs=1e-4)
    assert metric.global_count() == 2


@pytest.mark.parametrize("make", [Distortion, SSIM], ids=lambda make: make.__name__)
def test_a_metric_of_images_is_of_the_split_whatever_the_batches(make):
    x, x_hat = images(7, 3, 16, 16), images(7, 3, 16, 16).flip(0)
    whole, batched = make(), make()
    whole.add(x, x_hat)
    for batch in (slice(0, 4), slice(4, 7)):
        batched.add(x[batch], x_hat[batch])
    assert whole.values() == pytest.approx(batched.values(), rel=1e-5)
    assert isinstance(whole, Metric) and make().values() == {}


@pytest.mark.parametrize("batch", [1, 4, 7, 10, 100])
def test_mean_weighs_signals_not_batches(batch):
    values, mean = torch.arange(10.0).square(), Mean()
    for part in values.split(batch):
        mean.add(part)
    assert mean.value() == pytest.approx(28.5) and mean.global_count() == 10


def test_mean_of_nothing_is_not_a_number():
    assert math.isnan(Mean().value()) and Mean().global_count() == 0


def test_mean_adds_in_double_precision():
    mean = Mean()
    mean.add(torch.full((1,), 1e8))
    for _ in range(100):
        mean.add(torch.ones(1))
    assert mean.value() == pytest.approx((1e8 + 100) / 101, rel=1e-12)


@pytest.mark.parametrize(
    ("codes", "perplexity", "used"),
    [
        (list(range(8)), 8.0, 8),
        ([3] * 5, 1.0, 1),
        ([0, 7], 2.0, 2),
        ([1, 1, 1, 2], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), 2),
    ],
)
def test_perplexity_of_known_histograms(codes, perplexity, used):
    usage = Usage(8)
    usage.add(torch.tensor(codes))
    assert usage.perplexity() == pytest.approx(perplexity, rel=1e-9) and usage.used() == used


def test_usage_counts_over_batches_of_any_shape():
    codes, usage = torch.randint(8, (6, 4, 5), generator=torch.Generator().manual_seed(1)), Usage(8)
    for part in codes.split(4):
        usage.add(part)
    assert torch.equal(usage.counts, torch.bincount(codes.flatten(), minlength=8))
    whole = Usage(8, usage.counts.clone())
    assert whole.perplexity() == usage.perplexity() and whole.used() == usage.used()


def test_perplexity_is_of_the_split_not_the_mean_of_batches():
    usage = Usage(8)
    for code in range(8):
        usage.add(torch.full((3,), code))  # every batch alone has perplexity 1
    assert usage.perplexity() == pytest.approx(8.0, rel=1e-9)


# ----------------------------------------------------------------------------------- audio

RATE = 8000


def waveforms(seconds: float = 0.5, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Noise [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(count, round(seconds * RATE), generator=generator)


def audio_figures(x: torch.Tensor, x_hat: torch.Tensor) -> dict[str, float]:
    """In batches of two."""
    quality = AudioQuality(RATE)
    for one, other in zip(x.split(2), x_hat.split(2)):
        quality.add(one[:, None], other[:, None])
    return quality.values()


@pytest.mark.parametrize("decibel", [-10.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_of_what_is_alike_to_what_is_not(decibel):
    """Noise at right angles to the waveform, and any factor on the sum."""
    x, other = waveforms(count=3), waveforms(count=3, seed=1)
    other -= (other * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    other *= x.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True) * 10 ** (-decibel / 20)
    assert audio_figures(x, 3.0 * (x + other))["si_sdr"] == pytest.approx(decibel, abs=1e-3)


def test_a_gain_moves_log_spectra_by_its_logarithm():
    x = waveforms(count=3)
    figures = audio_figures(x, x * math.e**0.5)
    assert figures["mel_distance"] == pytest.approx(0.5, abs=1e-4)
    assert figures["log_mel_rmse"] == pytest.approx(0.5, abs=1e-4)
    assert figures["stft_distance"] == pytest.approx(0.5 + math.e**0.5 - 1, abs=1e-3)


def test_identical_waveforms_have_no_distance():
    x = waveforms(count=3)
    figures = audio_figures(x, x)
    assert figures.pop("si_sdr") > 60
    assert set(figures.values()) == {0.0} and len(figures) == 3


def test_audio_figures_are_means_over_segments_not_over_batches():
    x = waveforms(count=3)
    x_hat = x * torch.tensor([1.0, 1.0, math.e])[:, None]
    assert audio_figures(x, x_hat)["mel_distance"] == pytest.approx(1 / 3, abs=1e-4)
    assert float(stft_distance(x, x_hat, RATE)[2]) == pytest.approx(math.e, abs=1e-3)


def test_figures_that_a_waveform_cannot_have_are_left_out():
    silent = audio_figures(torch.zeros(2, 4000), waveforms())
    assert silent.keys() == {"mel_distance", "log_mel_rmse"} and silent["mel_distance"] > 1
    assert audio_figures(waveforms(0.01), waveforms(0.01, seed=1)).keys() == {"si_sdr"}


def test_one_silent_segment_does_not_rule_the_others():
    x, x_hat = waveforms(count=4), waveforms(count=4) * 0.9
    expected = audio_figures(x[:3], x_hat[:3])["stft_distance"]
    x[3] = 0
    assert audio_figures(x, x_hat)["stft_distance"] == pytest.approx(expected, rel=1e-5)


def test_a_silent_reconstruction_is_the_worst():
    assert audio_figures(waveforms(), torch.zeros(2, 4000))["si_sdr"] == -100
    assert audio_figures(waveforms(), waveforms(seed=1))["si_sdr"] > -60
