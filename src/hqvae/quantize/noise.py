"""Gumbel noise as a function of (seed, row, code): drawn block by block, and drawn again the same in the backward pass.

A counter instead of a generator's state means that nothing N x K is kept, that the noise of a row does not depend on how
many processes or blocks share the batch, and that a resumed run draws what the uninterrupted one would have drawn. Seeds are
tensors, so that a compiled model takes a new one at every step without being compiled again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as signed 64-bit: the increment of SplitMix64
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685  # SplitMix64's multipliers
MUL1, MUL2 = 0x7FEB352D, 0x846CA68B  # "lowbias32" (C. Wellons): multipliers of low avalanche bias
SMALLEST, LARGEST = 2.0**-32, 1 - 2.0**-24  # of the uniform numbers; the second is the largest float32 below one
_CODES = 1  # a stream of hashes beside that of the rows


def _splitmix(counter: Tensor) -> Tensor:
    """Sixty-four well mixed bits of every element of an int64 tensor (Steele et al., OOPSLA 2014)."""
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
        state = _splitmix(state ^ (_signed(number) if isinstance(number, int) else number)) + 1
    return state


class Noise(NamedTuple):
    """Where a batch stands in the stream of noise.

    Shape:
        seed: int64 [], or a plain number
        samples: how many samples of the global batch come before it
    """

    seed: Tensor | int
    samples: int = 0

    @classmethod
    def draw(cls) -> "Noise":
        """A fresh stream, taken from torch's global generator (so `torch.manual_seed` fixes it)."""
        return cls(torch.randint(2**62, ()))

    @classmethod
    def of(cls, *numbers: int, samples: int = 0) -> "Noise":
        """The stream that belongs to `numbers`, for instance (seed of the run, step)."""
        return cls(_scramble(*numbers), samples)

    def fold(self, number: int) -> "Noise":
        """An independent stream at the same place, for instance for layer `number`."""
        return Noise(_scramble(self.seed, number), self.samples)

    def generator(self) -> torch.Generator:
        """A generator of torch's that belongs to this stream."""
        return torch.Generator().manual_seed(int(self.seed) % (1 << 63))

    def gaussian(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape [B, ...] of `like`, drawn sample by sample, so that batch mates do not matter."""
        streams = [self.fold(self.samples + b) for b in range(like.shape[0])]
        draws = [torch.randn(like.shape[1:], generator=stream.generator()) for stream in streams]
        return torch.stack(draws).to(like) if draws else torch.zeros_like(like)


def row_bits(seed: Tensor | int, first: int, rows: int, device: torch.device) -> Tensor:
    """[rows] int32: the hash of every row, numbered from `first`."""
    counter = torch.arange(first + 1, first + rows + 1, device=device)
    return _splitmix(counter ^ seed).to(torch.int32)


def code_bits(seed: Tensor | int, codes: int, device: torch.device) -> Tensor:
    """[codes] int32: the hash of every code, from a stream of its own."""
    return _splitmix(torch.arange(1, codes + 1, device=device) ^ _scramble(seed, _CODES)).to(torch.int32)


def log_exponential(rows: Tensor, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """log E [n, K] float32 with E ~ Exponential(1), one for each pair of `row_bits` and `code_bits`; the Gumbel noise is −log E.

    E = −log(1 − u) with a small u kept at full float precision: the large Gumbel values, which decide, have 31 bits.
    `out` is written when given; two more arrays of its size are needed in passing.
    """
    bits = torch.bitwise_xor(rows.unsqueeze(1), codes.unsqueeze(0))
    shifted = torch.empty_like(bits)
    for factor, shift in ((MUL1, 15), (MUL2, 16)):
        bits.mul_(factor - (factor >> 31 << 32))
        torch.bitwise_right_shift(bits, shift, out=shifted)
        bits.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))  # the shift of a signed integer copies its sign
    out = torch.empty(bits.shape, device=bits.device) if out is None else out
    out.copy_(bits.bitwise_and_(0x7FFFFFFF)).mul_(-(2.0**-31)).clamp_(-LARGEST, -SMALLEST)
    return out.log1p_().neg_().log_()
