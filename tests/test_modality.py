"""One kind of data after another: what it says of itself, and a new kind that needs no change."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqvae.data import (
    AUDIO,
    IMAGE,
    PIXEL_UNIT,
    AudioConfig,
    BrokenItem,
    Dataset,
    FileIndex,
    ImageConfig,
    MelConfig,
    Modality,
    ShuffledBatches,
    SignalUnit,
    WaveConfig,
    examples_for_figure,
    sequential_batches,
    training_batches,
)
from hqvae.errors import InputError
from hqvae.metrics import Distortion, Metric

WAVES = AudioConfig(rate=8000, frontend=WaveConfig())
CONFIGS = {"images": ImageConfig(), "spectra": AudioConfig(), "waveforms": WAVES}


@pytest.mark.parametrize(("name", "axes"), [("images", 2), ("spectra", 2), ("waveforms", 1)])
def test_a_config_says_what_its_data_are(name, axes):
    config = CONFIGS[name]
    modality = config.modality
    assert modality is (IMAGE if name == "images" else AUDIO)
    assert modality.axes(config) == axes
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in modality.suffixes)
    assert modality.evaluation_options <= vars(config).keys()
    modality.check_model(config, channels=1, axes=axes)


@pytest.mark.parametrize(
    ("name", "channels", "axes", "words"),
    [
        ("images", 3, 1, "model.axes=1: images have 2"),
        ("images", 2, 2, r"model.channels=2: images have 1 \(grey\) or 3 \(colour\)"),
        ("spectra", 1, 1, "model.axes=1: segments with data.frontend.kind=mel have 2"),
        ("spectra", 3, 2, r"model.channels=3: audio files have 1 \(mono\)"),
        ("waveforms", 1, 2, "model.axes=2: segments with data.frontend.kind=wave have 1"),
    ],
)
def test_a_model_that_cannot_take_the_data_is_refused(name, channels, axes, words):
    config = CONFIGS[name]
    with pytest.raises(InputError, match=words):
        config.modality.check_model(config, channels, axes)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_error_of_one_unit_is_what_the_unit_says(name):
    unit = CONFIGS[name].modality.unit(CONFIGS[name])
    if name == "images":
        assert unit == PIXEL_UNIT and unit.per_unit == 127.5 and unit.per_second is None
    if name == "waveforms":
        assert unit.per_unit == 32768 and unit.per_second == 8000
    if name == "spectra":
        assert unit.step == 0 and unit.per_unit == unit.scale
        assert unit.per_second == pytest.approx(MelConfig().mels * 22050 / MelConfig().hop)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_modality_brings_the_metrics_of_its_signals(name):
    """RMSE in its unit for all; SSIM where signals are pictures, SI-SDR where they are heard."""
    config = CONFIGS[name]
    metrics = config.modality.metrics(config)
    x = torch.rand(2, 1, 16, 16) if config.modality.axes(config) == 2 else torch.rand(2, 1, 64)
    for metric in metrics:
        metric.add(x, x + 0.1)
    figures = {key: value for metric in metrics for key, value in metric.values().items()}
    assert figures["rmse"] == pytest.approx(0.1 * config.modality.unit(config).scale, rel=1e-4)
    assert ("ssim" in figures) == (x.ndim == 4) and ("si_sdr" in figures) == (x.ndim == 3)


# -------------------------------------------------------------------------------- a kind of its own


@dataclass(frozen=True)
class VectorConfig:
    width: int = 5
    workers: int = 0


class VectorModality(Modality[VectorConfig]):
    """Vectors: signals [C] without space."""

    name = noun = example = "vector"
    suffixes = frozenset({".npy"})
    hub_feature = "Sequence"
    channels = None

    def open(self, file: Path | BytesIO) -> Any:
        return np.load(file, allow_pickle=False)

    def from_memory(self, value: Any, config: VectorConfig) -> Any:
        return value

    def shape(self, config: VectorConfig, channels: int) -> tuple[int, ...]:
        return (config.width,)

    def axes(self, config: VectorConfig) -> int:
        return 0

    def unit(self, config: VectorConfig) -> SignalUnit:
        return SignalUnit(1.0, "", 0.0)

    def metrics(self, config: VectorConfig, device="cpu", thorough=False) -> list[Metric]:
        return [Distortion()]

    def prepare(self, opened: Any, config: VectorConfig, channels: int, whole=False):
        return torch.from_numpy(opened)

    def restore(self, signal: torch.Tensor, config: VectorConfig) -> list[Any]:
        return list(signal.numpy())

    def save(self, item: Any, path: Path, config: VectorConfig, size=None) -> None:
        np.save(path, item)

    def examples(self, config: VectorConfig) -> str:
        return "vectors"

    def dataset(self, index, config, channels, progress=None) -> "VectorDataset":
        return VectorDataset(index, config)


VECTOR = VectorModality()


class VectorDataset(Dataset):
    """Rows; those that hold NaN are broken."""

    modality = VECTOR
    in_memory = False

    def __init__(self, index: FileIndex, config: VectorConfig):
        super().__init__(index, config)
        self.unit = VECTOR.unit(config)
        self.shape = (config.width,)

    def __len__(self) -> int:
        return len(self.index)

    def describe(self) -> str:
        return f"{len(self)} vectors"

    def item_of(self, i: int) -> int:
        return i

    def read_raw(self, i: int) -> np.ndarray:
        row = self.index.open(i)
        if not np.isfinite(row).all():
            raise BrokenItem(self.keys[i], "it holds values that are not finite")
        return row

    def coded_raw(self, i: int, whole: bool) -> tuple[np.ndarray, tuple[int, ...]]:
        return self.read_raw(i), ()

    def load_raw(self, i: int, augment_noise: np.ndarray | None = None) -> np.ndarray:
        return self.read_raw(i)

    def signal(self, raw, device: torch.device | str = "cpu"):
        return raw.to(device).float()

    def picture(self, signal):
        return signal[:, None, None]


def vectors(rows: Sequence[Sequence[float]]) -> VectorDataset:
    array = np.array(rows, np.float32)
    names = [f"row {i}" for i in range(len(array))]
    return VectorDataset(FileIndex(names, array.__getitem__), VectorConfig(array.shape[1]))


def test_signals_without_space_go_through_the_same_batches(caplog):
    rows = [[float(i)] * 5 for i in range(8)]
    rows[3] = [float("nan")] * 5
    dataset = vectors(rows)
    assert dataset.read(2)[1].shape == dataset.shape == (5,)
    batches = list(sequential_batches(dataset, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 5), (3, 5), (1, 5)]
    assert torch.cat(batches)[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert dataset.broken == {"row 3": "it holds values that are not finite"}
    order = ShuffledBatches(8, 8, 0)
    (batch,) = training_batches(dataset, order, 0, 1, [slice(0, 8)])
    expected = [4 if i == 3 else i for i in order.at(0)[0]]
    assert batch[:, 0].tolist() == expected
    assert examples_for_figure(dataset, 2).shape == (2, 5)
    VECTOR.check_model(VectorConfig(), channels=768, axes=0)
    with pytest.raises(InputError, match=r"model\.axes=2: vectors have 0"):
        VECTOR.check_model(VectorConfig(), channels=768, axes=2)
    with pytest.raises(TypeError, match="vectors cannot be heard"):
        dataset.waveform(batch)
