"""What is wrong with the layers, and what to change."""

import math
from dataclasses import dataclass
from typing import Any

from hqvae.config import Config
from hqvae.measure import LayerMeasures, Measures
from hqvae.quantize import LOG_S2_RANGE, ExternalConfig, GumbelSoftmaxConfig, RandomInit

COLLAPSED = 0.1  # a layer whose hard perplexity is below this share of K
INACTIVE_DB = 0.05  # a layer whose shuffled codes cost less
UNIFORM = 0.95  # a posterior whose entropy is above this share of log K

SILENT = "silent"  # no fault: by a learned prior, its bits are not worth what they cost

LONGER = "train longer"
_HARDER_START = {
    "kmeans": f"{LONGER}, or start harder: a higher model.quantizer.init.sharpness",
    "random": f"{LONGER}, or start harder: a lower model.quantizer.init.s2",
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
    if not _is_idle(layer) or _is_silent(layer, measures):
        return None
    return Finding(
        "carries nothing",
        layer.name,
        f"its codes can be shuffled and only {max(0.0, layer.ablation_drop_db):.2f} dB are lost",
        _against_inactivity(layer, measures, config),
    )


def _has_few_codes(layer: LayerMeasures, measures: Measures) -> bool:
    return layer.perplexity / layer.reachable_codes(measures.items) < COLLAPSED


def _is_silent(layer: LayerMeasures, measures: Measures) -> bool:
    """Whether it has few codes because they pay for their bits, and not because of a collapse."""
    if layer.perplexity_free is None or not _has_few_codes(layer, measures):
        return False
    return layer.perplexity_free / layer.reachable_codes(measures.items) >= COLLAPSED


def _is_idle(layer: LayerMeasures) -> bool:
    return layer.ablation_drop_db < INACTIVE_DB


def _against_inactivity(layer: LayerMeasures, measures: Measures, config: Config) -> str:
    """A coarse layer can be made to earn its place; after the last that carries, none can."""
    carrying = [other for other in measures.layers if not _is_idle(other)]
    last = (carrying[-1].level, carrying[-1].layer) if carrying else None
    if last is not None and (layer.level, layer.layer) > last:
        tail = [other for other in measures.layers if (other.level, other.layer) > last]
        first = next(other for other in tail if other.level == layer.level)
        return f"{LONGER}; or {drop(first, config)}, and spend the bits elsewhere"
    if config.model.progressive or layer is measures.layers[-1]:
        return LONGER
    return "model.progressive=1 makes coarse layers earn their place"


def drop(layer: LayerMeasures, config: Config) -> str:
    """How to leave a layer and those after it in its level out."""
    if layer.layer:
        return f"keep {layer.layer} layers there: model.levels.{layer.level}.layers={layer.layer}"
    if len(config.model.levels) > 1:
        return f"drop level {layer.level} from model.levels"
    return "give the other layers more codes"


def _collapsed(layer: LayerMeasures, measures: Measures, config: Config) -> Finding | None:
    reachable = layer.reachable_codes(measures.items)
    if not _has_few_codes(layer, measures):
        return None
    if _is_silent(layer, measures):
        return Finding(
            SILENT,
            layer.name,
            f"perplexity {layer.perplexity:.0f} of {reachable} codes, and "
            f"{layer.perplexity_free:.0f} if they paid nothing for their bits",
            "a lower model.rate_weight, if it should say more",
        )
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
        return "a smaller codebook_size, or codes that start by k-means (vqvae, rqvae)"
    if isinstance(quantizer, GumbelSoftmaxConfig):
        return _softer_start(config)
    cures = []
    if isinstance(quantizer.init, RandomInit):
        cures.append("model.quantizer.init.kind=kmeans starts codes from features")
    elif config.phases.pretrain_fraction == 0:
        cures.append("phases.pretrain_fraction=0.1 lets features reconstruct first")
    if not quantizer.restart:
        cures.append("model.quantizer.restart=true puts unused codes back")
    if quantizer.beta > 0.025:
        cures.append("model.quantizer.beta=0.025 lets features spread")
    if config.train.beta2 > 0.95:
        cures.append("train.beta2=0.95 keeps more codes in use")
    return "; ".join([*cures, f"{LONGER}, or a smaller codebook_size"])


def _softer_start(config: Config) -> str:
    quantizer = config.model.quantizer
    assert isinstance(quantizer, GumbelSoftmaxConfig)
    if isinstance(quantizer.init, RandomInit):
        return f"{LONGER}, or start from features (model.quantizer.init.kind=kmeans)"
    cures = [LONGER]
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
