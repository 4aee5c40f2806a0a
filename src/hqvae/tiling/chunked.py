"""Long signals piece by piece, in bounded memory: the tokens and samples of the whole.

A chunk is taken with a margin of what the networks can see beyond it, and what the margin gives is
thrown away. At the signal's own ends there is no margin: there the networks' padding is that of the
whole signal.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.model import HQVAE
from hqvae.model.signals import as_tensor
from hqvae.nets import CONVOLUTIONS


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


def receptive_margin(model: HQVAE, encode: bool = True, decode: bool = True) -> int:
    """Samples along an axis beyond which nothing changes a code or a sample.

    A multiple of the coarsest stride. It is the sum over all convolutions of what each sees beyond
    its own place, so more than needed where branches run side by side. Of the two ways, `encode`
    and `decode`, one alone may be asked for.
    """
    if not model.config.axes:
        return 0
    probe = 4 * model.stride
    reaches: list[float] = []
    owner = threading.get_ident()  # other threads may use the model at the same time

    def add_reach(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if threading.get_ident() != owner:
            return
        assert isinstance(module, CONVOLUTIONS)
        reach = max((k - 1) * d for k, d in zip(module.kernel_size, module.dilation))
        reaches.append(reach * probe / min(inputs[0].shape[-1], output.shape[-1]))

    convolutions = [m for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    hooks = [module.register_forward_hook(add_reach) for module in convolutions]
    mode = model.training
    try:
        size = [model.stride] * (model.config.axes - 1) + [probe]
        device = next(model.parameters()).device
        x = torch.zeros(1, model.config.channels, *size, device=device)
        model.eval()
        codes = model.encode(x)
        if not encode:
            reaches.clear()
        if decode:
            model.decode(codes)
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
