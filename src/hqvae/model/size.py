"""How many numbers a config's model holds, counted before any of them is allocated.

A config is read from files of others and from hands that slip: 10⁹ layers or channels are refused
by this count, not by the machine.
"""

from collections.abc import Sequence

from hqvae.nets.layers import factor_stride
from hqvae.quantize import RATE_WEIGHTS, ExternalConfig

from .config import HQVAEConfig


def count_values(config: HQVAEConfig) -> int:
    """Values of a model's networks and codebooks, with encoder and decoder of ours.

    Left out are s² of every layer, and what another library's quantizers hold beside their codes.

    >>> count_values(HQVAEConfig())
    345411
    """
    counter = _Counter(config)
    strides = [level.stride for level in config.levels]
    finest = config.levels[-1]
    total = counter.encoder(strides) + counter.decoder(finest.dim, finest.stride)
    total += count_codes(config)
    for r, (level, width) in enumerate(zip(config.levels, counter.feature_widths(strides))):
        if r > 0:
            total += counter.top_down(r)
            width += level.dim * (config.injection == "concat")
        total += counter.conv(width, level.dim, 1)
    return total


def count_codes(config: HQVAEConfig) -> int:
    """Values of the codebooks alone; none where codes are implicit."""
    quantizer = config.quantizer
    if isinstance(quantizer, ExternalConfig) and quantizer.name in ("fsq", "lfq"):
        return 0
    return sum(
        (1 if level.shared_codebook else level.layers) * level.codebook_size * (level.dim + 1)
        + ((1 + len(RATE_WEIGHTS)) * level.layers * level.codebook_size + 1)
        * (config.prior == "learned")
        for level in config.levels
    )


class _Counter:
    """The networks of `hqvae.nets`, part by part, as numbers."""

    def __init__(self, config: HQVAEConfig):
        self.config = config
        self.net = config.net
        self.axes = config.axes

    def conv(self, channels: int, width: int, kernel: int) -> int:
        return channels * width * kernel**self.axes + width

    def resampled(self, channels: int, width: int, factor: int) -> int:
        return self.conv(channels, width, 2 * factor - factor % 2)

    def blocks(self, width: int, count: int) -> int:
        norm = sum(p.numel() for p in self.net.norm_layer(1).parameters()) * width
        return count * (2 * norm + self.conv(width, width, 3) + self.conv(width, width, 1))

    def factors(self, stride: int) -> Sequence[int]:
        return factor_stride(stride, self.net.factor)

    def feature_widths(self, strides: Sequence[int]) -> list[int]:
        """Channels of every level's features, coarse first."""
        widths = []
        done = 0
        for finer, stride in zip([1, *reversed(strides)], reversed(strides)):
            done += len(self.factors(stride // finer))
            widths.append(self.net.width(done))
        return widths[::-1]

    def encoder(self, strides: Sequence[int]) -> int:
        total = 0
        done = 0
        channels = self.config.channels
        for finer, stride in zip([1, *reversed(strides)], reversed(strides)):
            factors = self.factors(stride // finer)
            for i, factor in enumerate(factors):
                width = self.net.width(done + i + 1)
                total += self.resampled(channels, width, factor)
                total += self.blocks(width, self.net.inner_blocks) * (i < len(factors) - 1)
                channels = width
            done += len(factors)
            if not factors:
                total += self.conv(channels, self.net.width(0), 3)
                channels = self.net.width(0)
            total += self.conv(channels, channels, 3)
            total += self.blocks(channels, self.net.encoder_depth)
        return total

    def decoder(self, dim: int, stride: int) -> int:
        factors = self.factors(stride)
        width = self.net.width(len(factors))
        total = self.conv(dim, width, 3) + self.blocks(width, self.net.blocks)
        for left in range(len(factors) - 1, -1, -1):
            out = self.net.width(left) if left else self.config.channels
            total += self.resampled(width, out, factors[left])
            total += self.blocks(out, self.net.inner_blocks) * (left > 0)
            width = out
        return total + (0 if factors else self.conv(width, self.config.channels, 3))

    def top_down(self, r: int) -> int:
        """From the level above r to level r."""
        above, here = self.config.levels[r - 1 : r + 1]
        width = self.net.width(len(self.factors(above.stride)))
        own = self.net.width(len(self.factors(here.stride)))
        total = self.conv(above.dim, width, 3) + self.blocks(width, self.net.blocks)
        for factor in self.factors(above.stride // here.stride):
            total += self.resampled(width, own, factor)
            width = own
        return total + self.conv(width, here.dim, 3)
