"""Convolutional encoder, decoder and top-down networks, for one axis (audio) or two (images).

Nothing here mixes positions except convolutions of finite reach, and nothing depends on batch
mates: tokens must not.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hqvae.config_class import config_class

from .masks import CONVOLUTIONS

Net = TypeVar("Net", bound=nn.Module)
CONV = {1: nn.Conv1d, 2: nn.Conv2d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def conv(axes: int, channels: int, width: int, kernel: int) -> nn.Module:
    """A convolution that keeps the size, `[B, channels, *S] → [B, width, *S]`; odd kernels."""
    return CONV[axes](channels, width, kernel, padding=kernel // 2)


# --------------------------------------------------------------------------------- configs


@config_class
class ConvConfig:
    """The SQ-VAE paper's small CIFAR-10 net, with ReLU, and `ChannelNorm` for batch norm."""

    kind: Literal["conv"] = "conv"
    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1)
    """channels after each strided convolution (the last one is kept for all further ones)"""
    blocks: int = Field(default=2, ge=0)
    """residual blocks at the resolution of every level, in encoder, hierarchy and decoder"""
    inner_blocks: int = Field(default=0, ge=0)
    """residual blocks after each reduction that is not a level's"""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    """dilations of the residual blocks of one place, in turn"""
    factor: int = Field(default=2, ge=2)
    """prime factors of a stride are taken together in one convolution up to this"""

    def activation_layer(self) -> nn.Module:
        return nn.ReLU()

    def norm_layer(self, width: int) -> nn.Module:
        return ChannelNorm(width)

    def init(self, net: Net) -> Net:
        """The net as it is: PyTorch's own initialisation is kept."""
        return net

    def width(self, reductions: int) -> int:
        """Channels after that many reductions."""
        return self.widths[min(max(reductions, 1), len(self.widths)) - 1]


@config_class
class WaveConvConfig(ConvConfig):
    """Dilated nets for waveforms, with ELU, without norm, that start nearly linear.

    They pass on quiet signals from the start. Without the zeros and ELU they learn nothing in the
    first hundreds of steps; a norm would make the quiet as loud as the loud.
    """

    kind: Literal["wave"] = "wave"  # type: ignore[assignment]
    widths: tuple[int, ...] = Field(default=(32, 64, 128, 256), min_length=1)
    """channels after each strided convolution (the last one is kept for all further ones)"""
    blocks: int = Field(default=3, ge=0)
    """residual blocks at the resolution of every level, in encoder, hierarchy and decoder"""
    inner_blocks: int = Field(default=3, ge=0)
    """residual blocks after each reduction that is not a level's"""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 3, 9), min_length=1)
    """dilations of the residual blocks of one place, in turn: (1, 3, 9) sees far in one axis"""
    factor: int = Field(default=4, ge=2)
    """prime factors of a stride are taken together in one convolution up to this"""

    def activation_layer(self) -> nn.Module:
        return nn.ELU()

    def norm_layer(self, width: int) -> nn.Module:
        return nn.Identity()

    def init(self, net: Net) -> Net:
        """Biases, and the last convolution of every residual block, to zero; changes state."""
        for module in net.modules():
            if isinstance(module, CONVOLUTIONS) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.project_out.weight)
        return net


NetConfig = ConvConfig | WaveConvConfig


def factor_stride(stride: int, largest: int = 2) -> list[int]:
    """A stride in steps: its prime factors, small first, taken together up to `largest`.

    >>> factor_stride(8), factor_stride(8, largest=4), factor_stride(10)
    ([2, 2, 2], [4, 2], [2, 5])
    """
    factors: list[int] = []
    prime = 2
    while stride > 1:
        while stride % prime == 0:
            if factors and factors[-1] * prime <= largest:
                factors[-1] *= prime
            else:
                factors.append(prime)
            stride //= prime
        prime += 1
    return factors


# --------------------------------------------------------------------------------- layers


class ChannelNorm(nn.LayerNorm):
    """Every position's channels to mean 0 and variance 1, then scaled and shifted. Ours.

    It stands where others have batch norm, which would make a code depend on batch mates and on
    the mode. With it the networks bear, and gain from, four times the learning rate.

    Shape:
        [B, W, *S] → [B, W, *S]

    >>> ChannelNorm(8)(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Float[Tensor, "B W *S"]) -> Float[Tensor, "B W *S"]:
        channels_last = x.movedim(1, -1)
        normed = nn.functional.layer_norm(
            channels_last, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.movedim(-1, 1)


class ResBlock(nn.Module):
    """x + conv1(act(norm(conv3(act(norm(x)))))), `[B, W, *S] → [B, W, *S]`."""

    def __init__(self, axes: int, width: int, net: NetConfig, dilation: int = 1):
        super().__init__()
        self.norm_in = net.norm_layer(width)
        self.norm_out = net.norm_layer(width)
        self.project_in = CONV[axes](width, width, 3, padding=dilation, dilation=dilation)
        self.project_out = CONV[axes](width, width, 1)
        self.activation = net.activation_layer()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.project_in(self.activation(self.norm_in(x)))
        return x + self.project_out(self.activation(self.norm_out(hidden)))


def res_blocks(axes: int, width: int, net: NetConfig, count: int) -> nn.Sequential:
    dilations = [net.dilations[i % len(net.dilations)] for i in range(count)]
    return nn.Sequential(*[ResBlock(axes, width, net, dilation) for dilation in dilations])


def downsample(axes: int, channels: int, width: int, factor: int) -> nn.Module:
    """Strided convolution, `[B, channels, *S] → [B, width, *S/factor]`, for divisible S."""
    kernel = 2 * factor - factor % 2
    padding = (kernel - factor) // 2
    return CONV[axes](channels, width, kernel, stride=factor, padding=padding)


def upsample(axes: int, channels: int, width: int, factor: int) -> nn.Module:
    """Transposed convolution, `[B, channels, *S] → [B, width, *S·factor]`."""
    kernel = 2 * factor - factor % 2
    padding = (kernel - factor) // 2
    return CONV_TRANSPOSE[axes](channels, width, kernel, stride=factor, padding=padding)


# -------------------------------------------------------------------------------- networks


class Encoder(nn.Module):
    """H_φ: one bottom-up trunk that gives the features h^r of every level.

    Args:
        axes: 1 or 2
        channels: C of the signal
        strides: of the levels, coarse first, each divisible by the next
        net: widths and depths

    Shape:
        x [B, C, *S] → features [B, W_r, *S/stride_r], coarse first

    >>> encoder = Encoder(axes=2, channels=3, strides=[8, 4], net=ConvConfig())
    >>> [tuple(h.shape) for h in encoder(torch.zeros(1, 3, 32, 32))]
    [(1, 64, 4, 4), (1, 64, 8, 8)]
    """

    def __init__(self, axes: int, channels: int, strides: Sequence[int], net: NetConfig):
        super().__init__()
        self.stages = nn.ModuleList()
        done = 0  # reductions so far
        stride = 1
        for target in reversed(strides):
            factors = factor_stride(target // stride, net.factor)
            self.stages.append(_encoder_stage(axes, channels, factors, done, net))
            done += len(factors)
            channels = net.width(done)
            stride = target

    def forward(self, x: Float[Tensor, "B C *S"]) -> tuple[Tensor, ...]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(reversed(features))


def _encoder_stage(
    axes: int, channels: int, factors: Sequence[int], done: int, net: NetConfig
) -> nn.Sequential:
    """From one level's features (or the signal) to the next coarser level's."""
    steps: list[nn.Module] = []
    for i, factor in enumerate(factors):
        width = net.width(done + i + 1)
        if done + i > 0:  # the trunk starts at the signal; features want an activation first
            steps.append(net.activation_layer())
        steps.append(downsample(axes, channels, width, factor))
        channels = width
        if i < len(factors) - 1:
            steps += res_blocks(axes, channels, net, net.inner_blocks)
    if not factors:  # stride 1: the finest level reads the signal itself
        steps.append(conv(axes, channels, net.width(0), 3))
        channels = net.width(0)
    steps += [net.activation_layer(), conv(axes, channels, channels, 3)]
    steps += [*res_blocks(axes, channels, net, net.blocks), net.activation_layer()]
    return nn.Sequential(*steps)


class Decoder(nn.Module):
    """f_θ: the finest level's latent → x̂.

    Args:
        axes: 1 or 2
        channels: C of the signal
        dim: D of the latent
        stride: of the finest level
        net: widths and depths

    Shape:
        latent [B, D, *S/stride] → x̂ [B, C, *S]

    >>> decoder = Decoder(axes=2, channels=3, dim=16, stride=4, net=ConvConfig())
    >>> decoder(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(self, axes: int, channels: int, dim: int, stride: int, net: NetConfig):
        super().__init__()
        factors = factor_stride(stride, net.factor)
        width = net.width(len(factors))
        self.project_out = conv(axes, dim, width, 3)
        steps: list[nn.Module] = [*res_blocks(axes, width, net, net.blocks)]
        steps.append(net.activation_layer())
        for left in range(len(factors) - 1, -1, -1):
            out = net.width(left) if left else channels
            steps.append(upsample(axes, width, out, factors[left]))
            if left:
                steps += res_blocks(axes, out, net, net.inner_blocks)
                steps.append(net.activation_layer())
            width = out
        if not factors:
            steps.append(conv(axes, width, channels, 3))
        self.net = nn.Sequential(*steps)

    def forward(self, latent: Float[Tensor, "B D *S"]) -> Float[Tensor, "B C ..."]:
        return self.net(self.project_out(latent))


class TopDown(nn.Module):
    """From the latent of a level to the resolution of the next finer one.

    Args:
        axes: 1 or 2
        dims: D of the level above and of this one
        strides: of the level above and of this one
        net: widths and depths
        zero_init: whether its last convolution starts at zero

    Shape:
        latent above [B, D', *S'] → [B, D, *S]

    >>> top_down = TopDown(axes=2, dims=(16, 8), strides=(8, 4), net=ConvConfig())
    >>> top_down(torch.zeros(1, 16, 4, 4)).shape
    torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        axes: int,
        dims: tuple[int, int],
        strides: tuple[int, int],
        net: NetConfig,
        zero_init: bool = False,
    ):
        super().__init__()
        above, here = (net.width(len(factor_stride(stride, net.factor))) for stride in strides)
        self.project_out = conv(axes, dims[0], above, 3)
        steps: list[nn.Module] = [*res_blocks(axes, above, net, net.blocks)]
        width = above
        for factor in factor_stride(strides[0] // strides[1], net.factor):
            steps += [net.activation_layer(), upsample(axes, width, here, factor)]
            width = here
        self.last = conv(axes, width, dims[1], 3)
        if zero_init:
            for values in self.last.parameters():
                nn.init.zeros_(values)
        self.net = nn.Sequential(*steps, net.activation_layer())

    def forward(self, latent: Float[Tensor, "B D *S"]) -> Float[Tensor, "B d ..."]:
        return self.last(self.net(self.project_out(latent)))
