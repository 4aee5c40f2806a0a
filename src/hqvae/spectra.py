"""Short-time spectra of sounds: STFT, mel bands, and back by Griffin and Lim's iteration."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

_FRAMES_AT_ONCE = 2**14


def stft(x: Float[Tensor, "B T"], n_fft: int, hop: int) -> Complex[Tensor, "B F N"]:
    """Spectra at every multiple of `hop`: Hann window, the sound mirrored beyond its ends.

    N = ⌊T/hop⌋ frames of F = n_fft/2 + 1 bins; T must be above n_fft/2. The frame behind the last
    full hop, which libraries add, is left out: N·hop samples give N frames.

    >>> stft(torch.zeros(1, 1024), n_fft=256, hop=64).shape
    torch.Size([1, 129, 16])
    """
    return _centred_stft(x.float(), n_fft, hop)[..., : x.shape[-1] // hop]


def _centred_stft(x: Float[Tensor, "B T"], n_fft: int, hop: int) -> Complex[Tensor, "B F N"]:
    window = torch.hann_window(n_fft, device=x.device)
    return torch.stft(
        x, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )


def _to_mel(hertz: float) -> float:
    """Slaney's scale: 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _to_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


@lru_cache(maxsize=8)
def mel_filters(rate: int, n_fft: int, mels: int, low: float, high: float) -> Float[Tensor, "M F"]:
    """Triangles between neighbouring mel frequencies, each of area one over hertz.

    As `librosa.filters.mel` with its defaults (Slaney's scale and normalisation).
    """
    mel_corners = torch.linspace(_to_mel(low), _to_mel(high), mels + 2, dtype=torch.float64)
    corners = _to_hertz(mel_corners)
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (bins - left) / (middle - left)
    falling = (right - bins) / (right - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)).float()


def log_spectrum(
    x: Float[Tensor, "B T"], n_fft: int, hop: int, floor: float = 1e-5
) -> Float[Tensor, "B F N"]:
    """Natural logarithm of the STFT's magnitudes; those below `floor` count as that."""
    return stft(x, n_fft, hop).abs().clamp(min=floor).log()


def log_mel(
    x: Float[Tensor, "B T"],
    rate: int,
    n_fft: int,
    hop: int,
    mels: int,
    low: float,
    high: float,
    floor: float = 1e-5,
) -> Float[Tensor, "B M N"]:
    """Natural logarithm of the mel bands' magnitudes; those below `floor` count as that.

    Long sounds take memory for their bands, and not for all their bins at once.
    """
    filters = mel_filters(rate, n_fft, mels, low, high).to(x.device)
    bands = [
        torch.einsum("mf,bfn->bmn", filters, part.abs()) for part in _stft_parts(x, n_fft, hop)
    ]
    return torch.cat(bands, -1).clamp(min=floor).log()


def _stft_parts(
    x: Float[Tensor, "B T"], n_fft: int, hop: int
) -> Iterator[Complex[Tensor, "B F _"]]:
    """`stft` in parts of some frames, one after the other."""
    frames = x.shape[-1] // hop
    if frames <= _FRAMES_AT_ONCE:
        yield stft(x, n_fft, hop)
        return
    window = torch.hann_window(n_fft, device=x.device)
    reach = n_fft // 2
    mirrored = torch.nn.functional.pad(x.float(), (reach, reach), mode="reflect")
    for first in range(0, frames, _FRAMES_AT_ONCE):
        last = min(frames, first + _FRAMES_AT_ONCE)
        part = mirrored[..., first * hop : (last - 1) * hop + n_fft]
        yield torch.stft(part, n_fft, hop, window=window, center=False, return_complex=True)


def default_mel(rate: int) -> dict[str, Any]:
    """The usual log-mel settings for sounds of a rate: 80 bands to 8 kHz.

    Windows of 1024 samples at 22.05 kHz (46 ms); at other rates of the nearest power of two to
    that time (1024 at 16 kHz: 64 ms).
    """
    n_fft = max(16, 2 ** round(math.log2(rate * 1024 / 22050)))
    return {
        "n_fft": n_fft,
        "hop": n_fft // 4,
        "mels": min(80, n_fft // 8),
        "low": 0.0,
        "high": min(8000.0, rate / 2),
    }


def mel_to_linear(
    mel: Float[Tensor, "B M N"], filters: Float[Tensor, "M F"], steps: int = 50
) -> Float[Tensor, "B F N"]:
    """Magnitudes ≥ 0 whose bands are nearly these, by Richardson and Lucy's iteration.

    Bins that no band covers are 0.
    """
    coverage = filters.sum(0)[:, None].clamp(min=1e-12)
    spectrum = torch.einsum("mf,bmn->bfn", filters, mel) / coverage
    for _ in range(steps):
        ratio = mel / torch.einsum("mf,bfn->bmn", filters, spectrum).clamp(min=1e-12)
        spectrum = spectrum * torch.einsum("mf,bmn->bfn", filters, ratio) / coverage
    return spectrum


def griffin_lim(
    magnitude: Float[Tensor, "B F N"], n_fft: int, hop: int, steps: int = 64, momentum: float = 0.99
) -> Float[Tensor, "B T"]:
    """A sound of N·hop samples whose STFT has nearly these magnitudes.

    Griffin and Lim (1984), with the momentum of Perraudin et al. (2013). The first phases are
    drawn from a fixed seed, so the same magnitudes give the same sound.
    """
    full = torch.cat([magnitude, magnitude[..., -1:]], -1)  # the frame that `stft` leaves out
    length = magnitude.shape[-1] * hop
    window = torch.hann_window(n_fft, device=full.device)
    generator = torch.Generator().manual_seed(0)
    first_phase = torch.rand(full.shape, generator=generator).to(full.device) * 2 * math.pi
    phase = torch.polar(torch.ones_like(full), first_phase)
    previous = torch.zeros_like(phase)
    for _ in range(steps):
        sound = torch.istft(full * phase, n_fft, hop, window=window, length=length)
        rebuilt = _centred_stft(sound, n_fft, hop)
        accelerated = rebuilt - previous * momentum / (1 + momentum)
        phase = accelerated / accelerated.abs().clamp(min=1e-8)
        previous = rebuilt
    return torch.istft(full * phase, n_fft, hop, window=window, length=length)
