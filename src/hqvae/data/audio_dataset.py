"""One split of audio files: whole, or cut into segments; decoded once where they fit."""

import threading

import numpy as np
import torch
from jaxtyping import Float, Int16, Shaped
from torch import Tensor

from .audio import AUDIO, AudioConfig
from .broken import BrokenItem
from .dataset import Dataset
from .frontend import check_segment
from .remarks import Remarks
from .samples import decode, decode_segment, followed_by_silence, length_at
from .scan import Progress, scan
from .sound_files import Length
from .sources import FileIndex
from .stored import to_signal

_ROUNDING = 1  # samples by which a resampled length may differ from what the header promises


class AudioDataset(Dataset):
    """One split of audio files: raw batches are int16 segments [B, 1, T].

    An item is a file, an example a segment. Segments tile what can be read of each file; the last
    is drawn back to end with it, and silence follows a file shorter than a segment. In training a
    segment begins anywhere in its file instead.

    Opening it reads every header, and tries the end that it promises; files without are decoded to
    find theirs. The whole split is decoded where that fits into `cache_mb`.
    """

    modality = AUDIO

    def __init__(self, index: FileIndex, config: AudioConfig, progress: Progress | None = None):
        super().__init__(index, config)
        self.frontend = config.frontend.build(config.rate)
        self.unit = self.frontend.unit
        self.sample_rate = self.rate = config.rate
        self.samples = self.frontend.floor(round(config.seconds * config.rate))
        check_segment(self.frontend, config.seconds, config.rate)
        self.shape = self.frontend.shape(self.samples)
        self._remarks = Remarks(self.keys, self.modality.noun)
        self.lengths = self._read_headers(progress)
        self._first_segment = np.concatenate([[0], np.cumsum(self._segment_counts())])
        self.in_memory = 2 * sum(self.lengths) <= config.cache_mb * 2**20
        self._kept: list[np.ndarray | None] | None = None
        # The item that each thread decoded last, where none is kept.
        self._last: dict[int, tuple[int, np.ndarray]] = {}
        if self.in_memory:
            self._kept = scan(self._decode_or_none, len(index), progress)
        self._warn_of_scan()
        self._remarks.sum_up()

    def __len__(self) -> int:
        return int(self._first_segment[-1])

    def describe(self) -> str:
        files = sum(length > 0 for length in self.lengths)
        minutes = sum(self.lengths) / self.rate / 60
        seconds = self.samples / self.rate
        return (
            f"{files} audio files of {minutes:.1f} minutes "
            f"in {len(self)} segments of {seconds:.3g} s"
        )

    # ------------------------------------------------------------------------------------- segments

    def segment(self, i: int) -> tuple[int, int]:
        """(item, first sample) of the i-th segment."""
        item = int(np.searchsorted(self._first_segment, i, side="right")) - 1
        number = i - int(self._first_segment[item])
        return item, min(number * self.samples, max(0, self.lengths[item] - self.samples))

    def item_of(self, i: int) -> int:
        return self.segment(i)[0]

    def example_key(self, i: int) -> str:
        """The file's name, and the segment's first sample."""
        item, start = self.segment(i)
        return f"{self.keys[item]}@{start}"

    def without_examples(self) -> list[BrokenItem]:
        return [
            BrokenItem(self.keys[item], self._unreadable[item])
            for item, length in enumerate(self.lengths)
            if not length
        ]

    def _segment_counts(self) -> np.ndarray:
        lengths = np.array(self.lengths, dtype=np.int64)
        after_first = -(-np.maximum(lengths - self.samples, 0) // self.samples)
        return np.where(lengths > 0, after_first + 1, 0)

    # ------------------------------------------------------------------------------- one at a time

    def read_raw(self, i: int) -> Int16[np.ndarray, "1 T"]:
        """The whole file at `rate`; silence fills up the last frame of a spectrum."""
        sound = self._sound(i)
        return followed_by_silence(sound, self.frontend.ceil(len(sound)))

    def coded_raw(self, i: int, whole: bool) -> tuple[Int16[np.ndarray, "1 T"], tuple[int]]:
        raw = self.read_raw(i) if whole else self.load_raw(i)
        return raw, (len(self._sound(i if whole else self.item_of(i))),)

    def codable(self, raw: Int16[np.ndarray, "1 T"]) -> Shaped[Tensor, "1 ..."]:
        return torch.from_numpy(raw) if self.frontend.stored else super().codable(raw)

    def load_raw(
        self, i: int, augment_noise: Float[np.ndarray, "2"] | None = None
    ) -> Int16[np.ndarray, "1 T"]:
        item, start = self.segment(i)
        if augment_noise is None:
            samples = self._tile(item, start)
        else:
            samples = self._random_segment(item, float(augment_noise[0]))
        return followed_by_silence(samples, self.samples)

    def _tile(self, item: int, start: int) -> np.ndarray:
        """A segment from `start` on, which must be there: a truncated file gives no silent ones."""
        sound = self._sound(item)
        segment = sound[start : start + self.samples]
        promised = min(self.samples, self.lengths[item] - start)
        if len(segment) < promised - _ROUNDING:
            ends = len(sound) / self.rate
            header = self.lengths[item] / self.rate
            reason = f"it ends after {ends:.3g} s, and its header says {header:.3g} s"
            raise BrokenItem(self.keys[item], reason)
        return segment

    def _random_segment(self, item: int, position: float) -> np.ndarray:
        """A segment that begins at a position in [0, 1) of where it can; of what can be read."""
        if not self.in_memory and self.config.loudness is None:
            segment = self._segment_alone(item, position)
            if segment is not None:
                return segment
        sound = self._sound(item)
        start = self._random_start(position, len(sound))
        return sound[start : start + self.samples]

    def _random_start(self, position: float, length: int) -> int:
        return int(position * (max(0, length - self.samples) + 1))

    def _segment_alone(self, item: int, position: float) -> np.ndarray | None:
        """A segment without the rest of its file; None where that cannot be had."""
        start = self._random_start(position, self.lengths[item])
        promised = min(self.samples, self.lengths[item] - start)
        try:
            with self.index.open(item) as file:
                segment = decode_segment(file, self.rate, start, self.samples)
        except Exception:  # `_sound` reads the whole file, and says what is wrong with it
            return None
        return segment if len(segment) >= promised - _ROUNDING else None

    def _sound(self, item: int) -> Int16[np.ndarray, "T"]:
        """The whole of a file. Segments follow each other in evaluation: the last file is kept."""
        kept = None if self._kept is None else self._kept[item]
        if kept is not None:
            return kept
        thread = threading.get_ident()
        last = self._last.get(thread)
        if last is None or last[0] != item:
            last = (item, self._attempt(item, lambda: self._decode(item)))
            self._last[thread] = last
        return last[1]

    def _decode_or_none(self, item: int) -> np.ndarray | None:
        try:
            return self._attempt(item, lambda: self._decode(item))
        except BrokenItem:
            return None

    # -------------------------------------------------------------------------------------- batches

    def signal(
        self, raw: Int16[Tensor, "B 1 T"], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B 1 ..."]:
        return self.frontend.forward(to_signal(raw, device))

    def picture(self, signal: Float[Tensor, "B 1 ..."]) -> Float[Tensor, "B 1 M N"]:
        return self.frontend.picture(signal)

    def waveform(self, signal: Float[Tensor, "B 1 ..."]) -> Float[Tensor, "B 1 T"]:
        return self.frontend.inverse(signal)

    # ---------------------------------------------------------------------------------------- files

    def left_out(self) -> list[tuple[str, str]]:
        """Broken files, and those that are not used whole, or not as they are."""
        return sorted({**dict(self._remarks.entries()), **dict(super().left_out())}.items())

    def _read_headers(self, progress: Progress | None) -> list[int]:
        """Length of every file in samples at `rate`; 0 where there is nothing to read."""

        def length(item: int) -> int:
            try:
                found = self._attempt(item, lambda: self._length(item))
            except BrokenItem:
                return 0
            self._remarks.add(item, found.remark)
            return found.frames

        lengths = scan(length, len(self.index), progress)
        self._broken |= self._unreadable  # without a header there is no segment to ask for
        return lengths

    def _length(self, item: int) -> Length:
        with self.index.open(item) as file:
            return length_at(file, self.rate)

    def _decode(self, item: int) -> Int16[np.ndarray, "T"]:
        with self.index.open(item) as file:
            sound = decode(file, self.rate, self.config.loudness)
        self._remarks.add(item, sound.remark)
        return sound.samples
