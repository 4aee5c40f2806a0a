"""Which device something is computed on, by its name."""

import torch

from hqvae.errors import InputError, nearest_name

_ACCELERATORS = ("auto", "cpu", "cuda")


def pick_device(accelerator: str) -> torch.device:
    """The device of this name, auto being a GPU where there is one. Raises InputError for any other name, and for cuda without one."""
    if accelerator not in _ACCELERATORS:
        raise InputError(f"accelerator {accelerator!r} does not exist; {nearest_name(accelerator, _ACCELERATORS)}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("accelerator 'cuda' was asked for, but this machine has no CUDA device; expected auto or cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
