"""Sounds decoded to mono int16, resampled, cut into segments, and seen as log-mel spectra or as they are."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int16
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.errors import InputError
from hqvae.spectra import griffin_lim, log_mel, mel_filters, mel_setting, unmel

from .items import Form, Items, SourceConfig, to_signal
from .sources import Collection, Medium


@config(frozen=True, config=ConfigDict(extra="forbid"))
class MelConfig:
    """Log-mel spectra: log of mel magnitudes, not below `floor`, brought to [−1, 1] by the range that magnitudes can have.

    Args:
        n_fft: samples of a window
        hop: samples from one frame to the next
        mels: number of mel bands, the height of the spectrum
        low, high: hertz, of the lowest and the highest band's end
        floor: smallest magnitude
    """

    kind: Literal["mel"] = "mel"
    n_fft: int = Field(default=1024, ge=16)
    hop: int = Field(default=256, ge=1)
    mels: int = Field(default=80, ge=1)
    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=8000.0, gt=0)
    floor: float = Field(default=1e-5, gt=0, lt=1)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class WaveConfig:
    """The waveform as it is."""

    kind: Literal["wave"] = "wave"


@config(frozen=True, config=ConfigDict(extra="forbid"))
class SoundConfig(SourceConfig):
    """Sounds, and how they are prepared; the fields of `SourceConfig`, and:

    Args:
        rate: samples per second that everything is resampled to
        seconds: length of a segment; in training it begins anywhere, else the segments tile every sound
        loudness: dB below full scale that every whole sound's root mean square is brought to (silence stays); None leaves it
        front: what a model sees
    """

    kind: Literal["sounds"] = "sounds"
    rate: int = Field(default=22050, ge=100)
    seconds: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    loudness: float | None = Field(default=None, le=0)
    front: MelConfig | WaveConfig = Field(default=MelConfig(), discriminator="kind")


def open_sound(source: Path | BytesIO) -> Any:
    """An open `soundfile.SoundFile`: header read, samples not yet. Raises its error for what is no sound."""
    try:
        import soundfile
        import soxr  # noqa: F401  # now, and not as an error of every single file
    except ImportError as error:
        raise InputError("sounds need soundfile and soxr: pip install 'hqvae[audio]'") from error
    return soundfile.SoundFile(source)


SOUND_MEDIUM = Medium("sound", frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"}), open_sound, "Audio")


_FILTER = 400  # samples of the lower rate that soxr's filter certainly does not reach beyond


class LogMel:
    """The log-mel front end: `forward` and `inverse`, sounds [B, 1, T] ↔ spectra [B, 1, mels, T/hop] in [−1, 1].

    A magnitude can be no larger than a full-scale sound's in every bin at once; between that and the floor lies the range.
    """

    axes = 2

    def __init__(self, config: MelConfig, rate: int):
        if config.hop > config.n_fft // 2:
            raise InputError(
                f"data.front: hop={config.hop} leaves gaps between windows of n_fft={config.n_fft}; expected at most half of that"
            )
        if config.high > rate / 2 or config.low >= config.high:
            raise InputError(
                f"data.front: low={config.low:g} and high={config.high:g} Hz; expected low < high ≤ data.rate/2 = {rate / 2:g}"
            )
        self.config, self.rate, self.filters = config, rate, mel_filters(rate, config.n_fft, config.mels, config.low, config.high)
        empty = int((self.filters.sum(1) == 0).sum())
        if empty:
            raise InputError(
                f"data.front: {empty} of mels={config.mels} bands hold no bin of n_fft={config.n_fft}; take fewer or a larger n_fft"
            )
        top = math.log(float(self.filters.sum(1).max()) * config.n_fft / 2)
        bottom = math.log(config.floor)
        self.middle, self.half = (top + bottom) / 2, (top - bottom) / 2
        self.form = Form(scale=self.half, unit="log-mel", step=0.0, per_second=config.mels * rate / config.hop)

    def samples(self, wished: int) -> int:
        """The segment's length nearest below: whole hops."""
        return wished // self.config.hop * self.config.hop

    def shape(self, samples: int) -> tuple[int, ...]:
        return (1, self.config.mels, samples // self.config.hop)

    def forward(self, sound: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 M N"]:
        c = self.config
        return ((log_mel(sound[:, 0], self.rate, c.n_fft, c.hop, c.mels, c.low, c.high, c.floor) - self.middle) / self.half)[:, None]

    def inverse(self, signal: Float[Tensor, "B 1 M N"]) -> Float[Tensor, "B 1 T"]:
        """A sound with nearly this spectrum: bins from bands by `unmel`, phases by Griffin and Lim."""
        mel = (signal[:, 0].float() * self.half + self.middle).exp()
        return griffin_lim(unmel(mel, self.filters.to(mel.device)), self.config.n_fft, self.config.hop)[:, None]

    def picture(self, signal: Float[Tensor, "B 1 M N"]) -> Float[Tensor, "B 1 M N"]:
        """What is shown of it: the spectra themselves."""
        return signal


class Wave:
    """The waveform front end: both ways the same."""

    axes = 1

    def __init__(self, config: WaveConfig, rate: int):
        self.form = Form(scale=1.0, unit="amplitude", step=1 / 32768, per_second=float(rate))
        self.shown = LogMel(MelConfig(**mel_setting(rate)), rate)

    def samples(self, wished: int) -> int:
        return wished

    def shape(self, samples: int) -> tuple[int, ...]:
        return (1, samples)

    def forward(self, sound: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 T"]:
        return sound

    def inverse(self, signal: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 T"]:
        return signal.float().clamp(-1, 1)

    def picture(self, signal: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B 1 M N"]:
        """What is shown of it: log-mel spectra; what is shorter than a window is followed by silence."""
        missing = max(0, self.shown.config.n_fft - signal.shape[-1])
        return self.shown.forward(torch.nn.functional.pad(signal.float().clamp(-1, 1), (0, missing)))


def front_of(config: SoundConfig) -> LogMel | Wave:
    """What makes signals of sounds, and sounds of signals."""
    front = config.front
    return LogMel(front, config.rate) if isinstance(front, MelConfig) else Wave(front, config.rate)


class Sounds(Items):
    """One split of sounds, all channels averaged to one: raw batches are int16 segments [B, 1, T].

    An item is a segment. The segments tile each sound, the last one drawn back to its end; a sound shorter than a segment is
    followed by silence. With draws a segment begins anywhere in its sound instead.
    """

    medium = SOUND_MEDIUM

    def __init__(self, collection: Collection, config: SoundConfig):
        self.front = front_of(config)
        self.form, self.samples = self.front.form, self.front.samples(round(config.seconds * config.rate))
        least = config.front.n_fft // 2 + 1 if isinstance(config.front, MelConfig) else 1
        if self.samples < least:
            what = "a spectrum" if least > 1 else "a segment"
            raise InputError(f"data.seconds={config.seconds:g} is too short: {self.samples} samples, and {what} needs {least}")
        self.shape, self.rate, self.loudness = self.front.shape(self.samples), config.rate, config.loudness
        lengths = [self._length(collection, i) for i in range(len(collection))]
        super().__init__(collection, config, fits=2 * sum(lengths) <= config.cache_mb * 2**20)
        self.lengths = [len(sound) for sound in self.cache] if self.cache is not None else [lengths[i] for i in self.kept]
        self.tiles = [(k, start) for k, length in enumerate(self.lengths) for start in self._starts(length)]
        self.seconds = sum(self.lengths) / config.rate
        self.last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def describe(self) -> str:
        return f"{len(self.kept)} sounds of {self.seconds / 60:.1f} minutes in {len(self)} segments of {self.samples / self.rate:.3g} s"

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray | None]) -> Int16[Tensor, "B 1 T"]:
        indices, draws = key
        batch = np.zeros((len(indices), 1, self.samples), np.int16)
        for j, index in enumerate(indices):
            k, start = self.tiles[int(index)]
            draw = None if draws is None else float(draws[j, 0])
            segment = self._alone(k, draw) if draw is not None and self.cache is None and self.loudness is None else None
            if segment is None:
                sound = self._sound(k)
                begin = start if draw is None else self._drawn(draw, len(sound))
                segment = sound[begin : begin + self.samples]
            batch[j, 0, : len(segment)] = segment
        return torch.from_numpy(batch)

    def _drawn(self, draw: float, length: int) -> int:
        """Where a training segment of a sound of that length begins."""
        return int(draw * (max(0, length - self.samples) + 1))

    def _alone(self, k: int, draw: float) -> np.ndarray | None:
        """A training segment of the k-th sound without the rest of it; None where that cannot be had, as of a file that ends too soon."""
        start = self._drawn(draw, self.lengths[k])
        try:
            segment = self.decode(self.kept[k], start)
        except Exception:  # `_sound` says which file is broken, and takes the next one
            return None
        return segment if len(segment) >= min(self.samples, self.lengths[k] - start) - 1 else None

    def _sound(self, k: int) -> np.ndarray:
        """The k-th sound; where sounds are not kept at least the last one is, whose segments follow each other in evaluation."""
        if self.cache is None and (self.last is None or self.last[0] != k):
            self.last = (k, self.item(k))
        return self.cache[k] if self.cache is not None else self.last[1]  # type: ignore[index]

    def signal(self, batch: Tensor, device: torch.device | str = "cpu") -> Tensor:
        return self.front.forward(to_signal(batch, device))

    def picture(self, signal: Tensor) -> Tensor:
        return self.front.picture(signal)

    def check(self, i: int) -> None:
        with self.collection.read(i) as file:
            if not file.frames:
                raise ValueError("it holds no sample")

    def decode(self, i: int, start: int | None = None) -> np.ndarray:
        """[T] int16 at `rate`: channels averaged, resampled, brought to `loudness`, clipped; from `start` on only a segment."""
        import soxr

        with self.collection.read(i) as file:
            rate, frames, before = file.samplerate, -1, 0
            if start is not None:
                skip, frames, before = self._around(start, rate)
                file.seek(skip)
            samples = file.read(frames, dtype="float32", always_2d=True).mean(1)
        if not len(samples):
            raise ValueError("it holds no sample")
        if not np.isfinite(samples).all():
            raise ValueError("it holds samples that are not finite")
        if rate != self.rate:
            samples = soxr.resample(samples, rate, self.rate, quality="HQ")
        if start is not None:
            samples = samples[before : before + self.samples]
        power = float(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0
        if self.loudness is not None and power > 0:
            samples = samples * (10 ** (self.loudness / 20) / math.sqrt(power))
        return (samples * 32768).round().clip(-32768, 32767).astype(np.int16)

    def _around(self, start: int, rate: int) -> tuple[int, int, int]:
        """(samples of a file of that rate to skip and to read, samples to drop) for a segment with what resampling sees around it.

        What is read begins where samples of both rates coincide, so resampling it gives the samples of the whole, within rounding.
        """
        common = math.gcd(rate, self.rate)
        there, here = rate // common, self.rate // common
        margin = max(self.rate // 20, math.ceil(_FILTER * max(1.0, self.rate / rate)))
        first = max(0, start - margin) // here
        frames = math.ceil((start + self.samples + margin - first * here) * there / here)
        return first * there, frames, start - first * here

    def _length(self, collection: Collection, i: int) -> int:
        try:
            with collection.read(i) as file:
                return math.ceil(file.frames * self.rate / file.samplerate)
        except InputError:
            raise
        except Exception:  # counted and named with the other broken ones
            return 0

    def _starts(self, length: int) -> Sequence[int]:
        last = max(0, length - self.samples)
        return [*range(0, last, self.samples), last]
