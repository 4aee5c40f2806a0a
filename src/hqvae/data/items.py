"""One split of a data set, decoded as far as memory allows: what images and sounds share."""

import errno
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor

from hqvae.errors import InputError

from .sources import Collection, Medium

log = logging.getLogger("hqvae")


@config(frozen=True, config=ConfigDict(extra="forbid"))
class SourceConfig:
    """Where a data set comes from, and how it is kept.

    Args:
        source: a folder, Parquet, a hub data set's name; for images also `photos` and `.npz`
        column: of a table, the one with the images or sounds
        validation, test: share of the training items cut off where the source has no such split
        validation_folders, test_folders: names of sub-folders that are those splits: `[fold9]`, `[fold10]`
        seed: of that cut
        cache_mb: decoded items are kept in memory up to this; beyond, they are decoded as they are needed
        workers: processes that decode when the items are not kept
    """

    source: str = "photos"
    column: str | None = None
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)
    validation_folders: tuple[str, ...] = ()
    test_folders: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
    cache_mb: int = Field(default=4096, ge=0)
    workers: int = Field(default=4, ge=0)

    @property
    def held(self) -> dict[str, str]:
        """Sub-folder → its split."""
        return {**dict.fromkeys(self.validation_folders, "validation"), **dict.fromkeys(self.test_folders, "test")}


@dataclass(frozen=True)
class Form:
    """What a signal in [−1, 1] stands for.

    Args:
        scale: one unit of the signal in the unit that errors are given in
        unit: that unit's name
        step: distance between neighbouring values of the signal as it was stored; 0 where it is continuous
        per_second: points of one channel per second, None for signals without time
    """

    scale: float
    unit: str
    step: float
    per_second: float | None = None

    @property
    def per_unit(self) -> float:
        """What bits per dimension count: stored values in one unit of the signal, or the form's units where it is continuous."""
        return 1 / self.step if self.step else self.scale


IMAGE = Form(scale=127.5, unit="0–255", step=1 / 127.5)


class Items(torch.utils.data.Dataset):
    """One split: `items[indices, draws]` is a raw batch `[B, C, *S]`, and `signal` makes of it what a model sees.

    `draws` [B, 2] uniform numbers decide flips, crops and segments; None takes every item as it is. Broken items are left out,
    counted and named. Subclasses say how an item is read, how large it is, and how a batch is cut.
    """

    medium: Medium
    form: Form
    shape: tuple[int, ...]  # [C, *S] of a signal

    def __init__(self, collection: Collection, config: Any, fits: bool):
        self.collection, self.config = collection, config
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            checked = list(pool.map(partial(_tried, self.decode if fits else self.check), range(len(collection))))
        self.refuse(checked)
        noun = self.medium.noun
        broken = [(collection.names[i], str(c)) for i, c in enumerate(checked) if isinstance(c, Exception)]
        if broken:
            shown = "; ".join(f"{name} ({why})" for name, why in broken[:5])
            log.warning("%d of %d %ss are broken and left out: %s%s", len(broken), len(collection), noun, shown, " …" * (len(broken) > 5))
        self.kept = [i for i, c in enumerate(checked) if not isinstance(c, Exception)]
        if not self.kept:
            raise InputError(f"none of the {len(collection)} {noun}s of this split can be read")
        self.cache = self.pack([c for c in checked if isinstance(c, np.ndarray)]) if fits else None

    @abstractmethod
    def decode(self, i: int) -> np.ndarray:
        """Item `i` of the collection as it is kept in memory. May raise anything where the file is broken."""

    @abstractmethod
    def check(self, i: int) -> Any:
        """As much of `decode` as tells a broken item cheaply; what it returns is for the subclass."""

    def refuse(self, checked: Sequence[Any]) -> None:
        """Raises InputError where the items, each decoded, checked or an exception, cannot be used at all."""

    def pack(self, decoded: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """The decoded items as they are kept."""
        return decoded

    @abstractmethod
    def describe(self) -> str:
        """Number and size of the items, for people."""

    def signal(self, batch: Shaped[Tensor, "B C *S"], device: torch.device | str = "cpu") -> Float[Tensor, "B C ..."]:
        """A raw batch as the model sees it: float, in [−1, 1], on the device."""
        return to_signal(batch, device)

    def picture(self, signal: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C H W"]:
        """What is shown of signals, in [−1, 1]."""
        return signal

    def __len__(self) -> int:
        return len(self.kept)

    def item(self, index: int) -> np.ndarray:
        """The `index`-th item that is whole, from memory or decoded again.

        One whose header was fine may still break: the next one takes its place, in every process alike.
        """
        if self.cache is not None:
            return self.cache[index]
        for offset in range(len(self.kept)):
            place = self.kept[(index + offset) % len(self.kept)]
            decoded = _tried(self.decode, place)
            if not isinstance(decoded, Exception):
                return decoded
            log.warning("%s is broken (%s); the next %s takes its place", self.collection.names[place], decoded, self.medium.noun)
        raise InputError(f"no {self.medium.noun} of this split can be read any more")


def _tried(read: Callable[[int], Any], i: int) -> Any:
    """What is read, or why it cannot be."""
    try:
        return read(i)
    except Exception as error:  # a broken file may raise anything from a decoder's plug-ins
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # that is no fault of the file
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)  # whose frames would keep the file open


def to_signal(batch: Shaped[Tensor, "B C *S"], device: torch.device | str = "cpu") -> Float[Tensor, "B C *S"]:
    """uint8 0 … 255, or int16 −32768 … 32767 → float −1 … 1, on the device."""
    values = batch.to(device, non_blocking=True)
    return values.float().div_(32768.0) if values.dtype == torch.int16 else values.float().div_(127.5).sub_(1.0)
