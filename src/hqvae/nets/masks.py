"""Batches of signals of several lengths: what lies past a signal's end reaches no convolution."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def length_mask(
    x: Shaped[Tensor, "B ..."], ends: Int[Tensor, "B"], total: int
) -> Bool[Tensor, "B ..."]:
    """Which positions of the last axis lie before each signal's end, to multiply x with.

    `ends` counts in `total`ths of that axis.
    """
    positions = torch.arange(x.shape[-1], device=x.device)
    mask = positions < ends[:, None].to(x.device) * (x.shape[-1] // total)
    return mask.view(len(x), *[1] * (x.ndim - 2), -1)


@contextmanager
def mask_padding(net: nn.Module, ends: Int[Tensor, "B"], total: int) -> Iterator[None]:
    """Inside, every convolution sees zeros past each signal's end, as if it had been there alone.

    This holds for the calling thread: others may use the same networks at the same time.

    Args:
        net: the networks
        ends: where each signal ends on the last axis, in the coarsest positions
        total: coarsest positions of the whole batch's last axis
    """

    owner = threading.get_ident()

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if threading.get_ident() != owner:
            return inputs
        return (inputs[0] * length_mask(inputs[0], ends, total),)

    convolutions = [module for module in net.modules() if isinstance(module, CONVOLUTIONS)]
    hooks = [module.register_forward_pre_hook(cut) for module in convolutions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
