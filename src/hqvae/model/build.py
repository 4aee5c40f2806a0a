"""The levels of a model, made to fit its encoder."""

import torch
from torch import Tensor, nn

from hqvae.nets import TopDown, conv
from hqvae.quantize import ResidualQuantizer
from hqvae.topdown import ConcatLevel, Level, PredictionLevel

from .config import HQVAEConfig

INJECTIONS = {"prediction": PredictionLevel, "concat": ConcatLevel}


def make_levels(config: HQVAEConfig, encoder: nn.Module) -> list[Level]:
    """Coarse to fine. Raises ValueError for an encoder whose features do not fit the strides."""
    widths = feature_widths(config, encoder)
    return [config.net.init(make_level(config, r, width)) for r, width in enumerate(widths)]


def make_level(config: HQVAEConfig, r: int, width: int) -> Level:
    """Level r of the hierarchy, for features of so many channels."""
    level = config.levels[r]
    quantizer = ResidualQuantizer(
        level.dim,
        level.codebook_size,
        level.layers,
        config.quantizer,
        level.shared_codebook,
        config.beam_size,
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


@torch.no_grad()
def feature_widths(config: HQVAEConfig, encoder: nn.Module) -> list[int]:
    """Channels of every level's features, found by a look at a silent signal."""
    strides = [level.stride for level in config.levels]
    mode = encoder.training
    first = next(encoder.parameters(), torch.zeros(()))
    size = [strides[0]] * config.axes
    probe = torch.zeros(1, config.channels, *size, device=first.device, dtype=first.dtype)
    features = as_features(encoder.eval()(probe))
    encoder.train(mode)
    sizes = [tuple(h.shape[2:]) for h in features]
    expected = [(strides[0] // stride,) * config.axes for stride in strides]
    if sizes != expected:
        raise ValueError(
            f"the encoder makes features of sizes {sizes} from a signal of {strides[0]} samples "
            f"along every axis; levels of stride {strides} expect {expected}"
        )
    return [h.shape[1] for h in features]


def as_features(features: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    """What an encoder gives, one tensor for each level."""
    return (features,) if isinstance(features, Tensor) else tuple(features)
