"""Encoder, decoder and top-down networks, for no axis (vectors), one (audio) or two (images).

Nothing here mixes positions except convolutions of finite reach, and nothing depends on batch
mates: tokens must not.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .layers import NetConfig, conv, downsample, factor_stride, res_blocks, upsample


class Encoder(nn.Module):
    """H_φ: one bottom-up trunk that gives the features h^r of every level.

    Args:
        axes: 0, 1 or 2
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
    steps += [*res_blocks(axes, channels, net, net.encoder_depth), net.activation_layer()]
    return nn.Sequential(*steps)


class Decoder(nn.Module):
    """f_θ: the finest level's latent → x̂.

    Args:
        axes: 0, 1 or 2
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
        axes: 0, 1 or 2
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
