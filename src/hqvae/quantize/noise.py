"""Gumbel noise as a function of (seed, row, code): the backward pass draws it again, the same.

A counter takes the place of a generator's state. So nothing N x K is kept, the noise of a row does
not depend on how many processes or blocks share the batch, and a resumed run draws what the
uninterrupted one would have drawn. Seeds are tensors: a compiled model takes a new one at every
step without being compiled again.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as signed 64-bit: SplitMix64's increment
_MIX1 = -4658895280553007687  # SplitMix64's multipliers
_MIX2 = -7723592293110705685
MUL1 = 0x7FEB352D  # "lowbias32" (C. Wellons): multipliers of low avalanche bias
MUL2 = 0x846CA68B
SMALLEST = 2.0**-32  # of the uniform numbers
LARGEST = 1 - 2.0**-24  # the largest float32 below one


class Stream(IntEnum):
    """The streams that have a name. Layers, samples and steps are numbered from 0."""

    CODES = -1  # the hashes of codes, beside those of rows
    GAUSSIAN = -2  # the Gaussian posterior of a level's continuous latent
    KMEANS = -3  # the random rows of k-means
    PREFIX = -4  # how many first layers the progressive term decodes
    INIT = -5  # the initialisation of codebooks
    RESTART = -6  # the restart of unused codes
    SHUFFLE = -7  # the permutation of a layer's codes in an ablation


def _splitmix(counter: Tensor) -> Tensor:
    """64 well mixed bits of every element of an int64 tensor (Steele et al., OOPSLA 2014)."""
    bits = counter * _GOLDEN
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _scramble(*numbers: Tensor | int) -> Tensor:
    """An int64 [] that depends on all of `numbers` and on their order."""
    state = torch.tensor(_GOLDEN)  # not 0, which SplitMix64 leaves at 0
    for number in numbers:
        bits = _signed(int(number)) if isinstance(number, int) else number
        state = _splitmix(state ^ bits) + 1
    return state


class Noise(NamedTuple):
    """Where a batch stands in the stream of noise.

    Args:
        seed: int64 [], or a plain number
        samples: how many samples of the global batch come before it

    >>> noise = Noise.of(0, 17)  # seed of the run, step
    >>> noise.fold(1) == noise.fold(1) != noise.fold(Stream.KMEANS)
    True
    """

    seed: Tensor | int
    samples: int = 0

    @classmethod
    def draw(cls) -> "Noise":
        """A fresh stream from torch's global generator, so that `torch.manual_seed` fixes it."""
        return cls(torch.randint(2**62, ()))

    @classmethod
    def of(cls, *numbers: int, samples: int = 0) -> "Noise":
        """The stream that belongs to `numbers`: (seed of the run, step or `Stream`)."""
        return cls(_scramble(*numbers), samples)

    def fold(self, stream: int) -> "Noise":
        """An independent stream at the same place: the one with that name, or that of a layer.

        Args:
            stream: a `Stream`, or the index of a layer

        Raises ValueError for a negative number that is no `Stream`: names and indices never meet.
        """
        if not isinstance(stream, Stream) and stream < 0:
            raise ValueError(f"stream={stream}: expected an index from 0 on, or a member of Stream")
        return Noise(_scramble(self.seed, stream), self.samples)

    def generator(self) -> torch.Generator:
        """A torch generator that belongs to this stream."""
        return torch.Generator().manual_seed(int(self.seed) % (1 << 63))

    def gaussian(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape [B, ...] of `like`.

        Each sample has a stream of its own, so that its batch mates do not matter.
        """
        streams = [self.fold(self.samples + b) for b in range(like.shape[0])]
        draws = [torch.randn(like.shape[1:], generator=stream.generator()) for stream in streams]
        return torch.stack(draws).to(like) if draws else torch.zeros_like(like)


def row_hashes(seed: Tensor | int, first: int, rows: int, device: torch.device) -> Tensor:
    """[rows] int32: the hash of every row, numbered from `first`."""
    counter = torch.arange(first + 1, first + rows + 1, device=device)
    return _splitmix(counter ^ seed).to(torch.int32)


def code_hashes(seed: Tensor | int, codes: int, device: torch.device) -> Tensor:
    """[codes] int32: the hash of every code, from a stream of its own."""
    counter = torch.arange(1, codes + 1, device=device)
    return _splitmix(counter ^ _scramble(seed, Stream.CODES)).to(torch.int32)


def log_exponential(rows: Tensor, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """log E [n, K] float32, E ~ Exponential(1) for each pair of hashes; Gumbel noise is −log E.

    E = −log(1 − u) with a small u kept at full float precision: the large Gumbel values, which
    decide, have 31 bits.

    Args:
        rows: `row_hashes` [n]
        codes: `code_hashes` [K]
        out: written when given; two more arrays of its size are needed in passing
    """
    bits = torch.bitwise_xor(rows.unsqueeze(1), codes.unsqueeze(0))
    shifted = torch.empty_like(bits)
    for factor, shift in ((MUL1, 15), (MUL2, 16)):
        bits.mul_(factor - (factor >> 31 << 32))
        torch.bitwise_right_shift(bits, shift, out=shifted)
        # The shift of a signed integer copies its sign; the mask takes the copies away.
        bits.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))
    out = torch.empty(bits.shape, device=bits.device) if out is None else out
    out.copy_(bits.bitwise_and_(0x7FFFFFFF)).mul_(-(2.0**-31)).clamp_(-LARGEST, -SMALLEST)
    return out.log1p_().neg_().log_()
