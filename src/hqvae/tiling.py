"""Signals of any length and batches of several: the same tokens as one by one, in bounded memory.

A chunk of a long signal is taken with a margin of what the networks can see beyond it, and what the
margin gives is thrown away. At the signal's own ends there is no margin: there the networks'
padding is that of the whole signal. Padding behind the shorter signals of a batch is masked out of
every convolution.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.model import HQVAE
from hqvae.model.signals import as_tensor
from hqvae.nets import CONVOLUTIONS, length_mask, mask_padding

# ------------------------------------------------------------------- several lengths


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
    with mask_padding(model, ends, total):
        codes = model.encode(x.gather(-1, positions))
    return tuple(layer * length_mask(layer, ends, total) for layer in codes)


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
    with mask_padding(model, _coarsest_ends(model, lengths), total):
        x_hat = model.decode(codes, layers, size)
    return x_hat * length_mask(x_hat, torch.tensor(lengths), x_hat.shape[-1])


def _coarsest_ends(model: HQVAE, lengths: Sequence[int]) -> Int[Tensor, "B"]:
    """Where signals end, in coarsest positions."""
    return torch.tensor([-(-length // model.stride) for length in lengths])


# ----------------------------------------------------------------------- long signals


def encode_chunked(model: HQVAE, x: Any, chunk: int) -> tuple[Int[Tensor, "B ..."], ...]:
    """`model.encode(x)` with memory for about `chunk` samples of the last axis, and the margins.

    The codes are those of the whole signal, but for ties within rounding. Raises ValueError for a
    chunk below 1, and as `encode` does.
    """
    x = as_tensor(x, next(model.parameters()))
    length = -(-x.shape[-1] // model.stride) * model.stride
    parts = []
    for start, stop, left, right in _spans(model, length, chunk):
        # The last piece may end short of a stride: the model pads it as it pads the whole.
        codes = model.encode(x[..., left:right])
        parts.append(_keep(model, codes, start - left, stop - start))
    return tuple(torch.cat(layer, -1) for layer in zip(*parts))


def decode_chunked(
    model: HQVAE,
    codes: Sequence[Any],
    chunk: int,
    layers: int | None = None,
    size: Sequence[int] | None = None,
) -> Iterator[Float[Tensor, "B C ..."]]:
    """`model.decode(codes, layers, size)` piece by piece along the last axis.

    Each piece has at most about `chunk` samples. Raises ValueError for a chunk below 1.
    """
    strides = [place.stride for place in model.config.layers]
    length = codes[0].shape[-1] * strides[0]
    last = length if size is None else size[-1]
    for start, stop, left, right in _spans(model, length, chunk):
        if start >= last:
            return
        part = [
            layer[..., left // stride : right // stride] for layer, stride in zip(codes, strides)
        ]
        x_hat = model.decode(part, layers)[..., start - left : min(stop, last) - left]
        yield x_hat if size is None or len(size) == 1 else x_hat[..., : size[0], :]


def receptive_margin(model: HQVAE) -> int:
    """Samples of the last axis beyond which nothing changes a code or a sample.

    A multiple of the coarsest stride. It is the sum over all convolutions of what each sees beyond
    its own place, so more than needed where branches run side by side.
    """
    probe = 4 * model.stride
    reaches: list[float] = []
    owner = threading.get_ident()  # other threads may use the model at the same time

    def add_reach(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if threading.get_ident() != owner:
            return
        assert isinstance(module, CONVOLUTIONS)
        reach = (module.kernel_size[-1] - 1) * module.dilation[-1]
        reaches.append(reach * probe / min(inputs[0].shape[-1], output.shape[-1]))

    convolutions = [m for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    hooks = [module.register_forward_hook(add_reach) for module in convolutions]
    mode = model.training
    try:
        size = [model.stride] * (model.config.axes - 1) + [probe]
        device = next(model.parameters()).device
        x = torch.zeros(1, model.config.channels, *size, device=device)
        model.eval()
        model.decode(model.encode(x))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return -(-round(sum(reaches)) // model.stride) * model.stride


def _spans(model: HQVAE, length: int, chunk: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop) of every chunk, and (left, right) of what the networks are shown for it.

    All are multiples of the coarsest stride.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1 sample")
    step = -(-chunk // model.stride) * model.stride
    margin = receptive_margin(model)
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield start, stop, max(0, start - margin), min(length, stop + margin)


def _keep(model: HQVAE, codes: Sequence[Any], start: int, count: int) -> list[Tensor]:
    """The codes of `count` samples from `start` on."""
    return [
        layer[..., start // place.stride : (start + count) // place.stride]
        for layer, place in zip(codes, model.config.layers)
    ]
