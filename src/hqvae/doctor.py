"""Measures in, findings and advice out: which layers carry what, what collapsed, what to change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hqvae.config import Config
from hqvae.measure import LayerMeasures, Measures
from hqvae.quantize import LOG_S2_RANGE, GumbelSoftmaxConfig

COLLAPSED = 0.1  # a layer whose hard perplexity is below this share of K
INACTIVE_DB = 0.05  # a layer whose shuffled codes cost less
UNIFORM = 0.95  # a posterior whose entropy is above this share of log K

# By how a stochastic quantizer starts: pretraining needs codebooks that start from features.
_SOFTER_START = {
    "kmeans": (
        "train longer, start after the autoencoder (phases.pretrain_fraction=0.1) or softer "
        "(a lower model.quantizer.init.sharpness), or choose nearest codes later "
        "(a lower phases.nearest_fraction)"
    ),
    "random": "train longer, or start from features (model.quantizer.init.kind=kmeans)",
}
_HARDER_START = {
    "kmeans": "train longer, or start harder: a higher model.quantizer.init.sharpness",
    "random": "train longer, or start harder: a lower model.quantizer.init.s2",
}
_AGAINST_COLLAPSE = {
    "deterministic": (
        "model.quantizer.restart=true puts unused codes back, and model.quantizer.beta=0.025 with "
        "train.beta2=0.95 keeps more in use; or a stochastic preset (sqvae, rsqvae)"
    ),
    "external": "a smaller codebook_size, or a stochastic preset (sqvae, rsqvae)",
}


@dataclass(frozen=True)
class Finding:
    """Something that a person should know about a layer: what is the case, what to change."""

    kind: str
    layer: str
    what: str
    advice: str

    def entry(self) -> dict[str, Any]:
        """Plain values, for the log."""
        return {
            "where": self.layer,
            "finding": self.kind,
            "sentence": f"{self.layer} {self.kind}: {self.what}. {self.advice}",
            "what": self.what,
            "advice": self.advice,
        }


def findings(measures: Measures, config: Config) -> list[Finding]:
    """What is wrong with the layers, worst first; empty when all are used and carry something."""
    checks = (_inactive, _collapsed, _uniform, _at_bound)
    found = [check(layer, measures, config) for check in checks for layer in measures.layers]
    return [finding for finding in found if finding is not None]


def _inactive(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    if layer.ablation_drop_db >= INACTIVE_DB:
        return None
    cure = "model.progressive=1 makes coarse layers earn their place"
    if config.model.progressive:
        cure = "train longer"
    return Finding(
        "carries nothing",
        layer.name,
        f"its codes can be shuffled and only {max(0.0, layer.ablation_drop_db):.2f} dB are lost",
        f"{cure}; or drop the layer and spend its bits elsewhere",
    )


def _collapsed(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    reachable = layer.reachable_codes(measures.items)
    if layer.perplexity / reachable >= COLLAPSED:
        return None
    return Finding(
        "collapsed",
        layer.name,
        f"perplexity {layer.perplexity:.0f} of {reachable} codes ({layer.used} are ever chosen)",
        _against_collapse(config),
    )


def _against_collapse(config: Config) -> str:
    quantizer = config.model.quantizer
    if isinstance(quantizer, GumbelSoftmaxConfig):
        return _SOFTER_START[quantizer.init.kind]
    return _AGAINST_COLLAPSE[quantizer.kind]


def _uniform(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    limit = math.log2(layer.codebook_size)
    quantizer = config.model.quantizer
    if layer.entropy_bits <= UNIFORM * limit or not isinstance(quantizer, GumbelSoftmaxConfig):
        return None  # a deterministic choice has no entropy
    return Finding(
        "posterior uniform",
        layer.name,
        f"P̂ has {layer.entropy_bits:.1f} of {limit:.1f} bits of entropy: "
        f"it chooses almost at random (s² = {layer.s2:.3g})",
        _HARDER_START[quantizer.init.kind],
    )


def _at_bound(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    if layer.s2 <= 0 or abs(math.log(layer.s2)) <= 0.99 * LOG_S2_RANGE:
        return None
    return Finding(
        "variance at its bound",
        layer.name,
        f"s² = {layer.s2:.3g} hit its float32 limit and is frozen",
        "a lower phases.lr_log_s2 or train.lr, from the start",
    )


# ------------------------------------------------------------------------------- in words


def diagnose(measures: Measures, found: Sequence[Finding], config: Config) -> list[str]:
    """Paragraphs, one thought each: the whole, every layer, every problem with its remedy."""
    paragraphs = [
        f"{measures.items} {_amount(measures)}: PSNR {measures.psnr:.2f} dB, "
        f"−ELBO {measures.bits_per_dim:.3f} bits per dimension."
    ]
    paragraphs += [_describe(index, measures) for index in range(len(measures.layers))]
    paragraphs += [
        f"PROBLEM {finding.layer} {finding.kind}: {finding.what}. TRY: {finding.advice}."
        for finding in found
    ]
    hints = (*_idle_rate(measures), *_bad_prefixes(measures, config), *_soft(measures, config))
    paragraphs += hints
    if not found:
        paragraphs.append(
            f"No layer has collapsed (perplexity below {COLLAPSED:.0%} of K) and every layer "
            f"carries something (shuffling it costs {INACTIVE_DB:g} dB or more)."
        )
    return paragraphs


def _amount(measures: Measures) -> str:
    if measures.bits_per_second is not None:
        return f"segments of audio at {measures.bits_per_second:.0f} bits per second"
    return f"images at {measures.bits_per_point:.3f} bits per pixel"


def _describe(index: int, measures: Measures) -> str:
    layer = measures.layers[index]
    limit = math.log2(layer.codebook_size)
    bits = math.log2(max(1.0, layer.perplexity))
    if index:
        gain = layer.psnr_cumulative - measures.layers[index - 1].psnr_cumulative
        adds = f"adds {_decibels(gain)} dB to the layers before it"
    else:
        adds = f"alone gives {layer.psnr_cumulative:.2f} dB"
    return (
        f"{layer.name} (stride {layer.stride}): its codes carry {bits:.2f} of {limit:.2f} bits "
        f"per position ({layer.used} of {layer.codebook_size} codes used); it {adds}; "
        f"with its codes shuffled, {_decibels(layer.ablation_drop_db)} dB are lost."
    )


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
            if config.model.progressive:
                cure = "TRY: train longer."
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
