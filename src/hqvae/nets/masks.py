"""Batches of signals of several sizes: what lies past a signal's ends reaches no convolution."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def size_mask(
    x: Shaped[Tensor, "B ..."], ends: Int[Tensor, "B A"], totals: Sequence[int]
) -> Bool[Tensor, "B ..."]:
    """Which positions of the last A axes lie before each signal's ends, to multiply x with.

    `ends` counts in `totals`ths of each of those axes.
    """
    mask = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=torch.bool, device=x.device)
    for axis, (end, total) in enumerate(
        zip(ends.to(x.device).unbind(1), totals), x.ndim - len(totals)
    ):
        side = x.shape[axis]
        inside = torch.arange(side, device=x.device) < end[:, None].to(x.device) * (side // total)
        mask = mask & inside.view(len(x), *[1] * (axis - 1), side, *[1] * (x.ndim - axis - 1))
    return mask


@contextmanager
def mask_padding(net: nn.Module, ends: Int[Tensor, "B A"], totals: Sequence[int]) -> Iterator[None]:
    """Inside, every convolution sees zeros past each signal's ends, as if it had been there alone.

    This holds for the calling thread: others may use the same networks at the same time.

    Args:
        net: the networks
        ends: where each signal ends on the last A axes, in the coarsest positions
        totals: coarsest positions of the whole batch on these axes
    """

    owner = threading.get_ident()

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if threading.get_ident() != owner:
            return inputs
        return (inputs[0] * size_mask(inputs[0], ends, totals),)

    convolutions = [module for module in net.modules() if isinstance(module, CONVOLUTIONS)]
    hooks = [module.register_forward_pre_hook(cut) for module in convolutions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
