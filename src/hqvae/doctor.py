"""The measures of a run as a diagnosis in words: which layers carry what, what collapsed, what to change."""

import math
from itertools import pairwise

from hqvae.measure import CARRIES_NOTHING, COLLAPSED, Finding, LayerMeasures, Measures
from hqvae.model import HQVAEConfig


def diagnose(measures: Measures, found: list[Finding], config: HQVAEConfig) -> list[str]:
    """Paragraphs, one thought each: the whole, every layer, every problem with its remedy, and what to look at next."""
    said = [f"{measures.images} {_amount(measures)}: PSNR {measures.psnr:.2f} dB, −ELBO {measures.bits_per_dim:.3f} bits per dimension."]
    said += [_layer(layer, measures) for layer in measures.layers]
    said += [f"PROBLEM {finding.layer} {finding.kind}: {finding.what}. TRY: {finding.advice}." for finding in found]
    said += _hints(measures, config)
    if not found:
        said.append(
            f"No layer has collapsed (perplexity below {COLLAPSED:.0%} of K) and every layer carries something "
            f"(shuffling it costs {CARRIES_NOTHING:g} dB or more)."
        )
    return said


def _amount(measures: Measures) -> str:
    if measures.bits_per_second is not None:
        return f"segments of sound at {measures.bits_per_second:.0f} bits per second"
    return f"images at {measures.bits_per_pixel:.3f} bits per pixel"


def _layer(layer: LayerMeasures, measures: Measures) -> str:
    ideal, real = math.log2(layer.codebook_size), math.log2(max(1.0, layer.perplexity))
    before = [other.psnr_after for other in measures.layers]
    index = measures.layers.index(layer)
    gain = layer.psnr_after - before[index - 1] if index else None
    adds = f"adds {_plain(gain)} dB to the layers before it" if gain is not None else f"alone gives {layer.psnr_after:.2f} dB"
    return (
        f"{layer.name} (stride {layer.stride}): its choices are worth {real:.2f} of {ideal:.2f} bits per position "
        f"({layer.used} of {layer.codebook_size} codes used); it {adds}; with its codes shuffled, {_plain(layer.psnr_loss)} dB are lost."
    )


def _plain(decibels: float) -> str:
    return f"{round(decibels, 2) + 0.0:.2f}"  # no −0.00


def _hints(measures: Measures, config: HQVAEConfig) -> list[str]:
    """What is no problem yet, but worth a look."""
    hints = []
    idle = sum(
        layer.positions * (math.log2(layer.choices(measures.images)) - math.log2(max(1.0, layer.perplexity))) for layer in measures.layers
    )
    total = sum(layer.positions * math.log2(layer.codebook_size) for layer in measures.layers)
    if idle > 0.25 * total:
        hints.append(
            f"{idle / total:.0%} of the rate is idle: choices are uneven, so a smaller codebook would cost little, "
            "and an entropy coder would save that share."
        )
    for coarse, fine in pairwise(measures.layers):
        if fine.psnr_after < coarse.psnr_after - 0.05:
            hints.append(
                f"decoding with {fine.name} is {coarse.psnr_after - fine.psnr_after:.2f} dB worse than without it. "
                + ("TRY: train longer." if config.progressive else "The decoder never saw that prefix. TRY: model.progressive=1.")
            )
    if config.quantizer.kind == "stochastic" and any(
        layer.entropy_bits > 0.5 * math.log2(layer.codebook_size) for layer in measures.layers
    ):
        hints.append(
            "the posterior is still soft (over half of its bits are noise), so nearest codes at test time differ from training's samples. "
            "TRY: "
            + ("" if config.spectral.weight else "nearest codes late in training (train.hard=0.75), or ")
            + "a lower train.temperature.end."
        )
    return hints
