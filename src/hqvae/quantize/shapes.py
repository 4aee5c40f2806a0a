"""What a stack of layers refuses: sizes that it cannot have, and tensors that do not fit it."""

from torch import Tensor


def check_positive(**counts: int) -> None:
    """Raises ValueError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1")


def check_layers(codes: Tensor, layers: int) -> None:
    """Raises ValueError for codes of more layers than there are, or of none."""
    if codes.ndim < 2 or not 1 <= codes.shape[1] <= layers:
        raise ValueError(f"codes of shape {list(codes.shape)}; expected [B, 1 to {layers}, *S]")


def check_width(z_e: Tensor, dim: int) -> None:
    """Raises ValueError for latents of another width."""
    if z_e.ndim < 2 or z_e.shape[1] != dim:
        raise ValueError(f"z_e has shape {list(z_e.shape)}; this quantizer expects [B, {dim}, *S]")
