"""Where computation runs: the device by its name, and sums and copies over processes.

With one process, sums and copies are the identity. The process group is asked for at every call,
never cached: a module built before the group exists must still be right after it.
"""

import logging
import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hqvae.errors import InputError, nearest_name

T = TypeVar("T")
_ACCELERATORS = ("auto", "cpu", "cuda")


def pick_device(accelerator: str) -> torch.device:
    """The device of this name; `auto` is a GPU where there is one.

    Raises InputError for a name that does not exist, and for `cuda` without a GPU.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if accelerator not in _ACCELERATORS:
        nearest = nearest_name(accelerator, _ACCELERATORS)
        raise InputError(f"accelerator {accelerator!r} does not exist; {nearest}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "accelerator 'cuda' was asked for, but this machine has no CUDA device; "
            "expected auto or cpu"
        )
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def warn(message: str, *values: object) -> None:
    """A warning that all processes have reason for, by the first one alone."""
    if rank() == 0:
        logging.getLogger("hqvae").warning(message, *values)


def check_devices(accelerator: str, devices: int) -> None:
    """Raises InputError for more devices than there are, each of which would have a process."""
    gpus = 0 if accelerator == "cpu" else torch.cuda.device_count()
    present = gpus or os.cpu_count() or 1
    if not 1 <= devices <= present:
        noun = "GPUs" if gpus else "cores"
        raise InputError(f"devices={devices}: expected 1 to {present}, the {noun} of this machine")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _copy_to_send(values: Tensor) -> Tensor:
    # NCCL sends from GPUs only: values that are kept on the CPU visit one.
    device = "cuda" if dist.get_backend() == "nccl" else values.device
    return values.detach().to(device, copy=True)


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, without gradient; `values` itself is unchanged."""
    if world_size() == 1:
        return values.detach().clone()
    total = _copy_to_send(values)
    dist.all_reduce(total)
    return total.to(values.device)


def all_mean(values: Tensor) -> Tensor:
    """The mean of the equally shaped `values` over all processes, without gradient."""
    return all_sum(values) / world_size()


def broadcast(values: Tensor) -> Tensor:
    """The first process's `values` in every process, without gradient."""
    if world_size() == 1:
        return values.detach().clone()
    sent = _copy_to_send(values)
    dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, 0)
    return sent.to(values.device)


def gather(value: T) -> list[T]:
    """Every process's plain value, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def rows_before_mine(rows: int, device: torch.device) -> tuple[int, int]:
    """(rows held by the processes before this one, rows of all processes)."""
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = rows
    counts = all_sum(counts)
    return int(counts[: rank()].sum()), int(counts.sum())
