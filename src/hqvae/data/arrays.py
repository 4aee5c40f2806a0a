"""Arrays of floats: vectors [D], series [T, C], feature maps [H, W, C]; standardised by channel."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hqvae.config_class import config_class
from hqvae.errors import InputError
from hqvae.metrics import ArrayError, Metric
from hqvae.ranks import warn

from .broken import damage_said
from .dataset import Dataset
from .modality import Modality, SignalUnit
from .scan import Progress
from .sources import FileIndex, SourceConfig, open_arrays

_LOOKED_AT = 100_000  # items that mean and deviation come from, spread over the training items
_BLOCK = 4096  # items of these that are read at a time
_SHAPES = {0: "[D]", 1: "[T, C]", 2: "[H, W, C]"}


@config_class
class ArrayConfig(SourceConfig):
    """Arrays of floats, and how they are prepared.

    >>> ArrayConfig(source="items.npy").modality.name
    'array'
    """

    kind: Literal["arrays"] = "arrays"
    """Rows of arrays."""
    ids: str | None = None
    """The column or array with the items' names, or a text file of them, one a line."""
    labels: str | None = None
    """The column or array with the items' classes."""
    validation: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of the training items cut off where the source has no validation split; 0: they are
    the training items."""
    test: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the training items cut off where the source has no test split; 0: they are the
    training items."""
    standardize: Literal["channel", "all"] = "channel"
    """Every channel to variance 1 (channel), or all by one factor (all); means to 0."""
    space: tuple[int, ...] | None = None
    """Of an item: none of vectors, T of series, H and W of maps; None takes the data's."""
    mean: tuple[float, ...] = ()
    """Of every channel; found in the training items."""
    deviation: tuple[float, ...] = ()
    """Of every channel, by which signals are divided; found in the training items."""

    @property
    def modality(self) -> "ArrayModality":
        return ARRAY

    def for_other_data(self) -> Any:
        return replace(super().for_other_data(), ids=None, labels=None)


class ArrayModality(Modality[ArrayConfig]):
    """Float arrays, channels last; signals have mean 0 and variance 1, and no limit."""

    name = "array"
    noun = "array"
    example = "item"
    suffixes: ClassVar[frozenset[str]] = frozenset()
    saved_suffix = ".npy"
    hub_feature = ""
    channels: ClassVar[Mapping[int, str] | None] = None
    figure_columns = 6

    def open_source(self, config: ArrayConfig) -> dict[str, FileIndex]:
        return open_arrays(config, config.ids, config.labels)

    def open(self, file: Path | BytesIO) -> np.ndarray:
        array: np.ndarray = np.load(file, allow_pickle=False)
        return array

    def from_memory(self, value: Any, config: ArrayConfig) -> np.ndarray:
        """An array of floats, channels last."""
        axes = len(config.space or ())
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != axes + 1:
            raise ValueError(f"an array of floats {_SHAPES[axes]}")
        return value

    def shape(self, config: ArrayConfig, channels: int) -> tuple[int, ...] | None:
        return None if config.space is None else (channels, *config.space)

    def axes(self, config: ArrayConfig) -> int:
        return len(config.space or ())

    def unit(self, config: ArrayConfig) -> SignalUnit:
        """Errors are in the data's own unit: channels weigh as their variances do."""
        square = np.square(config.deviation or (1.0,))  # 1 before the data are known
        weights = tuple((square / square.mean()).tolist())
        return SignalUnit(
            scale=float(np.sqrt(square.mean())),
            name="own unit",
            step=0.0,
            limit=None,
            square=1.0,
            point={0: "vector", 1: "step", 2: "point"}[self.axes(config)],
            weights=weights if config.standardize == "channel" else None,
        )

    def metrics(
        self, config: ArrayConfig, device: torch.device | str = "cpu", thorough: bool = False
    ) -> list[Metric]:
        """RMSE in the data's own unit, explained variance, and the signal-to-noise ratio."""
        return [ArrayError(config.deviation)]

    def prepare(
        self, opened: np.ndarray, config: ArrayConfig, channels: int, whole: bool = False
    ) -> Float[Tensor, "C *S"]:
        """Raises ValueError for another number of channels, and values that are not finite."""
        if opened.shape[-1] != channels:
            raise ValueError(f"it has {opened.shape[-1]} channels; expected {channels}")
        if not np.isfinite(opened).all():
            raise ValueError("it has values that are not finite")
        return standardized(torch.from_numpy(raw_rows(opened[None])), config)[0]

    def restore(self, signal: Float[Tensor, "B C *S"], config: ArrayConfig) -> list[np.ndarray]:
        """Arrays in the data's own unit, channels last."""
        rows = signal.float().cpu().movedim(1, -1).numpy().astype(np.float64)
        rows = rows * np.array(config.deviation) + np.array(config.mean)
        return list(rows.astype(np.float32))

    def save(
        self, item: np.ndarray, path: Path, config: ArrayConfig, size: tuple[int, ...] | None = None
    ) -> None:
        with path.open("wb") as file:  # NumPy would change the file's name
            np.save(file, item, allow_pickle=False)

    def examples(self, config: ArrayConfig) -> str:
        return {0: "vectors", 1: "series", 2: "maps"}[self.axes(config)]

    def check_model(self, config: ArrayConfig, channels: int, axes: int) -> None:
        """Raises InputError once the data are known, and are not for such a model."""
        if config.space is None:
            return
        if axes != len(config.space):
            presets = {0: "a preset for vectors", 1: "one for series", 2: "a model of axes=2"}
            raise InputError(
                f"model.axes={axes}, and the items are of shape {_SHAPES[len(config.space)]}; "
                f"expected {presets[len(config.space)]}"
            )
        if channels not in (0, len(config.mean)):
            raise InputError(
                f"model.channels={channels}: the items have {len(config.mean)} channels"
            )

    def resolve(
        self, config: ArrayConfig, indexes: Mapping[str, FileIndex], wanted: Sequence[str]
    ) -> ArrayConfig:
        """Shape, means and deviations of the training items, where the config has none.

        A channel that never changes has the deviation of the others. Raises InputError where none
        does.
        """
        if config.space is not None:
            return config
        index = indexes.get("train") or indexes[wanted[0]]
        with damage_said(config.source):
            mean, variance, space = moments(index)
        if not variance.any():
            raise InputError(
                f"all {len(index)} training items of data {config.source!r} are the same; "
                "expected items that differ"
            )
        constant = np.flatnonzero(variance == 0)
        if len(constant):
            warn(
                "data %s: %d of %d channels are constant, such as channel %d, which is %g in every "
                "training item; they take part as they are",
                *(config.source, len(constant), len(mean), constant[0], mean[constant[0]]),
            )
        usual = variance[variance > 0].mean()
        variance = np.where(variance > 0, variance, usual)
        if config.standardize == "all":
            variance = np.full_like(variance, usual)
        deviation = np.sqrt(variance)
        return replace(
            config, space=space, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist())
        )

    def dataset(
        self, index: FileIndex, config: ArrayConfig, channels: int, progress: Progress | None = None
    ) -> Dataset:
        from .array_dataset import ArrayDataset  # which imports this file

        return ArrayDataset(index, config)


ARRAY = ArrayModality()


def raw_rows(rows: np.ndarray) -> np.ndarray:
    """Items as stored, channels last → channels first, in float32 or float64."""
    floats = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    rows = np.ascontiguousarray(np.moveaxis(floats, -1, 1))
    return rows if rows.flags.writeable else rows.copy()  # torch takes no mapped files


def standardized(
    raw: Tensor, config: ArrayConfig, device: torch.device | str = "cpu"
) -> Float[Tensor, "B C ..."]:
    """(raw − mean) / deviation of every channel, in float32."""
    raw = raw.to(device)
    shape = (1, -1, *[1] * (raw.ndim - 2))
    mean, deviation = (
        _tensor(values).to(device, raw.dtype).view(shape)
        for values in (config.mean, config.deviation)
    )
    return ((raw - mean) / deviation).float()


@lru_cache(maxsize=16)
def _tensor(values: tuple[float, ...]) -> Float[Tensor, "C"]:
    return torch.tensor(values, dtype=torch.float64)


def moments(index: FileIndex) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """(mean and variance of every channel, the shape of an item but for its channels).

    Of finite items, up to 100,000 that are spread over all. Raises InputError where none is.
    """
    assert index.take is not None
    count = min(len(index), _LOOKED_AT)
    chosen = np.linspace(0, len(index) - 1, count).round().astype(np.int64)
    seen = 0
    mean = square = np.zeros(())
    low = np.inf
    high = -np.inf
    space: tuple[int, ...] = ()
    for start in range(0, count, _BLOCK):
        rows = index.take(chosen[start : start + _BLOCK]).astype(np.float64)
        space = rows.shape[1:-1]
        values = rows[np.isfinite(rows).all(tuple(range(1, rows.ndim)))].reshape(-1, rows.shape[-1])
        if not len(values):
            continue
        # Chan, Golub and LeVeque's update: squares of large values would lose the variance.
        own = values.mean(0)
        delta = own - mean
        total = seen + len(values)
        square = square + np.square(values - own).sum(0) + delta**2 * (seen * len(values) / total)
        mean = mean + delta * (len(values) / total)
        low = np.minimum(low, values.min(0))
        high = np.maximum(high, values.max(0))
        seen = total
    if not seen:
        raise InputError(f"none of {count} items that were looked at has only finite values")
    # What rounding leaves of a constant is none.
    return mean, np.where(high > low, square / seen, 0.0), space
