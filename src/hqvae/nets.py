"""Convolutional encoder, decoder and the blocks between levels, for signals with one axis (sound) or two (images).

Nothing here mixes positions except convolutions of finite reach, and nothing depends on batch mates: tokens must not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int, Shaped
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as config
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class NetConfig:
    """Widths and depths of the networks; the default is the SQ-VAE paper's small CIFAR-10 net with `ChannelNorm` for batch norm.

    Args:
        widths: channels after each strided convolution (the last one is kept for all further ones)
        hidden: channels inside a residual block, as a share of its width
        blocks: residual blocks at the resolution of every level, in encoder, hierarchy and decoder
        inner_blocks: residual blocks after each reduction that is not a level's
        dilations: of the residual blocks of one place, in turn: (1, 3, 9) sees far in one axis
        factor: prime factors of a stride are taken together in one strided convolution up to this; 2 takes each alone
        activation: `relu`, or `elu`, which is nearly linear for quiet signals
        norm: whether residual blocks have `ChannelNorm`, which makes the quiet as loud as the loud
        zero_start: biases, and the last convolution of every residual block, start at zero: the net starts nearly linear and passes on
            what it is given, however quiet
    """

    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1)
    hidden: float = Field(default=1.0, gt=0)
    blocks: int = Field(default=2, ge=0)
    inner_blocks: int = Field(default=0, ge=0)
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    factor: int = Field(default=2, ge=2)
    activation: Literal["relu", "elu"] = "relu"
    norm: bool = True
    zero_start: bool = False

    def active(self) -> nn.Module:
        """A layer of the activation."""
        return nn.ReLU() if self.activation == "relu" else nn.ELU()

    def width(self, reductions: int) -> int:
        """Channels after that many reductions."""
        return self.widths[min(max(reductions, 1), len(self.widths)) - 1]


def reductions(stride: int, largest: int = 2) -> list[int]:
    """A stride in steps: its prime factors, small first, taken together up to `largest`: 8 → [2, 2, 2] or, with 4, [4, 2]; 10 → [2, 5]."""
    factors: list[int] = []
    factor = 2
    while stride > 1:
        while stride % factor == 0:
            if factors and factors[-1] * factor <= largest:
                factors[-1] *= factor
            else:
                factors.append(factor)
            stride //= factor
        factor += 1
    return factors


class ChannelNorm(nn.LayerNorm):
    """Every position's channels to mean 0 and variance 1, then scaled and shifted, `[B, W, *S] → [B, W, *S]`.

    Where others have batch norm, which would make a code depend on batch mates and on the mode. With it the networks bear, and
    gain from, four times the learning rate.
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class ResBlock(nn.Module):
    """x + conv1(act(norm(conv3(act(norm(x)))))), `[B, W, *S] → [B, W, *S]`; activation and norm as the net has them."""

    def __init__(self, axes: int, width: int, net: NetConfig, dilation: int = 1):
        super().__init__()
        inner = max(1, round(width * net.hidden))
        self.before, self.within = (ChannelNorm(w) if net.norm else nn.Identity() for w in (width, inner))
        self.wide = CONV[axes](width, inner, 3, padding=dilation, dilation=dilation)
        self.narrow = CONV[axes](inner, width, 1)
        self.active = net.active()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.active(self.within(self.wide(self.active(self.before(x))))))


def inside(x: Shaped[Tensor, "B ..."], ends: Int[Tensor, "B"], total: int) -> Bool[Tensor, "B ..."]:
    """Which positions of the last axis lie before each signal's end, to multiply x with; `ends` counts in `total`ths of that axis."""
    mask = torch.arange(x.shape[-1], device=x.device) < ends[:, None].to(x.device) * (x.shape[-1] // total)
    return mask.view(len(x), *[1] * (x.ndim - 2), -1)


def start_at_zero(net: nn.Module) -> None:
    """Biases, and the last convolution of every residual block, to zero; changes state."""
    for module in net.modules():
        if isinstance(module, CONVOLUTIONS) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.narrow.weight)


@contextmanager
def ending(net: nn.Module, ends: Int[Tensor, "B"], total: int) -> Iterator[None]:
    """Inside, every convolution of `net` sees zeros past the end of each signal of a batch, as if it had been there alone.

    Args:
        net: the networks
        ends: where each signal ends on the last axis, in the coarsest positions
        total: coarsest positions of the whole batch's last axis
    """

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * inside(inputs[0], ends, total),)

    hooks = [module.register_forward_pre_hook(cut) for module in net.modules() if isinstance(module, CONVOLUTIONS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def res_blocks(axes: int, width: int, net: NetConfig, count: int) -> nn.Sequential:
    return nn.Sequential(*[ResBlock(axes, width, net, net.dilations[i % len(net.dilations)]) for i in range(count)])


def shrink(axes: int, channels: int, width: int, factor: int) -> nn.Module:
    """Strided convolution, `[B, channels, *S] → [B, width, *S/factor]`, exact for S divisible by the factor."""
    kernel = 2 * factor - factor % 2
    return CONV[axes](channels, width, kernel, stride=factor, padding=(kernel - factor) // 2)


def grow(axes: int, channels: int, width: int, factor: int) -> nn.Module:
    """Transposed convolution, `[B, channels, *S] → [B, width, *S·factor]`."""
    kernel = 2 * factor - factor % 2
    return CONV_TRANSPOSE[axes](channels, width, kernel, stride=factor, padding=(kernel - factor) // 2)


class Encoder(nn.Module):
    """H_φ: one bottom-up trunk, `x [B, C, *S] →` features h^r `[B, W_r, *S/stride_r]` of every level, coarse first.

    Args:
        axes: 1 or 2
        channels: C of the signal
        strides: of the levels, coarse first, each divisible by the next
        net: widths and depths
    """

    def __init__(self, axes: int, channels: int, strides: Sequence[int], net: NetConfig):
        super().__init__()
        self.stages = nn.ModuleList()
        self.widths: list[int] = []  # of the features, coarse first
        done, stride = 0, 1
        for target in reversed(strides):
            steps: list[nn.Module] = []
            factors = reductions(target // stride, net.factor)
            for i, factor in enumerate(factors):
                done += 1
                # The first level's trunk starts at the signal; the others continue from features, which want an activation first.
                steps += [net.active()] if done > 1 else []
                steps += [shrink(axes, channels, net.width(done), factor)]
                channels = net.width(done)
                if i < len(factors) - 1:
                    steps += res_blocks(axes, channels, net, net.inner_blocks)
            if not factors:  # stride 1: the finest level reads the signal itself
                steps.append(CONV[axes](channels, net.width(0), 3, padding=1))
                channels = net.width(0)
            steps += [net.active(), CONV[axes](channels, channels, 3, padding=1)]
            steps += [*res_blocks(axes, channels, net, net.blocks), net.active()]
            self.stages.append(nn.Sequential(*steps))
            self.widths.insert(0, channels)
            stride = target

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(reversed(features))


class Decoder(nn.Module):
    """f_θ: a canvas `[B, W, *S/stride]` at the finest level's resolution `→ x̂ [B, C, *S]`."""

    def __init__(self, axes: int, channels: int, stride: int, net: NetConfig):
        super().__init__()
        factors = reductions(stride, net.factor)
        width = net.width(len(factors))
        steps: list[nn.Module] = [*res_blocks(axes, width, net, net.blocks), net.active()]
        for done in range(len(factors) - 1, -1, -1):
            out = net.width(done) if done else channels
            steps.append(grow(axes, width, out, factors[done]))
            if done:
                steps += [*res_blocks(axes, out, net, net.inner_blocks), net.active()]
            width = out
        if not factors:
            steps.append(CONV[axes](width, channels, 3, padding=1))
        self.net = nn.Sequential(*steps)

    def forward(self, canvas: Tensor) -> Tensor:
        return self.net(canvas)
