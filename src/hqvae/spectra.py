"""Short-time spectra of sounds: STFT, mel filters, and back by Griffin and Lim's iteration."""

import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def stft(x: Float[Tensor, "B T"], n_fft: int, hop: int) -> Complex[Tensor, "B F N"]:
    """Spectra at every multiple of `hop`, Hann window, the sound mirrored beyond its ends.

    N = ⌊T/hop⌋ frames, F = n_fft/2 + 1; T must be above n_fft/2. The frame behind the last full
    hop, which libraries add, is left out: N·hop samples give N frames.
    """
    window = torch.hann_window(n_fft, device=x.device)
    return torch.stft(
        x.float(), n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )[..., : x.shape[-1] // hop]


def _to_mel(hertz: float) -> float:
    """Slaney's scale: 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _to_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


@lru_cache(maxsize=8)
def mel_filters(rate: int, n_fft: int, mels: int, low: float, high: float) -> Float[Tensor, "M F"]:
    """Triangles between neighbouring mel frequencies, each of area one over the axis in hertz."""
    corners = _to_hertz(torch.linspace(_to_mel(low), _to_mel(high), mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)).float()


def log_spectrum(
    x: Float[Tensor, "B T"], n_fft: int, hop: int, floor: float = 1e-5
) -> Float[Tensor, "B F N"]:
    """Natural log of the STFT's magnitudes, of those above `floor`."""
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
    """Natural log of the mel bands' magnitudes, of those above `floor`."""
    filters = mel_filters(rate, n_fft, mels, low, high).to(x.device)
    return torch.einsum("mf,bfn->bmn", filters, stft(x, n_fft, hop).abs()).clamp(min=floor).log()


def mel_setting(rate: int) -> dict[str, Any]:
    """How sounds of a rate are seen where people compare them: 80 mel bands to 8 kHz.

    Windows of 1024 at 22.05 kHz (46 ms), elsewhere of the power of two next to that (1024 at
    16 kHz: 64 ms).
    """
    n_fft = max(16, 2 ** round(math.log2(rate * 1024 / 22050)))
    return {
        "n_fft": n_fft,
        "hop": n_fft // 4,
        "mels": min(80, n_fft // 8),
        "low": 0.0,
        "high": min(8000.0, rate / 2),
    }


def unmel(
    mel: Float[Tensor, "B M N"], filters: Float[Tensor, "M F"], steps: int = 50
) -> Float[Tensor, "B F N"]:
    """Magnitudes ≥ 0 whose bands are nearly these, by Richardson and Lucy's iteration.

    Bins that no band sees are 0.
    """
    seen = filters.sum(0)[:, None]
    spectrum = torch.einsum("mf,bmn->bfn", filters, mel) / seen.clamp(min=1e-12)
    for _ in range(steps):
        ratio = mel / torch.einsum("mf,bfn->bmn", filters, spectrum).clamp(min=1e-12)
        spectrum = spectrum * torch.einsum("mf,bmn->bfn", filters, ratio) / seen.clamp(min=1e-12)
    return spectrum


def griffin_lim(
    magnitude: Float[Tensor, "B F N"], n_fft: int, hop: int, steps: int = 64, momentum: float = 0.99
) -> Float[Tensor, "B T"]:
    """A sound of N·hop samples whose STFT has nearly these magnitudes.

    Griffin and Lim, 1984; with momentum, Perraudin et al., 2013.

    The first phases are drawn from a fixed seed, so the same magnitudes give the same sound.
    """
    full = torch.cat([magnitude, magnitude[..., -1:]], -1)  # the frame that `stft` leaves out
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(full.shape, generator=generator).to(full.device) * 2 * math.pi
    window, length = torch.hann_window(n_fft, device=full.device), magnitude.shape[-1] * hop
    angles, before = (
        torch.polar(torch.ones_like(full), phase),
        torch.zeros_like(torch.polar(full, phase)),
    )
    for _ in range(steps):
        sound = torch.istft(full * angles, n_fft, hop, window=window, length=length)
        rebuilt = torch.stft(
            sound, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True
        )
        angles = rebuilt - before * momentum / (1 + momentum)
        angles, before = angles / angles.abs().clamp(min=1e-8), rebuilt
    return torch.istft(full * angles, n_fft, hop, window=window, length=length)
