"""What a model sees of sounds: log-mel spectra in [−1, 1] and waveforms, and the way back."""

import numpy as np
import pytest
import torch

from hqvae.data import LogMel, MelConfig, Waveform


def tone(seconds, hertz=440.0, rate=22050, loud=0.5):
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_log_mel_lies_between_minus_one_and_one():
    frontend = LogMel(MelConfig(), 22050)
    assert frontend.shape(frontend.floor(4 * 22050)) == (1, 80, 344)
    generator = torch.Generator().manual_seed(0)
    loud = torch.cat(
        [torch.ones(1, 1, 8192), torch.rand(1, 1, 8192, generator=generator).round() * 2 - 1]
    )
    assert frontend.forward(loud).max() <= 1
    assert (frontend.forward(torch.zeros(1, 1, 8192)) + 1).abs().max() < 1e-5
    assert frontend.unit.per_second == pytest.approx(80 * 22050 / 256)


def test_the_unit_is_a_natural_log_of_magnitude():
    frontend = LogMel(MelConfig(), 22050)
    sound = torch.from_numpy(tone(0.5, rate=22050, loud=0.5)).float()[None, None]
    louder = (frontend.forward(sound) - frontend.forward(sound / np.e)) * frontend.unit.scale
    heard = frontend.forward(sound / np.e) > -0.9
    assert torch.allclose(louder[heard], torch.ones(int(heard.sum())), atol=1e-3)


def test_a_sound_comes_back_from_its_spectrum():
    frontend = LogMel(MelConfig(), 22050)
    sound = torch.from_numpy(tone(0.5, 440, 22050) + tone(0.5, 1330, 22050, 0.3)).float()[
        None, None
    ]
    sound = sound[..., : frontend.floor(sound.shape[-1])]
    again = frontend.inverse(frontend.forward(sound))
    assert again.shape == sound.shape
    spectrum = frontend.forward(sound)
    apart = (frontend.forward(again) - spectrum) * frontend.unit.scale
    heard = (
        spectrum > spectrum.max() - 3 / frontend.unit.scale
    )  # all but the feet of the lines, which bands smear
    assert apart[heard].abs().mean() < 0.15


def test_lengths_that_a_spectrum_holds_exactly():
    frontend = LogMel(MelConfig(), 22050)
    assert [frontend.floor(samples) for samples in (1024, 1279, 1280)] == [1024, 1024, 1280]
    assert [frontend.ceil(samples) for samples in (1, 769, 1024, 1025)] == [768, 1024, 1024, 1280]
    assert frontend.min_samples == 513


def test_a_waveform_passes_as_it_is():
    frontend = Waveform(8000)
    sound = torch.linspace(-2, 2, 800)[None, None]
    assert frontend.forward(sound) is sound and frontend.shape(800) == (1, 800)
    assert torch.equal(frontend.inverse(sound), sound.clamp(-1, 1))
    assert (frontend.unit.scale, frontend.unit.per_second) == (1.0, 8000)


def test_a_short_waveform_is_drawn_with_silence_behind_it():
    frontend = Waveform(8000)
    picture = frontend.picture(torch.rand(2, 1, 100) - 0.5)
    assert picture.shape[:2] == (2, 1) and picture.shape[-1] >= 1 and picture.abs().max() <= 1
