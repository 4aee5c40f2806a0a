"""TrainState: step, optimiser, schedule and average of the weights; saved and put back."""

import math
import time
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hqvae.checkpoints import UNFIT
from hqvae.config import TrainConfig
from hqvae.errors import InputError, summary_of
from hqvae.ranks import all_sum
from hqvae.run import Run

from .task import Task


class TrainState:
    """What changes from step to step beside what the task keeps. Made at step 0.

    Attributes:
        model: the task's model as Fabric wraps it
        total: steps of the run
        validated: step of the last validation
        timer: when the steps since the last log line began
    """

    def __init__(self, task: Task, config: TrainConfig, fabric: Fabric, total: int):
        self.task = task
        self.fabric = fabric
        self.total = total
        self.step = 0
        self.validated = 0
        self.timer = Timer()
        optimizer = torch.optim.Adam(task.parameter_groups(), betas=(config.beta1, config.beta2))
        self.average: AveragedModel | None = None
        if config.weight_ema is not None:
            decay = get_ema_multi_avg_fn(config.weight_ema)
            self.average = AveragedModel(task.model, multi_avg_fn=decay).to(fabric.device)
        self.model, self.optimizer = fabric.setup(task.model, optimizer)
        self.schedule = make_schedule(self.optimizer, config, total)

    @property
    def average_module(self) -> nn.Module | None:
        return None if self.average is None else self.average.module

    @property
    def eval_model(self) -> nn.Module:
        """The weights that are measured and saved."""
        return self.task.model if self.average is None else self.average.module

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def advance(self) -> None:
        """A step is done."""
        if isinstance(self.schedule, LambdaLR):
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.task.model)
        self.step += 1

    def watch_loss(self, validation_loss: float) -> None:
        """Tell a plateau schedule the validation loss."""
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(validation_loss)

    # ----------------------------------------------------------------------- checkpoints

    def save(self, run: Run) -> None:
        """A checkpoint with all that the next step depends on, and the weights where of use."""
        own = _generator_states(self.fabric.device)
        generators = own.new_zeros(self.fabric.world_size, len(own))
        generators[self.fabric.global_rank] = own
        generators = all_sum(generators)
        task_state = self.task.state()
        if self.fabric.global_rank == 0:
            has_weights = self.task.can_save(self.step)
            if has_weights:  # first: a finished run must have its weights
                self.task.save_weights(run, self.eval_model)
            run.save_checkpoint(
                {
                    "step": self.step,
                    "validated": self.validated,
                    "has_weights": has_weights,
                    "task": task_state,
                    "model": self.task.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "average": self.average and self.average.state_dict(),
                    "generators": generators,
                }
            )
        self.fabric.barrier()

    def restore(self, run: Run) -> None:
        """Go to the newest checkpoint; stay at step 0 where there is none.

        Raises InputError for a checkpoint of something else.
        """
        saved = run.load_checkpoint()
        try:
            if saved is not None:
                self._load(saved)
        except UNFIT as error:
            raise InputError(
                f"the newest checkpoint of run {str(run.path)!r} does not fit its config "
                f"({summary_of(error)}); delete it to go on from the one before it"
            ) from error
        if self.fabric.global_rank == 0:
            run.truncate_log(self.step)

    def _load(self, saved: dict[str, Any]) -> None:
        self.task.load_state(saved["task"], self.average_module)
        self.task.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step = saved["step"]
        self.validated = saved["validated"]
        _restore_generators(saved["generators"], self.fabric)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, total: int
) -> LRScheduler | ReduceLROnPlateau:
    if config.schedule == "plateau":
        # Any fall counts. Losses in nats may be negative, where a relative threshold would turn
        # round; of a mean squared error an absolute one may be more than is left.
        return ReduceLROnPlateau(
            optimizer, factor=0.5, patience=config.patience, threshold=0.0, eps=0.0
        )

    def rate(step: int) -> float:
        warmup = min(1.0, (step + 1) / (config.warmup + 1))
        if config.schedule == "constant":
            return warmup
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    return LambdaLR(optimizer, rate)


class Timer:
    """Seconds of training since the last log line, without those of validation."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        self.began = time.perf_counter()
        self.first_step = step

    def leave_out(self, seconds: float) -> None:
        self.began += seconds

    def rate(self, step: int) -> float:
        """Steps per second."""
        return (step - self.first_step) / max(time.perf_counter() - self.began, 1e-9)


def _generator_states(device: torch.device) -> torch.Tensor:
    """Of torch's generators.

    Ours are never drawn from, but a module of another library may draw, on its device.
    """
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _restore_generators(generators: torch.Tensor, fabric: Fabric) -> None:
    if len(generators) != fabric.world_size:
        return
    # A copy: torch reads a state from the start of its memory, wherever a view of it begins.
    own = generators[fabric.global_rank].cpu().clone()
    on_cpu = len(torch.get_rng_state())
    torch.set_rng_state(own[:on_cpu])
    if fabric.device.type == "cuda" and len(own) > on_cpu:
        torch.cuda.set_rng_state(own[on_cpu:].clone(), fabric.device)
