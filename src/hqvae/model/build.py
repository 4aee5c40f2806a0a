"""The levels of a model, made to fit its encoder."""

from torch import nn

from hqvae.nets import TopDown, conv
from hqvae.quantize import LearnedPrior, ResidualQuantizer
from hqvae.topdown import ConcatLevel, Level, PredictionLevel

from .config import HQVAEConfig
from .probe import feature_widths

INJECTIONS = {"prediction": PredictionLevel, "concat": ConcatLevel}


def make_levels(config: HQVAEConfig, encoder: nn.Module) -> list[Level]:
    """Coarse to fine. Raises ValueError for an encoder whose features do not fit the strides."""
    widths = feature_widths(config, encoder)
    return [config.net.init(make_level(config, r, width)) for r, width in enumerate(widths)]


def make_level(config: HQVAEConfig, r: int, width: int) -> Level:
    """Level r of the hierarchy, for features of so many channels."""
    level = config.levels[r]
    prior = None
    if config.prior == "learned":
        prior = LearnedPrior(level.layers, level.codebook_size, config.rate_weight)
    quantizer = ResidualQuantizer(
        level.dim,
        level.codebook_size,
        level.layers,
        config.quantizer,
        level.shared_codebook,
        config.beam_size,
        prior,
    )
    if r == 0:
        return Level(quantizer, conv(config.axes, width, level.dim, 1))
    above = config.levels[r - 1]
    prediction = config.injection == "prediction"
    top_down = TopDown(
        config.axes,
        (above.dim, level.dim),
        (above.stride, level.stride),
        config.net,
        zero_init=prediction,
    )
    channels = width if prediction else width + level.dim
    project_in = conv(config.axes, channels, level.dim, 1)
    return INJECTIONS[config.injection](quantizer, project_in, top_down)
