"""Values as files store them ↔ signals in [−1, 1]."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

_SCALE_AND_SHIFT = {torch.uint8: (127.5, -1.0), torch.int16: (32768.0, 0.0)}


def to_signal(
    raw: Shaped[Tensor, "B C *S"], device: torch.device | str = "cpu"
) -> Float[Tensor, "B C *S"]:
    """uint8 0 … 255 or int16 −32768 … 32767 → float −1 … 1, on the device.

    >>> to_signal(torch.tensor([[[0, 51, 255]]], dtype=torch.uint8))
    tensor([[[-1.0000, -0.6000,  1.0000]]])
    """
    divisor, shift = _SCALE_AND_SHIFT[raw.dtype]
    values = raw.to(device, non_blocking=True).float()
    # A GPU multiplies by the reciprocal of a plain number, which rounds in another way.
    return values.div_(torch.tensor(divisor, device=values.device)).add_(shift)


def to_pixels(signal: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    """Float −1 … 1, clipped, → uint8 0 … 255 on the CPU: the way back from `to_signal`.

    >>> to_pixels(torch.tensor([-1.5, -0.6, 1.0]))
    tensor([  0,  51, 255], dtype=torch.uint8)
    """
    return ((signal.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
