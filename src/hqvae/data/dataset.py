"""One split of a data set: exact items, examples as a model sees them, and what is broken."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hqvae.errors import InputError, summary_of

from .broken import BrokenItem, is_fault_of_items
from .modality import Modality, SignalUnit
from .sources import FileIndex, Label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("hqvae")
T = TypeVar("T")

_NAMED_AT_ONCE = 5  # broken items that one warning names
_NAMED_IN_ALL = 10  # broken items that get a warning of their own


class Dataset(ABC):
    """One split of a data set.

    An *item* is what the source counts: a picture, an audio file. `read(i)` gives the i-th of
    `keys` exactly. An *example* is what a model sees: the picture cut to its size, or a segment of
    the file. `load(i)` gives the i-th of `len(dataset)` as evaluation sees it. Training batches
    add augmentation. Whether decoded items are kept in memory changes no result.

    >>> import tempfile
    >>> from PIL import Image
    >>> from hqvae.data import ImageConfig, open_data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(20):
    ...         Image.new("RGB", (24, 16), (255, 0, 0)).save(f"{folder}/{number:02d}.png")
    ...     config, splits = open_data(ImageConfig(source=folder, size=8), channels=3)
    ...     key, signal = splits["test"].read(0)
    >>> signal.shape, splits["test"].load(0)[1].shape
    (torch.Size([3, 16, 24]), torch.Size([3, 8, 8]))
    """

    modality: ClassVar[Modality[Any]]
    """What the data are."""
    unit: SignalUnit
    """What a signal in [−1, 1] stands for."""
    shape: tuple[int, ...]
    """[C, *S] of an example's signal."""
    in_memory: bool
    """Whether decoded items are kept in memory."""
    is_stacked: ClassVar[bool] = False
    """Whether all items are of one size and can be had as one array, by `coded_batch`."""
    sample_rate: int | None = None
    """Samples per second of what `waveform` gives; None where signals cannot be heard."""

    def __init__(self, index: FileIndex, config: Any):
        self.index = index
        self.config = config
        self._unreadable: dict[int, str] = {}  # item → reason, of items that gave nothing at all
        self._scanned: set[int] = set()  # items that a warning of a scan has counted
        self._broken: dict[int, str] = {}  # item → reason, of items that were asked for
        self._named = 0  # of these, how many had a warning of their own

    # ---------------------------------------------------------------------------- what is there

    @property
    def keys(self) -> Sequence[str]:
        """Names of the items: paths below the source, or rows of a table."""
        return self.index.names

    @property
    def labels(self) -> Sequence[Label] | None:
        """Classes of the items, None for items without; None where the source has none."""
        return self.index.labels

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def describe(self) -> str:
        """Number and size of the examples, for people."""

    @property
    def broken(self) -> dict[str, str]:
        """Items that were asked for and found broken so far: name → reason.

        The same whether the set is kept in memory or not.
        """
        return {self.keys[item]: self._broken[item] for item in sorted(self._broken)}

    def left_out(self) -> list[tuple[str, str]]:
        """(name, reason) of all items known to be broken: those of `broken`, and what a scan found.

        Of a set that is kept in memory these are all.
        """
        known = {**self._unreadable, **self._broken}
        return [(self.keys[item], known[item]) for item in sorted(known)]

    # ------------------------------------------------------------------------------- one at a time

    def read(self, i: int) -> tuple[str, Float[Tensor, "C *S"]]:
        """(name, signal in [−1, 1]) of the i-th item, whole and at its own size.

        Nothing is augmented, resized, cropped or put in its place. Raises BrokenItem where it
        cannot be decoded.
        """
        raw = torch.from_numpy(self.read_raw(i))
        return self.keys[i], self.signal(raw[None])[0]

    def whole(self, i: int) -> Float[Tensor, "C *S"] | None:
        """The whole that the i-th item was cut from; None for signals that are no pictures.

        Raises BrokenItem where it cannot be decoded.
        """
        return None

    def load(self, i: int) -> tuple[str, Float[Tensor, "C *S"]]:
        """(name, signal in [−1, 1]) of the i-th example, as evaluation sees it.

        Raises BrokenItem where it cannot be had.
        """
        raw = torch.from_numpy(self.load_raw(i))
        return self.example_key(i), self.signal(raw[None])[0]

    @abstractmethod
    def read_raw(self, i: int) -> Shaped[np.ndarray, "C *S"]:
        """What `read` makes a signal of. Raises BrokenItem."""

    @abstractmethod
    def load_raw(
        self, i: int, augment_noise: Float[np.ndarray, "2"] | None = None
    ) -> Shaped[np.ndarray, "C *S"]:
        """What `load` makes a signal of; augmented as two uniform numbers in [0, 1) say.

        Raises BrokenItem.
        """

    @abstractmethod
    def coded_raw(self, i: int, whole: bool) -> tuple[Shaped[np.ndarray, "C *S"], tuple[int, ...]]:
        """What is coded of the i-th example, or of the i-th item whole; and the item's own size.

        That is [H, W] of a picture, and [T] at `sample_rate` of a sound. Raises BrokenItem, also
        for an item that is too small to be prepared.
        """

    def coded_batch(self, numbers: np.ndarray) -> tuple[np.ndarray, Shaped[Tensor, "b C ..."]]:
        """(those of these items that can be used, what is coded of them), where `is_stacked`."""
        raise TypeError(f"{self.modality.noun}s are coded one by one")

    def codable(self, raw: Shaped[np.ndarray, "C *S"]) -> Shaped[Tensor, "C ..."]:
        """A raw item as `encode` takes it: stored values where it does, else the signal."""
        return self.signal(torch.from_numpy(raw)[None])[0]

    @abstractmethod
    def item_of(self, i: int) -> int:
        """The item that the i-th example is of."""

    def example_key(self, i: int) -> str:
        """The name of the i-th example."""
        return self.keys[self.item_of(i)]

    def without_examples(self) -> list[BrokenItem]:
        """Items that no example is of, because nothing can be read of them."""
        return []

    # ------------------------------------------------------------------------------------- batches

    def training_batch(
        self, indices: np.ndarray, augment_noise: Float[np.ndarray, "B 2"]
    ) -> Shaped[Tensor, "B C *S"]:
        """A raw batch, augmented. A broken example is replaced by the next, with a warning.

        In every process alike. Raises InputError where no example is left.
        """
        rows = [self._load_or_next(int(i), noise) for i, noise in zip(indices, augment_noise)]
        return torch.from_numpy(np.stack(rows))

    def _load_or_next(self, i: int, augment_noise: np.ndarray) -> np.ndarray:
        for offset in range(len(self)):
            example = (i + offset) % len(self)
            try:
                return self.load_raw(example, augment_noise)
            except BrokenItem as error:
                consequence = f"the next {self.modality.example} takes its place"
                self.note_broken({self.item_of(example): error.reason}, consequence)
        raise self.nothing_left()

    def nothing_left(self) -> InputError:
        """The error for a split of which nothing can be read."""
        noun = self.modality.noun
        return InputError(f"none of the {len(self.keys)} {noun}s of this split can be read")

    @abstractmethod
    def signal(
        self, raw: Shaped[Tensor, "B C ..."], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B C ..."]:
        """A raw batch as the model sees it: float, in [−1, 1], on the device."""

    @abstractmethod
    def picture(self, signal: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C H W"]:
        """What is drawn of signals, in [−1, 1]."""

    def figure(self, rows: Sequence[tuple[str, Float[Tensor, "B C ..."]]]) -> "Figure":
        """Signals beside each other, a row for each label: originals and what became of them."""
        from hqvae.figures import image_grid  # whose library takes a second

        pictures = [(label, self.picture(signals)) for label, signals in rows]
        return image_grid(pictures, spectra=self.modality.spectra)

    def waveform(self, signal: Float[Tensor, "B C ..."]) -> Float[Tensor, "B 1 T"]:
        """What is heard of signals, at `sample_rate`, where there is one."""
        raise TypeError(f"{self.modality.noun}s cannot be heard")

    # ------------------------------------------------------------------------------ broken items

    def note_broken(self, found: Mapping[int, str], consequence: str) -> None:
        """Record items found broken; name those that are news, with what becomes of them."""
        if not found:
            return
        news = {item: reason for item, reason in found.items() if item not in self._broken}
        self._broken |= news
        if torch.utils.data.get_worker_info() is not None:
            return  # the parent says it, once
        for item in sorted(news.keys() - self._scanned):
            self._named += 1
            if self._named <= _NAMED_IN_ALL:
                log.warning("%s cannot be used (%s); %s", self.keys[item], news[item], consequence)
            if self._named == _NAMED_IN_ALL:
                log.warning("further %ss like these are counted and not named", self.modality.noun)

    def found_broken(self, after: int = 0) -> dict[int, str]:
        """Items of `broken` by number, in the order they were found, without the first `after`."""
        return dict(list(self._broken.items())[after:])

    def _attempt(self, item: int, read: Callable[[], T]) -> T:
        """What `read` gives; raises BrokenItem where it fails, or has failed before.

        What is the fault of the machine is raised as it is: the item may be read the next time.
        """
        if item in self._unreadable:
            raise BrokenItem(self.keys[item], self._unreadable[item])
        try:
            return read()
        except Exception as error:
            if not is_fault_of_items(error):
                raise
            reason = summary_of(error)
        # Outside of the handler, so that no traceback keeps the file open.
        self._unreadable[item] = reason
        raise BrokenItem(self.keys[item], reason)

    def _warn_of_scan(self) -> None:
        """One warning for all items that a scan found unreadable. Raises InputError if all are."""
        broken = sorted(self._unreadable.keys() - self._scanned)
        self._scanned.update(broken)
        if not broken:
            return
        named = "; ".join(
            f"{self.keys[item]} ({self._unreadable[item]})" for item in broken[:_NAMED_AT_ONCE]
        )
        log.warning(
            "%d of %d %ss are broken and left out: %s%s",
            len(broken),
            len(self.keys),
            self.modality.noun,
            named,
            " …" if len(broken) > _NAMED_AT_ONCE else "",
        )
        if len(self._unreadable) == len(self.keys):
            raise self.nothing_left()
