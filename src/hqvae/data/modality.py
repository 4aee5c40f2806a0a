"""What a data set holds: its words, its files, its unit, and what a model of it looks like."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hqvae.errors import InputError
from hqvae.metrics import PEAK_SQUARE, Metric, psnr

if TYPE_CHECKING:
    from .dataset import Dataset
    from .scan import Progress
    from .sources import FileIndex

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class SignalUnit:
    """What a signal stands for, and how its errors are measured.

    >>> pixels = SignalUnit(scale=127.5, name="0–255", step=1 / 127.5)
    >>> pixels.scale * 0.1  # an error of 0.1 in the signal, in grey levels
    12.75
    """

    scale: float
    """One unit of the signal, in the unit that errors are reported in."""
    name: str
    """The name of that unit."""
    step: float
    """Distance between neighbouring stored values, in the signal; 0 where it is continuous."""
    per_second: float | None = None
    """Points of one channel per second; None for signals without time."""
    limit: float | None = 1.0
    """The largest absolute value that exists, to which reconstructions are clamped; None: any."""
    square: float = PEAK_SQUARE
    """What squared errors are compared with in dB: that of the peak, or 1, the variance."""
    point: str = "pixel"
    """What a point of one channel is."""
    weights: tuple[float, ...] | None = None
    """Of the channels' squared errors, mean 1, where channels have units of their own."""

    @property
    def per_unit(self) -> float:
        """Values in one unit of the signal, which bits per dimension count.

        Stored values where the signal has a step, else the reported unit.
        """
        return 1 / self.step if self.step else self.scale

    @property
    def ratio(self) -> str:
        """The name of the ratio in dB."""
        return "PSNR" if self.limit is not None else "SNR"

    def clamp(self, x_hat: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """A reconstruction in float32, within what exists."""
        x_hat = x_hat.float()
        return x_hat if self.limit is None else x_hat.clamp(-self.limit, self.limit)

    def mse(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> Float[Tensor, "B"]:
        """Of each signal, after clamping, the mean over its elements; `scale`² makes it the unit's.

        >>> unit = SignalUnit(scale=1.0, name="m", step=0.0, limit=None, weights=(1.5, 0.5))
        >>> unit.mse(torch.zeros(1, 2), torch.tensor([[2.0, 4.0]]))
        tensor([7.])
        """
        square = (x - self.clamp(x_hat)).square()
        if self.weights is not None:
            weights = torch.tensor(self.weights, device=square.device)
            square = square * weights.view(1, -1, *[1] * (square.ndim - 2))
        return square.flatten(1).mean(1)

    def decibels(self, mse: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The ratio of each signal in dB."""
        return psnr(mse, self.square)


class Modality(ABC, Generic[ConfigT]):
    """One kind of data. A new kind is a subclass, a config that names it, and a `Dataset`.

    An *item* is what a source counts: a picture, an audio file. An *example* is what a model
    sees of it: the same picture, or a segment of the file.
    """

    name: ClassVar[str]
    """One word for the kind: `image`, `audio`."""
    noun: ClassVar[str]
    """An item in messages; its plural ends in s."""
    example: ClassVar[str]
    """An example in messages; its plural ends in s."""
    suffixes: ClassVar[frozenset[str]]
    """Endings of its files, in lower case and with the dot."""
    saved_suffix: ClassVar[str]
    """Ending of the files that `save` writes."""
    hub_feature: ClassVar[str]
    """Its class in the library `datasets`."""
    channels: ClassVar[Mapping[int, str] | None]
    """Numbers of channels that a model may have, and what each means; None allows any."""
    figure_columns: ClassVar[int]
    """Examples that a figure shows side by side."""
    spectra: ClassVar[bool] = False
    """Whether its pictures are spectra: low bands at the bottom, free to stretch."""
    photographs: ClassVar[bool] = False
    """Whether items are photographs: the built-in ones serve, and networks trained on photographs
    can judge them."""
    arrays: ClassVar[bool] = False
    """Whether uint8 arrays of an `.npz` are of this kind."""
    readers: ClassVar[tuple[str, ...]] = ()
    """Packages that read its files; another version of one may read other values."""
    evaluation_options: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config that an evaluation may set to other values than training."""

    def open_source(self, config: ConfigT) -> "dict[str, FileIndex] | None":
        """The splits of a source in a form of its own; None where items are files.

        Raises InputError for one that cannot be used.
        """
        return None

    @abstractmethod
    def open(self, file: Path | BytesIO) -> Any:
        """A file, opened as its decoder does. May raise anything where the file is broken."""

    @abstractmethod
    def from_memory(self, value: Any, config: ConfigT) -> Any:
        """What `open` gives, of an item that is in memory and no file.

        Raises ValueError for what is none. Of what type items are, the message says.
        """

    @abstractmethod
    def shape(self, config: ConfigT, channels: int) -> tuple[int, ...] | None:
        """[C, *S] of an example; None while the config leaves its size open."""

    @abstractmethod
    def axes(self, config: ConfigT) -> int:
        """Number of axes of space that signals have: 2 for pictures, 1 for waveforms."""

    @abstractmethod
    def unit(self, config: ConfigT) -> SignalUnit:
        """What a signal in [−1, 1] stands for."""

    @abstractmethod
    def metrics(
        self, config: ConfigT, device: torch.device | str = "cpu", thorough: bool = False
    ) -> list[Metric]:
        """What tells originals and reconstructions apart; `thorough` takes slow ones too."""

    @abstractmethod
    def prepare(self, opened: Any, config: ConfigT, channels: int, whole: bool = False) -> Tensor:
        """The signal [C, *S] of what `open` gave, as training's items are prepared.

        `whole` leaves its own size, where training has items cut to one. May raise anything where
        the file is broken.
        """

    @abstractmethod
    def restore(self, signal: Shaped[Tensor, "B C *S"], config: ConfigT) -> list[Any]:
        """What signals are of, one each, to be saved or played: the way back from `prepare`."""

    @abstractmethod
    def save(
        self, item: Any, path: Path, config: ConfigT, size: tuple[int, ...] | None = None
    ) -> None:
        """Write one of what `restore` gives, as a file without further loss.

        `size` is the item's own, where it may be shorter than its signal.
        """

    @abstractmethod
    def examples(self, config: ConfigT) -> str:
        """Its examples, in words, for messages about their shape: plural."""

    def resolve(
        self, config: ConfigT, indexes: Mapping[str, "FileIndex"], wanted: Sequence[str]
    ) -> ConfigT:
        """The config with what it leaves open filled in from the data."""
        return config

    @abstractmethod
    def dataset(
        self, index: "FileIndex", config: ConfigT, channels: int, progress: "Progress | None" = None
    ) -> "Dataset":
        """One split, opened. Raises InputError for data that cannot be used."""

    def remarks(self, dataset: "Dataset", training: bool) -> list[str]:
        """What a person should know of a split before a model sees it, a sentence each.

        `training` says whether the model is still to be trained, and may be another.
        """
        return []

    def check_model(self, config: ConfigT, channels: int, axes: int) -> None:
        """Raises InputError where a model of so many channels and axes cannot take these data."""
        expected = self.axes(config)
        if axes != expected:
            raise InputError(f"model.axes={axes}: {self.examples(config)} have {expected}")
        if self.channels is not None and channels not in self.channels:
            allowed = " or ".join(f"{count} ({word})" for count, word in self.channels.items())
            raise InputError(f"model.channels={channels}: {self.noun}s have {allowed}")
