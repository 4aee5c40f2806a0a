"""An open sound file → mono 16-bit samples at a rate: the whole of it, or a segment alone.

Files are decoded and resampled in blocks, so the samples that are kept are what memory they need.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int16

from .sound_files import Length, SoundReader

_FULL_SCALE = 32768  # of 16-bit samples
_HIGHEST_PEAK = 8.0  # of files in [−1, 1]: 18 dB over; others are of another scale
_CLIPPED = 0.001  # share of samples beyond full scale from which on it is said
_FILTER_REACH = 400  # samples of the lower rate, more than soxr's filter reaches


class Sound(NamedTuple):
    """Samples of a file, and what of it is missing or changed."""

    samples: Int16[np.ndarray, "T"]
    remark: str | None


def length_at(file: SoundReader, rate: int) -> Length:
    """Samples at `rate` that a file gives. Raises ValueError where these are none."""
    frames, remark = file.length()
    samples = math.ceil(frames * rate / file.rate - 0.5)
    if not samples:
        raise ValueError(f"its {frames} samples at {file.rate} Hz give none at {rate} Hz")
    return Length(samples, remark)


def decode(file: SoundReader, rate: int, loudness: float | None) -> Sound:
    """All samples: channels averaged, resampled, brought to a loudness, clipped.

    Args:
        file: where to read
        rate: samples per second of what is returned
        loudness: root mean square in dB below full scale; None leaves it, and silence stays

    Raises ValueError, or what the decoder raises, where the file is broken; ValueError for samples
    of another scale than [−1, 1], where no loudness sets it.
    """
    blocks = _resampled(file.blocks(), file.rate, rate)
    if loudness is not None:
        blocks = _with_loudness(list(blocks), loudness)
    kept = []
    beyond = 0
    for block in blocks:
        beyond += int((np.abs(block) > 1).sum())
        if loudness is None:
            _check_scale(block)
        kept.append(_to_16_bits(block))
    samples = np.concatenate(kept) if kept else np.zeros(0, np.int16)
    remarks = [file.remark(file.position)]
    if beyond > _CLIPPED * len(samples):
        remarks.append(f"{beyond / len(samples):.2g} of its samples are clipped at full scale")
    return Sound(samples, "; ".join(remark for remark in remarks if remark) or None)


def decode_segment(file: SoundReader, rate: int, start: int, count: int) -> Int16[np.ndarray, "T"]:
    """`decode(…)[start : start + count]` within rounding, from as much of the file as that takes.

    What is read includes all that resampling sees around the segment, and begins where samples of
    both rates coincide.
    """
    common = math.gcd(file.rate, rate)
    file_step = file.rate // common
    step = rate // common
    margin = max(rate // 20, math.ceil(_FILTER_REACH * max(1.0, rate / file.rate)))
    first = max(0, start - margin) // step * step  # at `rate`; a whole number of steps
    frame = first // step * file_step
    frames = math.ceil((start + count + margin - first) * file_step / step)
    blocks = _resampled(file.blocks(frame, frame + frames), file.rate, rate)
    samples = np.concatenate([*blocks, np.zeros(0, np.float32)])
    _check_scale(samples)
    return _to_16_bits(samples[start - first : start - first + count])


def _resampled(
    blocks: Iterable[Float[np.ndarray, "T"]], file_rate: int, rate: int
) -> Iterator[Float[np.ndarray, "T2"]]:
    """The blocks of the whole sound at another rate: what `soxr.resample` gives of all at once."""
    import soxr

    if file_rate == rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(file_rate, rate, num_channels=1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _with_loudness(blocks: list[np.ndarray], loudness: float) -> Iterator[np.ndarray]:
    power = sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks)
    count = sum(len(block) for block in blocks)
    factor = 10 ** (loudness / 20) / math.sqrt(power / count) if power else 1.0
    for block in blocks:
        yield block * factor


def _check_scale(samples: Float[np.ndarray, "T"]) -> None:
    peak = float(np.abs(samples).max(initial=0))
    if peak > _HIGHEST_PEAK:
        raise ValueError(
            f"its samples reach {peak:,.0f} where full scale is 1; "
            "rescale it, or set data.loudness, which does"
        )


def _to_16_bits(samples: Float[np.ndarray, "T"]) -> Int16[np.ndarray, "T"]:
    values = (samples * _FULL_SCALE).round()
    return values.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def followed_by_silence(
    samples: Int16[np.ndarray, "T"], length: int
) -> Int16[np.ndarray, "1 length"]:
    padded = np.zeros((1, length), np.int16)
    padded[0, : len(samples)] = samples
    return padded
