"""One split of float arrays: mapped files or tables, kept in memory where they fit."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hqvae.errors import InputError

from .arrays import ARRAY, ArrayConfig, raw_rows, standardized
from .broken import BrokenItem, damage_said, is_fault_of_items
from .dataset import Dataset
from .sources import FileIndex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOT_FINITE = "it has values that are not finite"
_NO_VALUE = "it has no value"
_SHOWN = 3.0  # standard deviations from black to grey, and from grey to white
_SCANNED = 4096  # items that are looked at together


class ArrayDataset(Dataset):
    """One split of arrays: raw batches are floats [B, C, *S] in the data's own unit.

    Opening it reads the whole split where that fits into `cache_mb`, and looks for values that are
    not finite. Of larger ones items are read when they are needed.
    """

    modality = ARRAY
    is_stacked = True

    def __init__(self, index: FileIndex, config: ArrayConfig):
        if config.space is None or index.take is None:
            raise ValueError("config.space is not resolved; open the data with open_data")
        super().__init__(index, config)
        self._take = index.take
        self.unit = ARRAY.unit(config)
        self.shape = (len(config.mean), *config.space)
        example = self._take(np.arange(1))
        if example.shape[1:] != (*config.space, self.shape[0]):
            raise InputError(
                f"data {config.source!r} has items of shape {list(example.shape[1:])}, and the "
                f"model was trained on {[*config.space, self.shape[0]]}"
            )
        bytes_needed = len(index) * example.nbytes
        self.in_memory = bytes_needed <= config.cache_mb * 2**20
        self._kept: np.ndarray | None = None
        if self.in_memory:
            with damage_said(config.source):
                self._kept = self._take(np.arange(len(index)))
            self._scan(self._kept)

    def _scan(self, rows: np.ndarray) -> None:
        """Note rows that are not finite, all of them in one warning."""
        for start in range(0, len(rows), _SCANNED):
            block = rows[start : start + _SCANNED]
            for row in _unfit(block):
                self._unreadable[start + row] = _why_unfit(block[row])
        self._warn_of_scan()

    def __len__(self) -> int:
        return len(self.index)

    def describe(self) -> str:
        channels, *space = self.shape
        size = "×".join(map(str, [*space, channels]))
        count = len(self) - len(self._unreadable)
        return f"{count} {ARRAY.examples(self.config)} of {size}"

    def item_of(self, i: int) -> int:
        return i

    # ------------------------------------------------------------------------------- one at a time

    def read_raw(self, i: int) -> Float[np.ndarray, "C *S"]:
        return self._attempt(i, lambda: self._finite(i))

    def load_raw(
        self, i: int, augment_noise: Float[np.ndarray, "2"] | None = None
    ) -> Float[np.ndarray, "C *S"]:
        return self.read_raw(i)

    def coded_raw(self, i: int, whole: bool) -> tuple[Float[np.ndarray, "C *S"], tuple[int, ...]]:
        raw = self.read_raw(i)
        return raw, raw.shape[1:]

    def coded_batch(self, numbers: np.ndarray) -> tuple[np.ndarray, Float[Tensor, "b C *S"]]:
        found, raw = self.readable(numbers)
        return found, self.signal(raw)

    def readable(self, numbers: np.ndarray) -> tuple[np.ndarray, Shaped[Tensor, "B C *S"]]:
        """(those of these items that are finite, their raw batch); the others are noted."""
        rows = self._rows_or_none(numbers)
        if rows is None:
            return self._readable_one_by_one(numbers)
        unfit = _unfit(rows)
        if unfit:
            found = {int(numbers[row]): _why_unfit(rows[row]) for row in unfit}
            self._unreadable.update(found)
            self.note_broken(found, "it is left out")
            numbers = np.delete(numbers, unfit)
            rows = np.delete(rows, unfit, 0)
        return numbers, torch.from_numpy(raw_rows(rows))

    def _readable_one_by_one(self, numbers: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """`readable` where some of these items are damaged."""
        found: dict[int, np.ndarray] = {}
        for i in numbers.tolist():
            try:
                found[i] = self.read_raw(i)
            except BrokenItem as error:
                self.note_broken({i: error.reason}, "it is left out")
        rows = np.stack(list(found.values())) if found else np.zeros((0, *self.shape), np.float32)
        return np.array(list(found), dtype=np.int64), torch.from_numpy(rows)

    def _finite(self, i: int) -> np.ndarray:
        rows = self._rows(np.array([i]))
        if len(_unfit(rows)):
            raise ValueError(_why_unfit(rows[0]))
        return raw_rows(rows)[0]

    def _rows_or_none(self, numbers: np.ndarray) -> np.ndarray | None:
        """`_rows`; None where some of them are damaged."""
        try:
            return self._rows(numbers)
        except Exception as error:
            if not is_fault_of_items(error):
                raise
            return None

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        """Items as they are stored, channels last."""
        return self._take(numbers) if self._kept is None else self._kept[numbers]

    # -------------------------------------------------------------------------------------- batches

    def training_batch(
        self, indices: np.ndarray, augment_noise: Float[np.ndarray, "B 2"]
    ) -> Shaped[Tensor, "B C *S"]:
        order = np.argsort(indices, kind="stable")  # files are read from front to back
        rows = self._rows_or_none(indices[order])
        if rows is None or len(_unfit(rows)):
            return super().training_batch(indices, augment_noise)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.from_numpy(raw_rows(rows[back]))

    def signal(
        self, raw: Shaped[Tensor, "B C ..."], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B C ..."]:
        return standardized(raw, self.config, device)

    # -------------------------------------------------------------------------------------- figures

    def picture(self, signal: Float[Tensor, "B C ..."]) -> Float[Tensor, "B _ H W"]:
        """Vectors as squares, series as channels × time, maps by their first channels."""
        shown = (signal.float() / _SHOWN).clamp(-1, 1)
        if shown.ndim == 2:
            side = math.ceil(math.sqrt(shown.shape[1]))
            missing = side * side - shown.shape[1]
            return torch.nn.functional.pad(shown, (0, missing)).view(-1, 1, side, side)
        if shown.ndim == 3:
            return shown[:, None]
        return shown if shown.shape[1] == 3 else shown[:, :1]

    def figure(self, rows: Sequence[tuple[str, Float[Tensor, "B C ..."]]]) -> "Figure":
        from hqvae.figures import curves

        if len(self.shape) != 2:
            return super().figure(rows)
        restored = [(label, ARRAY.restore(signals, self.config)) for label, signals in rows]
        return curves([(label, np.stack(arrays)) for label, arrays in restored])


def _why_unfit(row: np.ndarray) -> str:
    """Tables give rows without a value as nothing but NaN."""
    return _NO_VALUE if np.isnan(row).all() else _NOT_FINITE


def _unfit(rows: np.ndarray) -> list[int]:
    """Numbers of the rows that are not finite."""
    finite = np.isfinite(rows).all(tuple(range(1, rows.ndim)))
    return [] if finite.all() else np.flatnonzero(~finite).tolist()
