"""Measures in, findings and advice out: which layers carry what, what collapsed, what to change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from hqvae.config import Config
from hqvae.data import Modality
from hqvae.measure import LayerMeasures, Measures
from hqvae.quantize import LOG_S2_RANGE, ExternalConfig, GumbelSoftmaxConfig, RandomInit

COLLAPSED = 0.1  # a layer whose hard perplexity is below this share of K
INACTIVE_DB = 0.05  # a layer whose shuffled codes cost less
WEAK = 0.1  # a layer that gives less per bit than this share of what the median layer gives
UNIFORM = 0.95  # a posterior whose entropy is above this share of log K

_LONGER = "train longer"
_HARDER_START = {
    "kmeans": f"{_LONGER}, or start harder: a higher model.quantizer.init.sharpness",
    "random": f"{_LONGER}, or start harder: a lower model.quantizer.init.s2",
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
    if not _is_idle(layer):
        return None
    return Finding(
        "carries nothing",
        layer.name,
        f"its codes can be shuffled and only {max(0.0, layer.ablation_drop_db):.2f} dB are lost",
        _against_inactivity(layer, measures, config),
    )


def _is_idle(layer: LayerMeasures) -> bool:
    return layer.ablation_drop_db < INACTIVE_DB


def _against_inactivity(layer: LayerMeasures, measures: Measures, config: Config) -> str:
    """A coarse layer can be made to earn its place; after the last that carries, none can."""
    carrying = [other for other in measures.layers if not _is_idle(other)]
    last = (carrying[-1].level, carrying[-1].layer) if carrying else None
    if last is not None and (layer.level, layer.layer) > last:
        tail = [other for other in measures.layers if (other.level, other.layer) > last]
        first = next(other for other in tail if other.level == layer.level)
        return f"{_LONGER}; or {_drop(first, config)}, and spend the bits elsewhere"
    if config.model.progressive or layer is measures.layers[-1]:
        return _LONGER
    return "model.progressive=1 makes coarse layers earn their place"


def _drop(layer: LayerMeasures, config: Config) -> str:
    """How to leave a layer and those after it in its level out."""
    if layer.layer:
        return f"keep {layer.layer} layers there: model.levels.{layer.level}.layers={layer.layer}"
    if len(config.model.levels) > 1:
        return f"drop level {layer.level} from model.levels"
    return "give the other layers more codes"


def _collapsed(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    reachable = layer.reachable_codes(measures.items)
    if layer.perplexity / reachable >= COLLAPSED:
        return None
    few = f", as many as {measures.items} items have" if reachable < layer.codebook_size else ""
    return Finding(
        "collapsed",
        layer.name,
        f"perplexity {layer.perplexity:.0f} of {reachable} codes{few} "
        f"({layer.used} are ever chosen)",
        _against_collapse(config),
    )


def _against_collapse(config: Config) -> str:
    """What is not set already, likeliest first."""
    quantizer = config.model.quantizer
    if isinstance(quantizer, ExternalConfig):
        return "a smaller codebook_size, or a stochastic preset (sqvae, rsqvae)"
    if isinstance(quantizer, GumbelSoftmaxConfig):
        return _softer_start(config)
    cures = []
    if not quantizer.restart:
        cures.append("model.quantizer.restart=true puts unused codes back")
    if quantizer.beta > 0.025:
        cures.append("model.quantizer.beta=0.025 lets features spread")
    if config.train.beta2 > 0.95:
        cures.append("train.beta2=0.95 keeps more codes in use")
    return "; ".join([*cures, "or a stochastic preset (sqvae, rsqvae)"])


def _softer_start(config: Config) -> str:
    quantizer = config.model.quantizer
    assert isinstance(quantizer, GumbelSoftmaxConfig)
    if isinstance(quantizer.init, RandomInit):
        return f"{_LONGER}, or start from features (model.quantizer.init.kind=kmeans)"
    cures = [_LONGER]
    if config.phases.pretrain_fraction < 0.1:
        cures.append("start after the autoencoder (phases.pretrain_fraction=0.1)")
    cures.append("start softer (a lower model.quantizer.init.sharpness)")
    if config.phases.nearest_fraction:
        cures.append("choose nearest codes later (a lower phases.nearest_fraction)")
    return ", or ".join(cures)


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
        f"PROBLEM {finding.layer} {finding.kind}: {finding.what}. TRY: {finding.advice}."
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
        f"TRY: {_LONGER}; or {_drop(layer, config)}."
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
                cure = f"TRY: {_LONGER}."
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
