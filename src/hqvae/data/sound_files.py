"""A sound file, read straight on: its real length, and mono samples in blocks."""

import os
import re
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hqvae.errors import InputError

from .ogg import last_page

_NAMES = """wav wave bwf rf64 w64 aif aiff aifc au snd caf flac ogg oga opus mp1 mp2 mp3
    voc sph nist avr paf pvf sds sf svx 8svx wve xi"""
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Endings of files of sound that libsndfile reads; not those that mostly hold something else."""
RATES = (100, 10_000_000)
"""Samples per second that a header may say. Outside of these it is taken for damaged."""
SHORTEST = 0.001
"""Seconds of the shortest file that counts; of shorter ones a segment would be all silence."""

_BLOCK = 2**18  # values read at a time, of all channels together
_UNKNOWN = 2**62  # libsndfile gives lengths above this where the header says none
_EXACT = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
_ONE_BY_ONE = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # encodings of one sample at a time
_COMPRESSED = ("VORBIS", "OPUS", "MPEG")
_RUN_UP = 2**17  # frames after which such a decoder gives what it gives from the beginning
# What libsndfile notes of WAV, AIFF and AU files that are shorter than their headers say.
_SHOULD_BE = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")


class Length(NamedTuple):
    """Frames that can be read, and why they are not all, where they are not."""

    frames: int
    remark: str | None


class SoundReader:
    """An open file of any format of libsndfile; nothing but the header is read yet.

    Args:
        file: a path, whose name may be any bytes, or the file's bytes

    Raises InputError without soundfile or soxr, and ValueError where the header is broken, or says
    a rate outside of `RATES`.

    >>> import soundfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/a.wav", np.zeros((300, 2)), 8000)
    ...     with SoundReader(Path(folder, "a.wav")) as file:
    ...         file.rate, file.length().frames, [len(block) for block in file.blocks()]
    (8000, 300, [300])
    """

    def __init__(self, file: Path | BytesIO):
        self._source = file
        self._file = self._open()
        self._fresh = True  # nothing is read yet
        self.rate = int(self._file.samplerate)
        self.position = 0
        """Frames up to where it has been read."""
        lowest, highest = RATES
        if not lowest <= self.rate <= highest:
            self.close()
            raise ValueError(f"its header says {self.rate} Hz; expected {lowest} to {highest:,} Hz")

    def _open(self) -> Any:
        source = self._source
        if isinstance(source, BytesIO):
            source.seek(0)
        # Bytes, since a name on POSIX need not be text.
        plain = os.fsencode(source) if isinstance(source, Path) and os.name == "posix" else source
        soundfile = _soundfile()
        try:
            return _sound_file_class(soundfile)(plain)
        except soundfile.LibsndfileError as error:
            raise ValueError(error.error_string) from error  # without the path

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    # ------------------------------------------------------------------------------------ length

    def length(self) -> Length:
        """What can be read. A header is believed where the last frame that it promises is there.

        Else the file is decoded to its end. Raises ValueError for a file shorter than `SHORTEST`.
        """
        frames = self._file.frames
        if not self._reaches(frames):
            frames = sum(len(block) for block in self.blocks())
        if not frames:
            raise ValueError("it holds no sample")
        if frames < SHORTEST * self.rate:
            raise ValueError(
                f"it lasts {frames / self.rate * 1000:.2g} ms; "
                f"the shortest that counts is {SHORTEST * 1000:g} ms"
            )
        return Length(frames, self.remark(frames))

    def remark(self, read: int) -> str | None:
        """Why a file of which so many frames can be read is not read whole, where it is not."""
        ends = read / self.rate
        promised = self._promised()
        if read < promised < _UNKNOWN:
            says = promised / self.rate
            return f"it ends after {ends:.3g} s, and its header says {says:.3g} s"
        if self._file.format != "OGG":
            return None
        last = last_page(self._source)
        if last.of_another_stream:
            return f"it is a chain of Ogg streams, and the first, of {ends:.3g} s, is read"
        return (
            None
            if last.ends_stream
            else (f"it breaks off after {ends:.3g} s: its last page does not end its stream")
        )

    def _promised(self) -> int:
        """Frames that the header promises; libsndfile has taken cut files for shorter ones."""
        cut = _SHOULD_BE.search(self._file.extra_info)
        if cut is None:
            return int(self._file.frames)
        said, there = map(int, cut.groups())
        # Of what is written to a pipe the header says as much as it can.
        return self._file.frames * said // there if there < said < 2**31 - 2**16 else 0

    def _reaches(self, frames: int) -> bool:
        """Whether there is a last frame of so many."""
        if not self._file.can_seek:
            return True  # formats whose length follows from the size of the file
        import soundfile

        if not frames:
            return True
        self._fresh = False
        try:
            self._file.seek(frames - 1)
            return len(self._file.read(1, always_2d=True)) == 1
        except soundfile.SoundFileError:
            return False

    # ----------------------------------------------------------------------------------- samples

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float[np.ndarray, "T"]]:
        """Frames from `start` to `stop`, all channels averaged; what a whole reading gives there.

        A file that is damaged on the way ends there. Raises ValueError for samples that are not
        finite, and what soundfile raises where nothing at all can be read.
        """
        if not self._fresh:  # decoders that have sought round otherwise, or refuse to go on
            self.close()
            self._file = self._open()
        self._fresh = False
        self.position = self._seek(start)
        channels = self._file.channels
        buffer = np.empty((max(1, _BLOCK // channels), channels), np.float32)
        while stop is None or self.position < stop:
            left = len(buffer) if stop is None else stop - self.position
            count = self._read(buffer[:left])
            if not count:
                return
            samples = buffer[max(0, start - self.position) : count].mean(1)
            self.position += count
            if not np.isfinite(samples).all():
                raise ValueError("it holds samples that are not finite")
            if len(samples):
                yield samples

    def _read(self, buffer: np.ndarray) -> int:
        """Frames that were read into the buffer; 0 at the end."""
        import soundfile

        try:
            return len(self._file.read(out=buffer))
        except soundfile.SoundFileError:
            if not self._file.can_seek:
                raise
            count = int(self._file.tell()) - self.position  # what came before the damage
            if not count and not self.position:
                raise
            return count

    def _seek(self, frame: int) -> int:
        """Go to a frame, or to one before it where decoders need a run-up; where it stands."""
        file = self._file
        target = 0
        if file.format in _EXACT and file.subtype.startswith(_ONE_BY_ONE):
            target = min(frame, file.frames)
        elif file.subtype.startswith(_COMPRESSED):
            # Ogg's last pages are found at wrong places, so no seek ends there.
            target = max(0, min(frame, file.frames) - _RUN_UP)
        return int(file.seek(target)) if target and file.can_seek else 0


def write_wav(
    file: Path | BytesIO, samples: np.ndarray, rate: int, encoding: str = "PCM_16"
) -> None:
    """Write samples [T] at a rate, floats in [−1, 1] or int16, as a WAV file.

    Raises InputError without soundfile.
    """
    values = samples if samples.dtype == np.int16 else samples.astype(np.float32)
    _soundfile().write(file, values, rate, subtype=encoding, format="WAV")


def _soundfile() -> Any:
    try:
        import soundfile
        import soxr  # noqa: F401  # now, and not as an error of every single file
    except ImportError as error:
        raise InputError("audio needs soundfile and soxr: pip install 'hqvae[audio]'") from error
    return soundfile


@cache
def _sound_file_class(soundfile: Any) -> Any:
    """`soundfile.SoundFile` without its seek after every read.

    It seeks to where it stands, and decoders of MP3 answer that with other samples.
    """

    class StraightSoundFile(soundfile.SoundFile):  # type: ignore[misc]
        @property
        def can_seek(self) -> bool:
            return bool(super().seekable())

        def seekable(self) -> bool:
            return False

    return StraightSoundFile
