"""What networks must give, ours or a user's own: features of every level, and a signal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hqvae.errors import summary_of

from .config import HQVAEConfig


def as_features(features: Any) -> tuple[Tensor, ...]:
    """What an encoder gives, one tensor for each level; a tensor alone is that of one level.

    Raises ValueError for anything else.
    """
    if isinstance(features, Tensor):
        return (features,)
    if isinstance(features, tuple | list) and all(isinstance(h, Tensor) for h in features):
        return tuple(features)
    raise ValueError(
        f"the encoder gives a {type(features).__name__}; "
        "expected a tuple of tensors, one for each level, coarse first"
    )


@torch.no_grad()
def feature_widths(config: HQVAEConfig, encoder: nn.Module) -> list[int]:
    """Channels of every level's features, found by a look at a silent signal.

    Raises ValueError for an encoder whose features do not fit the levels.
    """
    strides = [level.stride for level in config.levels]
    shape = [1, config.channels, *[strides[0]] * config.axes]
    features = as_features(_probe("encoder", encoder, shape))
    sizes = [tuple(h.shape[2:]) for h in features]
    expected = [(strides[0] // stride,) * config.axes for stride in strides]
    if sizes != expected:
        raise ValueError(
            f"the encoder makes features of sizes {sizes} from a signal of {strides[0]} samples "
            f"along every axis; levels of stride {strides} expect {expected}"
        )
    return [h.shape[1] for h in features]


@torch.no_grad()
def check_decoder(config: HQVAEConfig, decoder: nn.Module) -> None:
    """Raises ValueError for a decoder that makes no signal of the finest level's latent."""
    coarsest = config.levels[0]
    finest = config.levels[-1]
    shape = [1, finest.dim, *[coarsest.stride // finest.stride] * config.axes]
    expected = [1, config.channels, *[coarsest.stride] * config.axes]
    signal = _probe("decoder", decoder, shape)
    found = list(signal.shape) if isinstance(signal, Tensor) else type(signal).__name__
    if found != expected:
        raise ValueError(
            f"the decoder makes {found} from a latent of shape {shape}; "
            f"{config.channels} channels and stride {finest.stride} expect {expected}"
        )


def _probe(name: str, net: nn.Module, shape: list[int]) -> Any:
    """What a network makes of zeros, in evaluation mode: it changes no state."""
    first = next(net.parameters(), torch.zeros(()))
    zeros = torch.zeros(shape, device=first.device, dtype=first.dtype)
    with _evaluating(net):
        try:
            return net(zeros)
        except RuntimeError as error:
            raise ValueError(
                f"the {name} cannot take a tensor of shape {shape}: {summary_of(error)}"
            ) from error


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; then every module has its own mode again."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
