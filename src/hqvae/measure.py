"""A model and signals → distortion, rate, and use and ablation of every layer; and what these numbers mean in words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hqvae.data import Form
from hqvae.metrics import SSIM, AudioQuality, Distortion, Mean, Metric, Perceptual, Usage
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.quantize import LOG_S2_RANGE, Noise

COLLAPSED = 0.1  # a layer whose hard perplexity is below this share of K
CARRIES_NOTHING = 0.05  # decibels: a layer whose shuffled codes cost less
UNIFORM = 0.95  # a posterior whose entropy is above this share of log K
_BLOCK = 64  # signals among which codes are shuffled, at least where there are so many


@dataclass(frozen=True)
class LayerMeasures:
    """One quantization layer over a split.

    perplexity, used: of the nearest codes over the whole split
    entropy_bits: of the posterior P̂, mean per position
    rmse_after, psnr_after: when decoding from this layer and those before it
    rmse_shuffled, psnr_loss: with this layer's codes shuffled over blocks of 64 signals or more, all other layers' as they are
    """

    level: int
    layer: int
    stride: int
    positions: int
    codebook_size: int
    perplexity: float
    used: int
    entropy_bits: float
    s2: float
    rmse_after: float
    psnr_after: float
    rmse_shuffled: float
    psnr_loss: float

    @property
    def name(self) -> str:
        return f"level {self.level} layer {self.layer}"

    def choices(self, images: int) -> int:
        """How many codes so many signals could choose at most: few positions cannot show a large codebook in use."""
        return min(self.codebook_size, self.positions * images)


@dataclass(frozen=True)
class Measures:
    """A model over a split. RMSE in the unit of the signal's form; PSNR and SSIM are means over signals; rate per pixel (sample point).

    bits_per_dim: −ELBO by true draws, per stored sample (8-bit for images), with σ² fitted to the split and uniform dequantization;
        of continuous signals the density's, per unit of the form
    bits_per_dim_nearest: the same with the nearest code for certain in place of the posterior's draws, as files would have it
    si_sdr, stft_distance, mel_distance, log_mel_rmse: of waveforms (`AudioQuality`)
    lpips, rfid: where their networks' weights are at hand (`Perceptual.from_cache`)
    loss: the training objective in evaluation mode, whose fall a plateau schedule watches
    shuffled_images: how many images the ablation used
    """

    images: int
    rmse: float
    psnr: float
    ssim: float | None
    bits_per_dim: float
    bits_per_dim_nearest: float
    bits_per_pixel: float
    sigma2: float
    loss: float
    shuffled_images: int
    layers: tuple[LayerMeasures, ...]
    lpips: float | None = None
    rfid: float | None = None
    bits_per_second: float | None = None
    si_sdr: float | None = None
    stft_distance: float | None = None
    mel_distance: float | None = None
    log_mel_rmse: float | None = None


class _LayerSums:
    def __init__(self, codebook_size: int, scale: float):
        self.usage, self.entropy, self.s2, self.positions = Usage(codebook_size), Mean(), 0.0, 0
        self.after, self.shuffled, self.kept = Distortion(scale), Distortion(scale), Distortion(scale)


@torch.no_grad()
def measure(
    model: HQVAE, batches: Iterable[Tensor], unit: SignalUnit, shuffle_images: int = 1000, seed: int = 0, perceptual: Perceptual | None = None
) -> Measures:
    """Measure a model (put into evaluation mode) on batches of signals; sums over the processes of a distributed run.

    `shuffle_images` limits the ablation, which costs one decoding per layer; everything else is over all images. `perceptual`, for
    one process only, measures with networks of its own. Nothing depends on how the signals are cut into batches, beyond rounding.
    """
    model.eval()
    layers = [_LayerSums(layer.quantizer.codebook_size, form.scale) for layer in model.layers]
    distortion, latent, drawn, terms, seen = Distortion(form.scale), Mean(), Mean(), Mean(), 0
    metrics: list[Metric] = [distortion, SSIM(), *([perceptual] if perceptual is not None else [])]
    if model.config.axes == 1 and form.per_second:
        metrics.append(AudioQuality(round(form.per_second)))
    views = [Mean() for _ in model.config.spectral.weights]
    ablation, noise = _Ablation(model, layers, seed, shuffle_images), Noise.of(seed, 0)
    for x in batches:
        features = model.features(x)
        out = model(x, features=features)
        x_hat = out.reconstruction.float().clamp(-1, 1)
        error = _error(x, x_hat)
        for metric in metrics:
            metric.add(x, x_hat)
        for total, apart in zip(views, out.views.T):
            total.add(apart)
        terms.add(out.fit.sum(1) - out.entropy.sum(1))
        bound = model.bound(x, noise._replace(samples=seen), features)
        latent.add(bound.latent)
        drawn.add(bound.distortion / out.size)
        for index, sums in enumerate(layers):
            _add_layer(sums, model, x, out.codes, index, error)
            sums.entropy.add(out.entropy[:, index] / out.codes[index][0].numel())
            sums.s2 = float(out.variance[index])
        ablation.add(x, out.codes, error)
        seen += len(x)
    ablation.finish()
    if not seen:
        raise ValueError("no signal to measure on")
    sigma2, points = drawn.value() + unit.step**2 / 12, x[0, 0].numel()
    rate = out.capacity / math.log(2) / points
    costs = [model.likelihood(torch.tensor([mean.value() * out.size]), out.size) for mean in (distortion.mse, *views)]

    def bits(mean_square: float, nats: float) -> float:
        noise = out.size / 2 * math.log(2 * math.pi * math.e * (mean_square + unit.step**2 / 12))
        return (noise + nats) / (out.size * math.log(2)) + math.log2(unit.per_unit)

    figures: dict[str, Any] = {"ssim": None}
    for metric in metrics:
        figures |= metric.values()
    mse = figures.pop("mse")
    return Measures(
        images=distortion.global_count(),
        bits_per_dim=bits(drawn.value(), latent.value()), bits_per_dim_nearest=bits(mse, out.capacity),
        bits_per_pixel=rate, bits_per_second=rate * form.per_second if form.per_second else None, sigma2=sigma2,
        loss=sum(weight * float(cost) for weight, cost in zip((1.0, *model.config.spectral.weights), costs)) + terms.value(),
        shuffled_images=layers[0].shuffled.global_count(),
        layers=tuple(_layer_measures(model, index, sums) for index, sums in enumerate(layers)),
        **figures,
    )  # fmt: skip


def _add_layer(sums: _LayerSums, model: HQVAE, x: Tensor, codes: Sequence[Tensor], index: int, error: Tensor) -> None:
    sums.usage.add(codes[index])
    sums.positions = codes[index][0].numel()
    last = index == len(codes) - 1
    after = error if last else _error(x, model.decode(codes, layers=index + 1, size=x.shape[2:]))
    sums.after.add_mse(after)


class _Ablation:
    """What is lost when a layer's codes are shuffled over a block of signals; blocks do not depend on the batches that come in."""

    def __init__(self, model: HQVAE, layers: Sequence[_LayerSums], seed: int, limit: int):
        self.model, self.layers, self.seed, self.room = model, layers, seed, limit
        self.waiting: list[Tensor] = []  # signals, their errors, and the codes of every layer
        self.at_once, self.blocks = 1, 0

    def add(self, x: Tensor, codes: Sequence[Tensor], error: Tensor) -> None:
        """A batch, until there have been `limit` signals."""
        more = [part[: self.room] for part in (x, error, *codes)]
        self.room, self.at_once = self.room - len(more[0]), max(self.at_once, len(x))
        self.waiting = [torch.cat(pair) for pair in zip(self.waiting, more)] if self.waiting else more
        while len(self.waiting[0]) >= 2 * _BLOCK:  # so that the last block is no small one
            self._shuffle([part[:_BLOCK] for part in self.waiting])
            self.waiting = [part[_BLOCK:] for part in self.waiting]

    def finish(self) -> None:
        if self.waiting and len(self.waiting[0]):
            self._shuffle(self.waiting)

    def _shuffle(self, block: Sequence[Tensor]) -> None:
        x, error, *codes = block
        noise = Noise.of(self.seed, self.blocks)
        cut = [slice(start, start + self.at_once) for start in range(0, len(x), self.at_once)]  # so many at once as fitted before
        self.blocks += 1
        for index, sums in enumerate(self.layers):
            flat, shuffled = codes[index].flatten(), list(codes)
            order = torch.randperm(len(flat), generator=noise.fold(Stream.SHUFFLE).fold(index).generator()).to(flat.device)
            shuffled[index] = flat[order].view_as(codes[index])
            decoded = [self.model.decode([layer[part] for layer in shuffled], size=x.shape[2:]) for part in cut]
            worse = _error(x, torch.cat(decoded))
            sums.shuffled.add_mse(worse)
            sums.kept.add_mse(error)


def _layer_measures(model: HQVAE, index: int, sums: _LayerSums) -> LayerMeasures:
    layer, after, shuffled = model.layers[index], sums.after.values(), sums.shuffled.values()
    return LayerMeasures(
        level=layer.level, layer=sum(other.level == layer.level for other in model.layers[:index]),
        stride=model.config.levels[layer.level].stride, positions=sums.positions,
        codebook_size=layer.quantizer.codebook_size,
        perplexity=sums.usage.perplexity(), used=sums.usage.used(),
        entropy_bits=sums.entropy.value() / math.log(2), s2=sums.s2,
        rmse_after=after["rmse"], psnr_after=after["psnr"],
        rmse_shuffled=shuffled["rmse"], psnr_loss=sums.kept.values()["psnr"] - shuffled["psnr"],
    )  # fmt: skip


def _error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of each signal, after clamping the reconstruction to the range that exists."""
    return (x - x_hat.float().clamp(-1, 1)).square().flatten(1).mean(1)


_AGAINST_COLLAPSE = {
    "stochastic": "train longer, start after the autoencoder (train.unquantized=0.1) or softer (a lower model.quantizer.start.sharpness), "
    "or harden later (a lower train.hard)",
    "ema": "model.quantizer.restart=true puts unused codes back, and model.quantizer.beta=0.025 with train.beta2=0.95 keeps more in use; "
    "or a stochastic preset (sqvae, rsqvae)",
    "other": "a smaller codebook_size, or a stochastic preset (sqvae, rsqvae)",
}


@dataclass(frozen=True)
class Finding:
    """Something that a person should know about a layer: what is the case, and what to change."""

    kind: str
    layer: str
    what: str
    advice: str


def findings(measures: Measures, config: HQVAEConfig) -> list[Finding]:
    """What is wrong with the layers, worst first; empty when every layer is used and carries something.

    `config` is that of the run: of a system that has hardened, what it began as.
    """
    found, stochastic = [], config.quantizer.kind == "stochastic"
    cure = "train longer" if config.progressive else "model.progressive=1 makes coarse layers earn their place"
    for layer in measures.layers:
        share, capacity = layer.perplexity / layer.choices(measures.images), math.log2(layer.codebook_size)
        if layer.psnr_loss < CARRIES_NOTHING:
            found.append(Finding(
                "carries nothing", layer.name,
                f"its codes can be shuffled and only {max(0.0, layer.psnr_loss):.2f} dB are lost",
                f"{cure}; or drop the layer and spend its bits elsewhere",
            ))  # fmt: skip
        if share < COLLAPSED:
            found.append(Finding(
                "collapsed", layer.name,
                f"its choices are worth {layer.perplexity:.0f} of {layer.choices(measures.images)} codes ({layer.used} are ever chosen)",
                _AGAINST_COLLAPSE[config.quantizer.kind],
            ))  # fmt: skip
        if stochastic and layer.s2 > 0 and abs(math.log(layer.s2)) > 0.99 * LOG_S2_RANGE:
            found.append(Finding(
                "variance at its bound", layer.name,
                f"s² = {layer.s2:.3g} has run to the end of what float32 bears, and learns no more",
                "a lower train.lr_log_s2 or train.lr, from the start",
            ))  # fmt: skip
        if stochastic and layer.entropy_bits > UNIFORM * capacity:
            found.append(Finding(
                "posterior uniform", layer.name,
                f"P̂ has {layer.entropy_bits:.1f} of {capacity:.1f} bits of entropy: it chooses almost at random (s² = {layer.s2:.3g})",
                "train longer, or start harder: a higher model.quantizer.start.sharpness",
            ))  # fmt: skip
    return sorted(
        found, key=lambda finding: ("carries nothing", "collapsed", "posterior uniform", "variance at its bound").index(finding.kind)
    )
