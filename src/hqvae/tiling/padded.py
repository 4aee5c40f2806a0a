"""Batches of signals of several lengths: the tokens and samples that each has alone.

Padding behind the shorter signals is masked out of every convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hqvae.model import HQVAE
from hqvae.model.signals import as_tensor
from hqvae.nets import mask_padding, size_mask


@torch.no_grad()
def encode_padded(model: HQVAE, x: Any, lengths: Sequence[int]) -> tuple[Int[Tensor, "B ..."], ...]:
    """`model.encode` of a batch of signals that end at `lengths` on the last axis.

    The codes are identical to encoding each signal unpadded and unbatched, whatever follows it in
    x. They are 0 past ⌈length / coarsest stride⌉ coarsest positions. Raises ValueError for lengths
    that do not fit x, and as `encode` does.
    """
    x = as_tensor(x, next(model.parameters()))
    size = x.shape[-1]
    if len(lengths) != len(x) or not all(1 <= length <= size for length in lengths):
        raise ValueError(f"lengths={list(lengths)}: expected {len(x)} from 1 to {size}")
    ends = _coarsest_ends(model, lengths)
    total = -(-size // model.stride)
    # Repeated past its end, as `features` pads a signal that is alone.
    last = torch.tensor(lengths, device=x.device) - 1
    positions = torch.arange(total * model.stride, device=x.device).minimum(last[:, None])
    positions = positions.view(len(x), *[1] * (x.ndim - 2), -1).expand(*x.shape[:-1], -1)
    with mask_padding(model, ends, [total]):
        codes = model.encode(x.gather(-1, positions))
    return tuple(layer * size_mask(layer, ends, [total]) for layer in codes)


@torch.no_grad()
def decode_padded(
    model: HQVAE,
    codes: Sequence[Any],
    lengths: Sequence[int],
    layers: int | None = None,
    size: Sequence[int] | None = None,
) -> Float[Tensor, "B C ..."]:
    """`model.decode` of a batch of signals that end at `lengths` on the last axis.

    The samples are those that each signal has when decoded alone, and 0 past its end. Raises
    ValueError for lengths that do not fit the codes.
    """
    total = codes[0].shape[-1]  # of the coarsest level
    longest = total * model.stride
    if len(lengths) != len(codes[0]) or not all(1 <= length <= longest for length in lengths):
        raise ValueError(f"lengths={list(lengths)}: expected {len(codes[0])} from 1 to {longest}")
    with mask_padding(model, _coarsest_ends(model, lengths), [total]):
        x_hat = model.decode(codes, layers, size)
    return x_hat * size_mask(x_hat, torch.tensor(lengths)[:, None], [x_hat.shape[-1]])


def _coarsest_ends(model: HQVAE, lengths: Sequence[int]) -> Int[Tensor, "B 1"]:
    """Where signals end, in coarsest positions."""
    return torch.tensor([[-(-length // model.stride)] for length in lengths])
