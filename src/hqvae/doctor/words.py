"""The diagnosis in words: the whole, every layer, every problem with its remedy."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from hqvae.config import Config
from hqvae.data import Modality
from hqvae.measure import LayerMeasures, Measures

from .findings import COLLAPSED, INACTIVE_DB, LONGER, SILENT, Finding, drop

WEAK = 0.1  # a layer that gives less per bit than this share of what the median layer gives


def diagnose(
    measures: Measures, found: Sequence[Finding], config: Config, split: str = "test"
) -> list[str]:
    """Paragraphs, one thought each: the whole, every layer, every problem with its remedy.

    `split` is what was measured.
    """
    paragraphs = [
        f"{split} split, {measures.items} {_amount(measures, config)}: "
        f"{_quality(measures)}, −ELBO {measures.bits_per_dim:.3f} bits per dimension."
    ]
    paragraphs += _against_silence(measures)
    paragraphs += [_describe(index, measures) for index in range(len(measures.layers))]
    paragraphs += [
        f"{'' if finding.kind == SILENT else 'PROBLEM '}{finding.layer} {finding.kind}: "
        f"{finding.what}. TRY: {finding.advice}."
        for finding in found
    ]
    weak = _weak(measures, config)
    hints = (*_idle_rate(measures), *_bad_prefixes(measures, config), *_soft(measures, config))
    paragraphs += [*weak, *hints]
    if not found:
        healthy = f"No layer has collapsed (perplexity below {COLLAPSED:.0%} of K)"
        if not weak:
            healthy += f", and shuffling any of them costs {INACTIVE_DB:g} dB or more"
        paragraphs.append(f"{healthy}.")
    return paragraphs


def _against_silence(measures: Measures) -> list[str]:
    """PSNR is of full scale: where sounds are faint, silence has a high one too."""
    ratio = measures.figures.get("si_sdr")
    if ratio is None:
        return []
    verdict = "; below 0 the error is louder than the sound, whatever PSNR says" * (ratio < 0)
    return [f"SI-SDR {ratio:.2f} dB{verdict}."]


def _amount(measures: Measures, config: Config) -> str:
    modality: Modality[Any] = config.data.modality
    if measures.bits_per_second is not None:
        return f"segments of audio at {measures.bits_per_second:.0f} bits per second"
    point = modality.unit(config.data).point
    return f"{modality.examples(config.data)} at {measures.bits_per_point:.3f} bits per {point}"


def _quality(measures: Measures) -> str:
    explained = measures.figures.get("explained_variance")
    if explained is None:
        return f"PSNR {measures.psnr:.2f} dB"
    return f"{explained:.1%} of the variance is explained, SNR {measures.psnr:.2f} dB"


def _bits(layer: LayerMeasures) -> float:
    """Of one signal, before entropy coding."""
    return layer.positions * math.log2(layer.codebook_size)


def _per_kilobit(layer: LayerMeasures) -> float:
    """dB that are lost where the layer's codes are shuffled, per 1,000 of its bits."""
    return layer.ablation_drop_db / _bits(layer) * 1000


def _per_bits(layer: LayerMeasures) -> str:
    if layer.positions == 1:
        return f"{_decibels(_per_kilobit(layer) / 1000)} for each of its bits"
    return f"{_decibels(_per_kilobit(layer))} for every 1,000 of its bits"


def _describe(index: int, measures: Measures) -> str:
    layer = measures.layers[index]
    limit = math.log2(layer.codebook_size)
    bits = math.log2(max(1.0, layer.perplexity))
    if index:
        gain = layer.psnr_cumulative - measures.layers[index - 1].psnr_cumulative
        adds = f"adds {_decibels(gain)} dB to the layers before it"
    else:
        adds = f"alone gives {layer.psnr_cumulative:.2f} dB"
    total = sum(map(_bits, measures.layers))
    return (
        f"{layer.name} (stride {layer.stride}): {_bits(layer):,.0f} of {total:,.0f} bits; its "
        f"codes are {bits:.2f} of {limit:.2f} bits per position "
        f"({layer.used} of {layer.codebook_size} codes used); it {adds}; with its codes shuffled, "
        f"{_decibels(layer.ablation_drop_db)} dB are lost, {_per_bits(layer)}."
    )


def _weak(measures: Measures, config: Config) -> list[str]:
    """Layers that carry something, and far too little for their bits."""
    usual = median(map(_per_kilobit, measures.layers))
    total = sum(map(_bits, measures.layers))
    return [
        f"{layer.name} takes {_bits(layer):,.0f} of {total:,.0f} bits "
        f"({_bits(layer) / total:.0%}) for {_decibels(layer.ablation_drop_db)} dB. "
        f"TRY: {LONGER}; or {drop(layer, config)}."
        for layer in measures.layers
        if layer.ablation_drop_db >= INACTIVE_DB and _per_kilobit(layer) < WEAK * usual
    ]


def _decibels(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no −0.00


def _idle_rate(measures: Measures) -> list[str]:
    idle = sum(
        layer.positions
        * math.log2(layer.reachable_codes(measures.items) / max(1.0, layer.perplexity))
        for layer in measures.layers
    )
    total = sum(layer.positions * math.log2(layer.codebook_size) for layer in measures.layers)
    if idle <= 0.25 * total:
        return []
    return [
        f"{idle / total:.0%} of the rate is idle: codes are used unevenly, so a smaller codebook "
        "would cost little, and an entropy coder would save that share."
    ]


def _bad_prefixes(measures: Measures, config: Config) -> list[str]:
    hints = []
    for coarse, fine in pairwise(measures.layers):
        drop = coarse.psnr_cumulative - fine.psnr_cumulative
        if drop > 0.05:
            cure = "The decoder never saw that prefix. TRY: model.progressive=1."
            if config.model.progressive or fine is measures.layers[-1]:
                cure = f"TRY: {LONGER}."
            hints.append(
                f"decoding with {fine.name} is {drop:.2f} dB worse than without it. {cure}"
            )
    return hints


def _soft(measures: Measures, config: Config) -> list[str]:
    layers = measures.layers
    if all(layer.entropy_bits <= 0.5 * math.log2(layer.codebook_size) for layer in layers):
        return []
    return [
        "the posterior is still soft (over half of its bits are noise), so nearest codes at test "
        "time differ from training's samples. TRY: nearest codes late in training "
        "(phases.nearest_fraction=0.75), or a lower phases.temperature.end."
    ]
