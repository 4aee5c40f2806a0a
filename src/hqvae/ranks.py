"""Sums and copies over the processes of a distributed run; with one process, the identity.

Asked at every call, never cached: a module built before the process group exists must still be right after it.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _copy_to_send(values: Tensor) -> Tensor:
    # NCCL sends from GPUs only; what is kept on the CPU visits one.
    return values.detach().to("cuda" if dist.get_backend() == "nccl" else values.device, copy=True)


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, without gradient; `values` itself stays as it was."""
    if world_size() == 1:
        return values.detach().clone()
    total = _copy_to_send(values)
    dist.all_reduce(total)
    return total.to(values.device)


def all_mean(values: Tensor) -> Tensor:
    """The mean of the equally shaped `values` over all processes, without gradient."""
    return all_sum(values) / world_size()


def from_first(values: Tensor) -> Tensor:
    """The first process's `values` in every process, without gradient."""
    if world_size() == 1:
        return values.detach().clone()
    sent = _copy_to_send(values)
    dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, 0)
    return sent.to(values.device)


def rows_before_mine(rows: int, device: torch.device) -> tuple[int, int]:
    """(rows held by the processes before this one, rows of all processes)."""
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = rows
    counts = all_sum(counts)
    return int(counts[: rank()].sum()), int(counts.sum())
