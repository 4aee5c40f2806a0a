"""An open audio file → mono 16-bit samples at a rate: the whole of it, or a segment alone."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

_FULL_SCALE = 32768  # of 16-bit samples
_FILTER_REACH = 400  # samples of the lower rate, more than soxr's filter reaches


def header_length(file: Any, rate: int) -> int:
    """Samples at `rate` that the header promises. Raises ValueError where there are none."""
    if not file.frames:
        raise ValueError("it holds no sample")
    return max(1, math.ceil(file.frames * rate / file.samplerate - 0.5))


def decode(file: Any, rate: int, loudness: float | None) -> Int16[np.ndarray, "T"]:
    """All samples: channels averaged, resampled, brought to a loudness, clipped.

    Args:
        file: an open `soundfile.SoundFile`
        rate: samples per second of what is returned
        loudness: root mean square in dB below full scale; None leaves it, and silence stays

    Raises ValueError, or what the decoder raises, where the file is broken.
    """
    samples = _resample(_read(file, -1), file.samplerate, rate)
    power = float(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0
    if loudness is not None and power > 0:
        samples = samples * (10 ** (loudness / 20) / math.sqrt(power))
    return _to_16_bits(samples)


def decode_segment(file: Any, rate: int, start: int, count: int) -> Int16[np.ndarray, "T"]:
    """`decode(…)[start : start + count]` within rounding, from as much of the file as that takes.

    What is read includes all that resampling sees around the segment, and begins where samples of
    both rates coincide.
    """
    common = math.gcd(file.samplerate, rate)
    file_step = file.samplerate // common
    step = rate // common
    margin = max(rate // 20, math.ceil(_FILTER_REACH * max(1.0, rate / file.samplerate)))
    first = max(0, start - margin) // step * step  # at `rate`; a whole number of steps
    frames = math.ceil((start + count + margin - first) * file_step / step)
    file.seek(first // step * file_step)
    samples = _resample(_read(file, frames), file.samplerate, rate)
    return _to_16_bits(samples[start - first : start - first + count])


def _read(file: Any, frames: int) -> Float[np.ndarray, "T"]:
    samples = file.read(frames, dtype="float32", always_2d=True).mean(1)
    if not len(samples):
        raise ValueError("it holds no sample")
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are not finite")
    return samples


def _resample(
    samples: Float[np.ndarray, "T"], file_rate: int, rate: int
) -> Float[np.ndarray, "T2"]:
    import soxr

    if file_rate == rate:
        return samples
    return soxr.resample(samples, file_rate, rate, quality="HQ")


def _to_16_bits(samples: Float[np.ndarray, "T"]) -> Int16[np.ndarray, "T"]:
    values = (samples * _FULL_SCALE).round()
    return values.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
