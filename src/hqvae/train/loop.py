"""The one loop, in the open. It knows a task, not what the task trains.

    every step: phase → loss of the global batch → backward → optimiser → what moves beside it → log

On Lightning Fabric, so that the same lines run on a CPU, a GPU, many GPUs and many nodes. Noise and
data order are functions of (seed, step), never of a generator's state or of the number of
processes.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from hqvae.config import TrainConfig
from hqvae.errors import DegenerateFeatures, InputError, NonFiniteError
from hqvae.ranks import all_sum
from hqvae.run import Run

from .monitor import Monitor
from .state import TrainState
from .task import Task, Terms


def loop(task: Task, state: TrainState, config: TrainConfig, run: Run, interval: int) -> bool:
    """From the step where the state stands to the last one; False when asked to stop before.

    `interval` is the number of steps between validations.
    """
    with (
        closing(task.batches(state.step)) as batches,
        interruptible() as stop,
        Monitor(run, state, config) as monitor,
    ):
        monitor.say(f"{task.describe()} → {run.path}")
        state.timer.restart(state.step)
        while state.step < state.total:
            try:
                entered = _timed(state, lambda: task.enter(state.step, state.average_module))
                if entered:
                    monitor.say(entered)
                parts = next(batches)
                terms = backward(task, state, parts)
            except (NonFiniteError, DegenerateFeatures) as error:
                raise divergence_error(str(error), state.step + 1) from error
            optimizer_step(state, config.clip)
            task.after_step(terms, state.step)
            state.advance()
            monitor.advance()

            last = state.step == state.total
            validates = last or state.step % interval == 0
            logs = last or state.step % config.log_every == 0
            if logs or validates:
                check_finite(task, terms, state.step)
            if logs:
                monitor.log(*task.log(terms, state.step))
                task.clear_counters()
                state.timer.restart(state.step)
            if validates:
                _timed(state, lambda: validate(task, state, monitor))
                _timed(state, lambda: state.save(run))
            if not last and stop.requested_on_any_rank(state.fabric):
                check_finite(task, terms, state.step)
                state.save(run)
                monitor.stopped(task.can_save(state.step))
                return False
    return True


def validate(task: Task, state: TrainState, monitor: Monitor) -> None:
    """Measure the weights that would be saved; tell the schedule and the monitor.

    The last ones are finished before.
    """
    if state.step == state.total:
        monitor.working("finishing")
        task.finish(state.eval_model)
    monitor.working("validating")
    validation = task.validate(state.eval_model, state.step)
    if validation is not None:
        state.watch_loss(validation.loss)
        monitor.validation(validation)
        state.validated = state.step


def backward(task: Task, state: TrainState, batches: Sequence[Tensor]) -> list[Any]:
    """Gradients of the global batch's objective, over all processes and accumulated batches."""
    count = len(batches)
    shared = task.share(state.model, batches, state.step)
    terms = []
    for part in range(count):
        with state.fabric.no_backward_sync(state.model, enabled=part < count - 1):
            of_part = task.loss(state.model, batches, part, state.step, shared)
            state.fabric.backward(of_part.loss / count)
        terms.append(of_part)
    return terms


def optimizer_step(state: TrainState, clip: float | None) -> None:
    """The optimiser's step, on the gradients that are there."""
    if clip is not None:
        state.fabric.clip_gradients(
            state.model, state.optimizer, max_norm=clip, error_if_nonfinite=False
        )
    state.optimizer.step()
    state.optimizer.zero_grad()


def check_finite(task: Task, terms: Sequence[Terms], step: int) -> None:
    """Raises InputError when the loss, or a weight since, is not finite.

    Asked before anything that cannot be used is saved.
    """
    loss = float(torch.stack([part.loss.detach() for part in terms]).mean())
    if not math.isfinite(loss):
        raise divergence_error(f"the loss is {loss}", step)
    weights = [w for w in task.model.state_dict().values() if w.is_floating_point()]
    if not bool(torch.stack([w.isfinite().all() for w in weights]).all()):
        raise divergence_error("weights are not finite", step)


def divergence_error(what: str, step: int) -> InputError:
    return InputError(
        f"{what} at step {step}; "
        "start again in another folder with a lower train.lr, or with train.clip=1"
    )


def _timed(state: TrainState, work: Any) -> Any:
    """The result of `work`, whose time is left out of the speed of training."""
    began = time.perf_counter()
    result = work()
    state.timer.leave_out(time.perf_counter() - began)
    return result


class Stop:
    """Whether somebody asked to stop."""

    requested = False

    def requested_on_any_rank(self, fabric: Fabric) -> bool:
        """All processes must stop at the same step: the others would wait for gradients."""
        if fabric.world_size == 1:
            return self.requested
        return bool(all_sum(torch.tensor(int(self.requested), device=fabric.device)))


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM finish the step and write a checkpoint; a second one stops at once."""
    stop = Stop()

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
