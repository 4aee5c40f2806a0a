"""What errors cost: values, gradients, parts of a batch that add up; spectra of waveforms."""

import math
from dataclasses import replace

import pytest
import torch

from hqvae.likelihood import (
    LIKELIHOODS,
    MSE,
    FittedGaussian,
    SpectralConfig,
    fitted_variance,
    running_variance,
)
from hqvae.model import HQVAE
from hqvae.presets import preset
from hqvae.quantize import Noise
from hqvae.spectra import log_mel, log_spectrum

SIZE = 12
GAUSSIAN = FittedGaussian()
RATE = 8000
SPECTRAL = SpectralConfig(weight=2.0, rate=RATE, n_ffts=(256, 64))


def errors(rows: int = 6) -> torch.Tensor:
    """x − x̂ of a few signals of SIZE elements."""
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()


def cost(likelihood, distortion, sigma2=None) -> torch.Tensor:
    """In σ² of the distortion's own batch, where none is given."""
    own = fitted_variance(distortion, SIZE)
    return likelihood.cost(distortion, SIZE, own if sigma2 is None else sigma2)


# ------------------------------------------------------------------------- the squared error


@pytest.mark.parametrize(
    ("mean_square", "nats"), [(1.0, 0.0), (math.e, 6.0), (math.exp(-3), -18.0)]
)
def test_fitted_gaussian_is_half_the_size_times_log_variance(mean_square, nats):
    distortion = SIZE * mean_square * torch.tensor([0.5, 1.5])  # their mean counts
    assert float(fitted_variance(distortion, SIZE)) == pytest.approx(mean_square, rel=1e-6)
    assert float(cost(GAUSSIAN, distortion)) == pytest.approx(nats, abs=1e-5)


def test_gradient_is_that_of_the_logarithm_of_the_mean():
    x = errors()
    distortion = x.square().sum(1)
    (ours,) = torch.autograd.grad(cost(GAUSSIAN, distortion), x, retain_graph=True)
    (expected,) = torch.autograd.grad(SIZE / 2 * (distortion.mean() / SIZE).log(), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_halves_with_a_shared_variance_give_the_gradient_of_the_whole(name):
    likelihood, x = LIKELIHOODS[name](), errors()
    whole = cost(likelihood, x.square().sum(1))
    (expected,) = torch.autograd.grad(whole, x)
    sigma2 = fitted_variance(x.square().sum(1), SIZE)
    halves = [cost(likelihood, half.square().sum(1), sigma2) / 2 for half in x.split(3)]
    (accumulated,) = torch.autograd.grad(sum(halves), x)
    torch.testing.assert_close(accumulated, expected)
    torch.testing.assert_close(sum(halves), whole)


def test_halves_with_variances_of_their_own_do_not():
    x = errors()
    (whole,) = torch.autograd.grad(cost(GAUSSIAN, x.square().sum(1)), x)
    halves = [cost(GAUSSIAN, half.square().sum(1)) / 2 for half in x.split(3)]
    (apart,) = torch.autograd.grad(sum(halves), x)
    assert not torch.allclose(apart, whole, rtol=1e-3)


def test_the_variance_carries_no_gradient_and_a_perfect_reconstruction_no_infinity():
    assert not fitted_variance(errors().square().sum(1), SIZE).requires_grad
    x = torch.zeros(2, SIZE, requires_grad=True)
    loss = cost(GAUSSIAN, x.square().sum(1))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("sigma2", [None, torch.tensor(7.0)])
def test_mse_is_the_mean_over_elements_whatever_the_variance(sigma2):
    x = errors()
    torch.testing.assert_close(cost(MSE(), x.square().sum(1), sigma2), x.square().mean())


def test_a_commitment_weighs_the_same_beside_either_cost():
    """Gaussian: both gradients are those of MSE and commitment, times D/2σ²."""
    x, z = errors(), errors(3)
    sigma2 = fitted_variance(x.square().sum(1), SIZE)
    gradients = []
    for likelihood in (GAUSSIAN, MSE()):
        weight = likelihood.commitment_weight(SIZE, sigma2)
        loss = cost(likelihood, x.square().sum(1)) + weight * z.square().mean()
        gradients.append(torch.autograd.grad(loss, (x, z)))
    for in_nats, in_squares in zip(*gradients):
        torch.testing.assert_close(in_nats, in_squares * SIZE / (2 * sigma2))


def test_the_running_variance_forgets_and_begins_with_the_first_batch():
    mean = torch.zeros(())
    for sigma2, expected in [(4.0, 4.0), (2.0, 3.8), (2.0, 3.62)]:
        mean = running_variance(mean, torch.tensor(sigma2), 0.9)
        assert float(mean) == pytest.approx(expected)
    assert float(running_variance(mean, torch.tensor(7.0), 0.0)) == 7


# ---------------------------------------------------------------------------------- spectra


def noise(seconds=0.5, count=2, seed=0) -> torch.Tensor:
    """Waveforms [B, 1, T]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(count, 1, round(seconds * RATE), generator=generator)


def wave_model(name="rsqvae-audio", **changes) -> HQVAE:
    """A preset for waveforms, made small."""
    torch.manual_seed(0)
    config = preset(name).model
    net = replace(config.net, widths=(8, 12), inner_blocks=1)
    model = HQVAE(replace(config, net=net, spectral=SPECTRAL, **changes))
    model.init_scale(noise(count=4))
    model.init_codebooks(noise(count=4), Noise(5))
    return model.train()


def test_a_spectrum_costs_what_its_definition_says():
    """J gains weight · mean over spectra of (D/2) log of the spectrum's mean squared difference.

    D is that of the waveform.
    """
    x = noise(count=3)
    out = wave_model()(x, 1.0, Noise(3))
    assert out.spectral_mse.shape == (3, 4) and out.sigma2.shape == (1, 5)
    size = x[0].numel()
    spectral = [size / 2 * math.log(float(of_one.mean())) for of_one in out.spectral_mse.T]
    expected = size / 2 * math.log(float(out.distortion.mean()) / size)
    expected += float((out.latent_loss.sum(1) - out.entropy.sum(1)).mean())
    expected += SPECTRAL.weight * sum(spectral) / 4
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_spectra_are_log_stft_and_log_mel_of_both_windows():
    x = noise(count=3)
    out = wave_model()(x, 1.0, Noise(3))
    theirs, ours = x[:, 0], out.reconstruction[:, 0]
    mel = (RATE, 256, 64, 40, 0.0, 4000.0, 1e-3)
    differences = [
        log_spectrum(theirs, 256, 64, 1e-3) - log_spectrum(ours, 256, 64, 1e-3),
        log_mel(theirs, *mel) - log_mel(ours, *mel),
    ]
    for spectral_mse, difference in zip(out.spectral_mse.T, differences):
        torch.testing.assert_close(spectral_mse, difference.square().mean((1, 2)))


def test_variances_of_spectra_are_those_of_the_batch():
    out = wave_model()(noise(count=3), 1.0, Noise(3))
    torch.testing.assert_close(out.sigma2[0, 1:], out.spectral_mse.mean(0))
    torch.testing.assert_close(out.sigma2[0, 0], fitted_variance(out.distortion, 4000))


@pytest.mark.parametrize("progressive", [0.0, 1.0])
def test_spectra_of_accumulated_batches_are_those_of_the_whole(progressive):
    model, x = wave_model(progressive=progressive), noise(count=4)
    model(x, 1.0, Noise(3)).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    halves = [(x[:2], Noise(3)), (x[2:], Noise(3, samples=2))]
    with torch.no_grad():
        sigma2 = torch.stack([model(half, 1.0, place).sigma2 for half, place in halves]).mean(0)
    for half, place in halves:
        (model(half, 1.0, place, sigma2).loss / 2).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sigma2.shape == (2 if progressive else 1, 5)
    for one, other in zip(gradients, expected, strict=True):
        tolerance = 1e-3 * float(other.abs().max()) + 1e-6
        torch.testing.assert_close(one, other, rtol=1e-3, atol=tolerance)


def test_spectra_send_gradients_where_the_waveform_agrees():
    """Half the amplitude in a band that hardly weighs in the squared error: spectra see it."""
    x = noise(count=1)
    quiet = x.clone().requires_grad_()
    pairs = zip(SPECTRAL.spectra(x), SPECTRAL.spectra(0.5 * quiet))
    sum((a - b).square().sum() for a, b in pairs).backward()
    assert torch.isfinite(quiet.grad).all() and (quiet.grad * x).sum() < 0  # louder is better


def test_silence_and_its_gradient_are_finite():
    model = wave_model()
    model(torch.zeros(2, 1, 4000), 1.0, Noise(3)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_in_mean_squared_errors_spectra_are_added_as_they_are():
    out = wave_model("rqvae-audio", likelihood="mse")(noise(count=3), 1.0, Noise(3))
    spectral = SPECTRAL.weight * out.spectral_mse.mean()
    expected = out.distortion.mean() / 4000 + out.latent_loss.sum(1).mean() + spectral
    torch.testing.assert_close(out.loss, expected)


def test_spectra_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        spectra = SPECTRAL.spectra(noise())
    for one, other in zip(spectra, SPECTRAL.spectra(noise())):
        assert one.dtype == torch.float32 and torch.equal(one, other)
