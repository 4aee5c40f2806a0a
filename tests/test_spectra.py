"""Spectra by physics: a tone is a line of known height, mel bands lie where the scale says."""

import math

import numpy as np
import pytest
import torch
from scipy import signal as reference

from hqvae.spectra import default_mel, griffin_lim, log_mel, mel_filters, mel_to_linear, stft

RATE, N_FFT, HOP = 16000, 512, 128


def tone(hertz, seconds=1.0, rate=RATE):
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)[None]


def test_frames_and_bins():
    assert stft(torch.zeros(2, 1280), N_FFT, HOP).shape == (2, 257, 10)
    assert stft(torch.zeros(2, 1280 + 127), N_FFT, HOP).shape == (2, 257, 10)


def test_a_tone_is_one_line_of_known_height():
    """A full-scale tone on a bin's centre: half the window's sum there, nothing two bins away."""
    spectrum = stft(tone(1000.0), N_FFT, HOP).abs()[0, :, 20]
    bin_of = round(1000 / (RATE / N_FFT))
    assert spectrum.argmax() == bin_of
    assert spectrum[bin_of] == pytest.approx(N_FFT / 4, rel=1e-3)
    assert spectrum[bin_of + 3 :].max() < 1e-2


def test_the_spectrum_is_that_of_a_reference():
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    options = {"window": "hann", "nperseg": N_FFT, "noverlap": N_FFT - HOP}
    _, _, expected = reference.stft(x[0].numpy(), boundary="even", padded=False, **options)
    found = stft(x, N_FFT, HOP)[0].numpy()
    # The reference mirrors the ends another way.
    inner = slice(2, min(expected.shape[1], found.shape[1]) - 3)
    assert np.allclose(found[:, inner], expected[:, inner] * N_FFT / 2, atol=1e-3)


def test_mel_bands_are_slaneys():
    """1000 Hz is 15 mel, linear below; triangles have area one and cross at their middles."""
    filters = mel_filters(16000, 4096, 40, 0.0, 8000.0)
    assert filters.shape == (40, 2049) and (filters >= 0).all()
    assert torch.allclose(filters.sum(1) * 16000 / 4096, torch.ones(40), atol=0.02)
    peaks = filters.argmax(1) * 16000 / 4096
    mels = 15 + 27 * math.log(8) / math.log(6.4)  # of 8 kHz
    below = [200 / 3 * mels * (m + 1) / 41 for m in range(40) if mels * (m + 1) / 41 < 15]
    assert torch.allclose(peaks[: len(below)], torch.tensor(below), atol=4)
    assert filters[3, filters[4].argmax()] < 0.05 * filters[3].max()


def test_bins_from_bands_give_the_bands_again():
    filters = mel_filters(RATE, N_FFT, 30, 100.0, 7000.0)
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    mel = torch.einsum("mf,bfn->bmn", filters, stft(x, N_FFT, HOP).abs())
    spectrum = mel_to_linear(mel, filters)
    assert (spectrum >= 0).all()
    assert not spectrum[:, 0].any() and not spectrum[:, -20:].any()  # below 100 Hz, above 7 kHz
    assert torch.allclose(torch.einsum("mf,bfn->bmn", filters, spectrum), mel, rtol=0.05)


@pytest.mark.parametrize("hertz", [440.0, 1700.0])
def test_a_tone_comes_back_from_its_magnitudes(hertz):
    magnitude = stft(tone(hertz), N_FFT, HOP).abs()
    sound = griffin_lim(magnitude, N_FFT, HOP)
    assert sound.shape == (1, magnitude.shape[-1] * HOP)
    assert torch.equal(sound, griffin_lim(magnitude, N_FFT, HOP))
    again = stft(sound, N_FFT, HOP).abs()
    assert (again - magnitude).norm() < 0.1 * magnitude.norm()
    assert again[0, :, 50].argmax() == magnitude[0, :, 50].argmax()


@pytest.mark.parametrize("rate", [400, 8000, 16000, 22050, 44100, 96000])
def test_every_rate_can_be_seen_in_mel_bands(rate):
    setting = default_mel(rate)
    found = log_mel(torch.randn(1, 4 * setting["n_fft"]), rate, **setting)
    assert torch.isfinite(found).all() and setting["high"] <= rate / 2
    assert 0.02 < setting["n_fft"] / rate < 0.07
    if rate == 22050:
        assert setting == {"n_fft": 1024, "hop": 256, "mels": 80, "low": 0.0, "high": 8000.0}


@pytest.mark.parametrize("samples", [50 * HOP, 50 * HOP + 77, 33 * HOP])
def test_a_long_sound_has_the_same_bands_in_parts(samples, monkeypatch):
    sound = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    settings = (RATE, N_FFT, HOP, 40, 0.0, 8000.0)
    whole = log_mel(sound, *settings)
    seen = []
    library = torch.stft
    monkeypatch.setattr("hqvae.spectra._FRAMES_AT_ONCE", 16)
    monkeypatch.setattr(
        torch, "stft", lambda x, *a, **k: seen.append(len(x)) or library(x, *a, **k)
    )
    parts = log_mel(sound, *settings)
    assert len(seen) == -(-(samples // HOP) // 16)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
