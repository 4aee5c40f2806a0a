"""Long signals in bounded memory: encoded and decoded in chunks of their last axis, to the same tokens as in one piece.

Every chunk is taken with a halo of what the networks can see beyond it, and what the halo gives is thrown away. At the signal's
own ends there is no halo: there the networks' padding is that of the whole signal.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.model import HQVAE
from hqvae.nets import CONVOLUTIONS


def reach(model: HQVAE) -> int:
    """Samples of the last axis beyond which nothing changes a code or a sample: a multiple of the coarsest stride.

    The sum over all convolutions of what each sees beyond its own place, so more than needed where branches run side by side.
    """
    probe = 4 * model.stride
    seen: list[float] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, CONVOLUTIONS)
        seen.append((module.kernel_size[-1] - 1) * module.dilation[-1] * probe / min(inputs[0].shape[-1], output.shape[-1]))

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    mode, parameter = model.training, next(model.parameters())
    try:
        model.eval()
        size = [model.stride] * (model.config.axes - 1) + [probe]
        with torch.no_grad():
            x = torch.zeros(1, model.config.channels, *size, device=parameter.device)
            model.decode(model.encode(x))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return -(-round(sum(seen)) // model.stride) * model.stride


def encode_in_chunks(model: HQVAE, x: Float[Tensor, "B C *S"], chunk: int) -> tuple[Int[Tensor, "B ..."], ...]:
    """`model.encode(x)`, with memory for about `chunk` samples of the last axis and the halo on both sides.

    Raises ValueError for a chunk below 1. The codes are those of the whole signal, but for ties within rounding.
    """
    parts = [_of_layers(model, model.encode(piece), start, count) for piece, start, count in _pieces(model, x, chunk)]
    return tuple(torch.cat(layer, -1) for layer in zip(*parts))


def decode_in_chunks(
    model: HQVAE, codes: Sequence[Int[Tensor, "B ..."]], chunk: int, layers: int | None = None, size: Sequence[int] | None = None
) -> Iterator[Float[Tensor, "B C ..."]]:
    """`model.decode(codes, layers, size)` piece by piece along the last axis, each of at most about `chunk` samples.

    Raises ValueError for a chunk below 1.
    """
    strides = _strides(model)
    length = codes[0].shape[-1] * strides[0]
    last = length if size is None else size[-1]
    for start, stop, left, right in _spans(model, length, chunk):
        if start >= last:
            return
        part = [code[..., left // stride : right // stride] for code, stride in zip(codes, strides)]
        whole = model.decode(part, layers)
        inner = whole[..., start - left : min(stop, last) - left]
        yield inner if size is None or len(size) == 1 else inner[..., : size[0], :]


def _strides(model: HQVAE) -> list[int]:
    return [model.config.levels[layer.level].stride for layer in model.layers]


def _spans(model: HQVAE, length: int, chunk: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop) of every chunk, and (left, right) of what the networks are shown for it; all multiples of the coarsest stride."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1 sample")
    step, halo = -(-chunk // model.stride) * model.stride, reach(model)
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield start, stop, max(0, start - halo), min(length, stop + halo)


def _pieces(model: HQVAE, x: Tensor, chunk: int) -> Iterator[tuple[Tensor, int, int]]:
    """(what to encode, samples of halo on its left, samples to keep) of every chunk."""
    length = -(-x.shape[-1] // model.stride) * model.stride
    for start, stop, left, right in _spans(model, length, chunk):
        yield x[..., left:right], start - left, stop - start  # the last piece may end short of a stride: the model pads it as the whole


def _of_layers(model: HQVAE, codes: Sequence[Any], start: int, count: int) -> list[Tensor]:
    return [code[..., start // stride : (start + count) // stride] for code, stride in zip(codes, _strides(model))]
