"""What the networks are made of, for no axis, one or two, and their configs."""

from typing import Annotated, Any, Literal, TypeVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hqvae.config_class import config_class

from .masks import CONVOLUTIONS

Net = TypeVar("Net", bound=nn.Module)
Width = Annotated[int, Field(ge=1, le=2**16)]
Dilation = Annotated[int, Field(ge=1, le=4096)]


class Dense(nn.Linear):
    """The convolution of signals without axes, `[B, C] → [B, W]`: a kernel has one point."""

    def __init__(
        self, channels: int, width: int, kernel: int = 1, padding: int = 0, dilation: int = 1
    ):
        super().__init__(channels, width)


CONV: dict[int, Any] = {0: Dense, 1: nn.Conv1d, 2: nn.Conv2d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def conv(axes: int, channels: int, width: int, kernel: int) -> nn.Module:
    """A convolution that keeps the size, `[B, channels, *S] → [B, width, *S]`; odd kernels."""
    return CONV[axes](channels, width, kernel, padding=kernel // 2)


# --------------------------------------------------------------------------------- configs


@config_class
class ConvConfig:
    """The SQ-VAE paper's small CIFAR-10 net, with ReLU, and `ChannelNorm` for batch norm."""

    kind: Literal["conv"] = "conv"
    widths: tuple[Width, ...] = Field(default=(32, 64), min_length=1, max_length=64)
    """channels after each strided convolution (the last one is kept for all further ones)"""
    blocks: int = Field(default=2, ge=0, le=256)
    """residual blocks at the resolution of every level, in encoder, hierarchy and decoder"""
    inner_blocks: int = Field(default=0, ge=0, le=256)
    """residual blocks after each reduction that is not a level's"""
    dilations: tuple[Dilation, ...] = Field(default=(1,), min_length=1, max_length=64)
    """dilations of the residual blocks of one place, in turn"""
    factor: int = Field(default=2, ge=2, le=2**16)
    """prime factors of a stride are taken together in one convolution up to this"""

    @property
    def encoder_depth(self) -> int:
        """Residual blocks at the resolution of every level, in the encoder."""
        return self.blocks

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
    widths: tuple[Width, ...] = Field(default=(32, 64, 128, 256), min_length=1, max_length=64)
    """channels after each strided convolution (the last one is kept for all further ones)"""
    blocks: int = Field(default=3, ge=0, le=256)
    """residual blocks at the resolution of every level, in encoder, hierarchy and decoder"""
    inner_blocks: int = Field(default=3, ge=0, le=256)
    """residual blocks after each reduction that is not a level's"""
    dilations: tuple[Dilation, ...] = Field(default=(1, 3, 9), min_length=1, max_length=64)
    """dilations of the residual blocks of one place, in turn: (1, 3, 9) sees far in one axis"""
    factor: int = Field(default=4, ge=2, le=2**16)
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


@config_class
class MLPConfig(ConvConfig):
    """Residual networks of linear layers for vectors: signals without axes. Ours."""

    kind: Literal["mlp"] = "mlp"  # type: ignore[assignment]
    widths: tuple[Width, ...] = Field(default=(512,), min_length=1, max_length=64)
    """channels; one number, for nothing is reduced"""
    encoder_blocks: int | None = Field(default=None, ge=0, le=256)
    """residual blocks of the encoder, where it has others than `blocks`: fewer encode faster"""

    @property
    def encoder_depth(self) -> int:
        return self.blocks if self.encoder_blocks is None else self.encoder_blocks

    def activation_layer(self) -> nn.Module:
        return nn.GELU()


NetConfig = ConvConfig | WaveConvConfig | MLPConfig


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
