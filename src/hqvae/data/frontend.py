"""What a model sees of sounds: log-mel spectra, or the waveform itself."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hqvae.config_class import config_class
from hqvae.errors import InputError
from hqvae.metrics import SSIM, AudioQuality, Metric
from hqvae.spectra import default_mel, griffin_lim, log_mel, mel_filters, mel_to_linear

from .modality import SignalUnit

_LONGEST_SEGMENT = 2**26  # samples; more than a model sees at once on any machine of today


class Frontend(ABC):
    """Sounds [B, 1, T] ↔ signals in [−1, 1]."""

    unit: SignalUnit
    """What a signal stands for."""
    stored: ClassVar[bool] = False
    """Whether a signal is the sound's samples as they are stored, in [−1, 1]."""
    min_samples: int
    """The shortest sound that a signal can be made of."""

    @abstractmethod
    def floor(self, samples: int) -> int:
        """The longest length, up to `samples`, that a signal holds exactly."""

    @abstractmethod
    def ceil(self, samples: int) -> int:
        """The shortest length, from `samples` on, that a signal holds exactly."""

    @abstractmethod
    def shape(self, samples: int) -> tuple[int, ...]:
        """[C, *S] of the signal of so many samples."""

    @abstractmethod
    def forward(self, sound: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 ..."]:
        """The signal of a sound."""

    @abstractmethod
    def inverse(self, signal: Float[Tensor, "B 1 ..."]) -> Float[Tensor, "B 1 T"]:
        """A sound with nearly this signal."""

    @abstractmethod
    def picture(self, signal: Float[Tensor, "B 1 ..."]) -> Float[Tensor, "B 1 M N"]:
        """Log-mel spectra in [−1, 1]: what is drawn of a signal."""


def check_segment(frontend: Frontend, seconds: float, rate: int) -> None:
    """Raises InputError for segments too short for a signal, or too long for any machine."""
    samples = frontend.floor(round(seconds * rate))
    if samples < frontend.min_samples:
        needs = "a spectrum" if frontend.min_samples > 1 else "a segment"
        raise InputError(
            f"data.seconds={seconds:g} is too short: {samples} samples, "
            f"and {needs} needs {frontend.min_samples}"
        )
    if samples > _LONGEST_SEGMENT:
        raise InputError(
            f"data.seconds={seconds:g} is too long: {samples:,} samples, and "
            f"a segment has at most {_LONGEST_SEGMENT:,} "
            f"({_LONGEST_SEGMENT // rate:,} s at data.rate={rate})"
        )


# ------------------------------------------------------------------------------------------ log-mel


@config_class
class MelConfig:
    """Log-mel spectra, brought to [−1, 1] by the range that magnitudes can have."""

    axes: ClassVar[int] = 2

    kind: Literal["mel"] = "mel"
    """Log-mel spectra."""
    n_fft: int = Field(default=1024, ge=16, le=65_536)
    """Samples of a window."""
    hop: int = Field(default=256, ge=1)
    """Samples from one frame to the next."""
    mels: int = Field(default=80, ge=1)
    """Number of mel bands, the height of the spectrum."""
    low: float = Field(default=0.0, ge=0)
    """Lower end of the lowest band, in hertz."""
    high: float = Field(default=8000.0, gt=0)
    """Upper end of the highest band, in hertz."""
    floor: float = Field(default=1e-5, ge=1e-30, lt=1)
    """Smallest magnitude; smaller ones count as this."""

    def metrics(self, rate: int) -> list[Metric]:
        return [SSIM()]

    def build(self, rate: int) -> "LogMel":
        return LogMel(self, rate)


class LogMel(Frontend):
    """Sounds [B, 1, T] ↔ log-mel spectra [B, 1, mels, T/hop] in [−1, 1].

    −1 is the floor. 1 is the logarithm of the largest band that full-scale samples could give if
    every bin were at its maximum at once, so the scale depends on no data set.

    >>> frontend = LogMel(MelConfig(), rate=22050)
    >>> frontend.forward(torch.zeros(1, 1, 2048)).shape
    torch.Size([1, 1, 80, 8])
    """

    def __init__(self, config: MelConfig, rate: int):
        _check_mel(config, rate)
        self.config = config
        self.rate = rate
        self.filters = mel_filters(rate, config.n_fft, config.mels, config.low, config.high)
        empty = int((self.filters.sum(1) == 0).sum())
        if empty:
            raise InputError(
                f"data.frontend: {empty} of mels={config.mels} bands hold no bin of "
                f"n_fft={config.n_fft}; take fewer or a larger n_fft"
            )
        largest = math.log(float(self.filters.sum(1).max()) * config.n_fft / 2)
        smallest = math.log(config.floor)
        self.middle = (largest + smallest) / 2
        self.half_range = (largest - smallest) / 2
        values_per_second = config.mels * rate / config.hop
        self.unit = SignalUnit(self.half_range, "log-mel", 0.0, values_per_second)
        self.min_samples = config.n_fft // 2 + 1  # more than half a window is mirrored at its ends

    def floor(self, samples: int) -> int:
        return samples // self.config.hop * self.config.hop

    def ceil(self, samples: int) -> int:
        hops = -(-max(samples, self.min_samples) // self.config.hop)
        return hops * self.config.hop

    def shape(self, samples: int) -> tuple[int, ...]:
        return (1, self.config.mels, samples // self.config.hop)

    def forward(self, sound: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 M N"]:
        c = self.config
        spectrum = log_mel(sound[:, 0], self.rate, c.n_fft, c.hop, c.mels, c.low, c.high, c.floor)
        return ((spectrum - self.middle) / self.half_range)[:, None]

    def inverse(self, signal: Float[Tensor, "B 1 M N"]) -> Float[Tensor, "B 1 T"]:
        """Bins from bands by `mel_to_linear`, phases by Griffin and Lim."""
        mel = (signal[:, 0].float() * self.half_range + self.middle).exp()
        magnitude = mel_to_linear(mel, self.filters.to(mel.device))
        return griffin_lim(magnitude, self.config.n_fft, self.config.hop)[:, None]

    def picture(self, signal: Float[Tensor, "B 1 M N"]) -> Float[Tensor, "B 1 M N"]:
        return signal


def _check_mel(config: MelConfig, rate: int) -> None:
    if config.mels > config.n_fft:  # said here, before there are so many filters
        raise InputError(
            f"data.frontend: mels={config.mels} are more bands than n_fft={config.n_fft} has bins; "
            f"expected at most {config.n_fft // 2}"
        )
    if config.hop > config.n_fft // 2:
        raise InputError(
            f"data.frontend: hop={config.hop} leaves gaps between windows of "
            f"n_fft={config.n_fft}; expected at most half of that"
        )
    if config.high > rate / 2 or config.low >= config.high:
        raise InputError(
            f"data.frontend: low={config.low:g} and high={config.high:g} Hz; "
            f"expected low < high ≤ data.rate/2 = {rate / 2:g}"
        )


# ----------------------------------------------------------------------------------------- waveform


@config_class
class WaveConfig:
    """The waveform as it is."""

    axes: ClassVar[int] = 1

    kind: Literal["wave"] = "wave"
    """The waveform."""

    def metrics(self, rate: int) -> list[Metric]:
        return [AudioQuality(rate)]

    def build(self, rate: int) -> "Waveform":
        return Waveform(rate)


class Waveform(Frontend):
    """The waveform itself, both ways.

    >>> Waveform(rate=16_000).unit.per_second
    16000.0
    """

    stored = True
    min_samples = 1

    def __init__(self, rate: int):
        self.unit = SignalUnit(1.0, "amplitude", 1 / 32768, float(rate))
        self._drawn = LogMel(MelConfig(**default_mel(rate)), rate)

    def floor(self, samples: int) -> int:
        return samples

    def ceil(self, samples: int) -> int:
        return max(samples, self.min_samples)

    def shape(self, samples: int) -> tuple[int, ...]:
        return (1, samples)

    def forward(self, sound: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 T"]:
        return sound

    def inverse(self, signal: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 T"]:
        return signal.float().clamp(-1, 1)

    def picture(self, signal: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 M N"]:
        """Signals shorter than a window are followed by silence."""
        missing = max(0, self._drawn.config.n_fft - signal.shape[-1])
        padded = torch.nn.functional.pad(signal.float().clamp(-1, 1), (0, missing))
        return self._drawn.forward(padded)
