"""Audio: any file → mono 16-bit samples, resampled; whole, or cut into segments."""

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hqvae.config_class import config_class
from hqvae.metrics import Distortion, Metric

from .dataset import Dataset
from .frontend import MelConfig, WaveConfig
from .modality import Modality, SignalUnit
from .samples import decode, followed_by_silence
from .scan import Progress
from .sound_files import SUFFIXES, SoundReader, write_wav
from .sources import FileIndex, SourceConfig
from .stored import to_signal

log = logging.getLogger("hqvae")


@config_class
class AudioConfig(SourceConfig):
    """Audio files, and how they are prepared.

    >>> AudioConfig(source="speech", rate=16_000, frontend=WaveConfig()).modality.name
    'audio'
    """

    kind: Literal["audio"] = "audio"
    """Audio files."""
    rate: int = Field(default=22050, ge=100, le=1_000_000)
    """Samples per second that everything is resampled to."""
    seconds: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Length of a segment. In training it begins anywhere; else segments tile every file."""
    loudness: float | None = Field(default=None, ge=-100, le=0)
    """Root mean square of every whole file, in dB below full scale; None leaves it as it is."""
    frontend: MelConfig | WaveConfig = Field(default=MelConfig(), discriminator="kind")
    """What a model sees."""

    @property
    def modality(self) -> "AudioModality":
        return AUDIO


class AudioModality(Modality[AudioConfig]):
    """Audio files, as libsndfile reads them; all channels averaged to one."""

    name = "audio"
    noun = "audio file"
    example = "segment"
    suffixes = SUFFIXES
    readers = ("soundfile", "soxr")
    saved_suffix = ".wav"
    hub_feature = "Audio"
    channels: ClassVar[Mapping[int, str] | None] = {1: "mono"}
    figure_columns = 3
    spectra = True
    evaluation_options = frozenset({"seconds"})

    def open(self, file: Path | BytesIO) -> SoundReader:
        """Its header is read, its samples are not yet."""
        return SoundReader(file)

    def from_memory(self, value: Any, config: AudioConfig) -> SoundReader:
        """An array [T] at `config.rate`: floats in [−1, 1] or int16."""
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "if":
            raise ValueError("an array [T] of floats in [−1, 1] or int16")
        file = BytesIO()
        write_wav(file, value, config.rate, "PCM_16" if value.dtype == np.int16 else "FLOAT")
        return SoundReader(file)

    def shape(self, config: AudioConfig, channels: int) -> tuple[int, ...]:
        frontend = config.frontend.build(config.rate)
        return frontend.shape(frontend.floor(round(config.seconds * config.rate)))

    def axes(self, config: AudioConfig) -> int:
        return config.frontend.axes

    def unit(self, config: AudioConfig) -> SignalUnit:
        return config.frontend.build(config.rate).unit

    def metrics(
        self, config: AudioConfig, device: torch.device | str = "cpu", thorough: bool = False
    ) -> list[Metric]:
        """RMSE and PSNR, and what the frontend's signals have beside."""
        return [Distortion(self.unit(config).scale), *config.frontend.metrics(config.rate)]

    def prepare(
        self, opened: SoundReader, config: AudioConfig, channels: int, whole: bool = False
    ) -> Float[Tensor, "1 ..."]:
        """A sound is always whole: `config.seconds` is how long training's segments are."""
        frontend = config.frontend.build(config.rate)
        with opened as file:
            sound = decode(file, config.rate, config.loudness)
        if sound.remark is not None:
            log.warning("a sound is in use, but %s", sound.remark)
        samples = sound.samples
        raw = torch.from_numpy(followed_by_silence(samples, frontend.ceil(len(samples))))
        return frontend.forward(to_signal(raw[None]))[0]

    def restore(
        self, signal: Float[Tensor, "B 1 ..."], config: AudioConfig
    ) -> list[Float[np.ndarray, "T"]]:
        """Samples in [−1, 1] at `config.rate`."""
        sounds = config.frontend.build(config.rate).inverse(signal.float().cpu())
        return list(sounds[:, 0].clamp(-1, 1).numpy())

    def save(
        self,
        item: Float[np.ndarray, "T"],
        path: Path,
        config: AudioConfig,
        size: tuple[int, ...] | None = None,
    ) -> None:
        """16 bits; silence that was put behind a sound goes."""
        write_wav(path, item if size is None else item[: size[0]], config.rate)

    def examples(self, config: AudioConfig) -> str:
        return f"segments with data.frontend.kind={config.frontend.kind}"

    def dataset(
        self, index: FileIndex, config: AudioConfig, channels: int, progress: Progress | None = None
    ) -> Dataset:
        from .audio_dataset import AudioDataset  # which imports this file

        return AudioDataset(index, config, progress)


AUDIO = AudioModality()
