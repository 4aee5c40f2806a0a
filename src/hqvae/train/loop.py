"""The one loop, in the open.

    for every step: gradients of the global batch's objective → optimiser → codebooks that move by averages → log

On Lightning Fabric, so that the same lines run on a CPU, a GPU, many GPUs and many nodes. Noise and data order are functions of
(seed, step), never of a generator's state or of the number of processes.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from hqvae.config import Config, refuse_contradictions
from hqvae.console import ProgressBar
from hqvae.data import Order, SoundConfig, Splits, open_data, training_batches
from hqvae.errors import DegenerateFeatures, InputError, NonFiniteError
from hqvae.likelihood import MeanSquare
from hqvae.objective import Elbo
from hqvae.quantize import Noise, Stream
from hqvae.ranks import all_sum
from hqvae.run import Run

from .assemble import (
    Training,
    assemble,
    describe,
    harden,
    make_fabric,
    my_parts,
    restore,
    save,
    start_codebooks,
)
from .watch import log_step, validate



def train(config: Config, out: str, resume: bool = False, accelerator: str = "auto", devices: int = 1, nodes: int = 1) -> Run | None:
    """Train the model that `config` describes into the run folder `out`; returns the run, or None when it was interrupted.

    Args:
        config: model, data and training
        out: a new folder, or with `resume` the folder of a run with this config
        resume: go on from the newest checkpoint, bitwise as if there had been no stop
        accelerator, devices, nodes: as Lightning Fabric takes them; several devices train by DDP

    Raises InputError for data, folder or settings that cannot be used, before anything is written.
    """
    refuse_contradictions(config)
    fabric = make_fabric(config.train, accelerator, devices, nodes)
    parts = my_parts(config.train, fabric.global_rank, fabric.world_size)
    if not resume:
        Run.check_unused(out)
    data, splits = open_data(config.data, config.model.channels, ("train", "validation"), config.model.axes)
    config = replace(config, data=data)
    refuse_unfit(config, splits, fabric.world_size)
    training = assemble(fabric, config, out, resume, splits)
    with training.run.locked() if fabric.global_rank == 0 else nullcontext():
        if resume:
            restore(training)
        return training.run if loop(training, config, parts) else None


def refuse_unfit(config: Config, splits: Splits, processes: int) -> None:
    """Raises InputError where model, data and processes do not go together."""
    stride, shape, noun = config.model.levels[0].stride, splits["train"].shape[1:], splits["train"].modality.example
    if stride > min(shape):
        sides = "×".join(map(str, shape))
        raise InputError(
            f"model.levels.0.stride={stride} is larger than the {noun}s, which have {sides} points; expected at most {min(shape)}"
        )
    if splits["train"].sample_rate is not None:
        config.model.spectral.refuse_unfit(splits["train"].sample_rate, shape[-1])
    validated = min(len(splits["validation"]), config.train.validation_images)
    if validated < processes:
        raise InputError(
            f"{validated} validation {noun}(s) cannot be shared by {processes} processes, which need one each; "
            f"raise data.validation or train.validation_images, or take --devices {validated}"
        )


def loop(training: Training, config: Config, parts: Sequence[slice]) -> bool:
    """From the step where the training stands to the last one; False when it was asked to stop before."""
    fabric, items = training.fabric, training.splits["train"]
    order = ShuffledBatches(len(items), config.train.batch_size, config.train.seed)
    progress, total = training.progress, training.total
    batches = training_batches(items, order, progress.step, total, parts)
    with interruptible() as stop, ProgressBar(total, progress.step, quiet=fabric.global_rank > 0) as screen:
        screen.print(f"{describe(training)} → {training.run.path}")
        progress.since, progress.since_step = time.perf_counter(), progress.step
        while progress.step < total:
            # A tensor: a compiled model takes any.
            temperature = torch.tensor(config.train.temperature.at(progress.step / total))
            noise, quantized = Noise.of(config.train.seed, progress.step), progress.step >= training.first_quantized
            noises = [noise._replace(samples=part.start) for part in parts]
            signals = [items.signal(next(batches), fabric.device) for _ in parts]
            try:
                if progress.step == training.first_quantized:
                    start_codebooks(training, order)
                if progress.step == training.first_hard:
                    harden(training, float(global_sigma2(training, signals, temperature, noises, quantized)[0]))
                    start_codebooks(training, order)
                    screen.print(f"codes are the nearest ones from step {progress.step} on (train.hard={training.config.hard:g})")
                outs = gradients(training, signals, temperature, noises, quantized)
            except (DegenerateFeatures, NonFiniteError) as error:
                raise broken(str(error), progress.step + 1) from error
            descend(training)
            if quantized:
                update_codebooks(training, outs, noise.fold(Stream.RESTART))
            if training.average is not None:
                training.average.update_parameters(training.model)
            progress.step += 1
            screen.advance_to(progress.step)
            validated = progress.step % config.train.validate_every == 0 or progress.step == total
            if progress.step % config.train.log_every == 0 or validated:
                refuse_broken(training, outs)
            if progress.step % config.train.log_every == 0 or progress.step == total:
                log_step(training, outs, float(temperature), screen)
            if validated:
                validate(training, screen)
                save(training)
            if stop.asked_anywhere(fabric) and progress.step < total:
                refuse_broken(training, outs)
                save(training)
                unstarted = ", and codebooks have not started yet" if progress.step <= training.first_quantized else ""
                screen.print(f"stopped at step {progress.step} of {total}{unstarted}; the same command with --resume goes on from there")
                return False
    return True


def gradients(
    training: Training, signals: Sequence[Tensor], temperature: Tensor, noises: Sequence[Noise], quantized: bool = True
) -> list[Elbo]:
    """Gradients of the global batch's objective, over all processes and accumulated batches.

    With several accumulated batches σ² is only known after all of them: a first pass without gradients finds it, the same noise
    makes the second pass the same, and the result is that of one large batch. A mean squared error alone needs no σ².
    """
    fabric, count, sigma2 = training.fabric, len(signals), None
    if count > 1 and (not isinstance(training.model.likelihood, MeanSquare) or training.model.config.progressive):
        sigma2 = global_sigma2(training, signals, temperature, noises, quantized)
    outs = []
    for index, (x, noise) in enumerate(zip(signals, noises)):
        with fabric.no_backward_sync(training.wrapped, enabled=index < count - 1):
            out = training.wrapped(x, temperature, noise, sigma2, quantized=quantized)
            fabric.backward(out.loss / count)
        outs.append(out)
    return outs


@torch.no_grad()
def global_sigma2(training: Training, signals: Sequence[Tensor], temperature: Tensor, noises: Sequence[Noise], quantized: bool) -> Tensor:
    """`Elbo.sigma2` of the global batch, from a pass without gradients."""
    return torch.stack([training.wrapped(x, temperature, n, quantized=quantized).sigma2 for x, n in zip(signals, noises)]).mean(0)


def refuse_broken(training: Training, outs: Sequence[Elbo]) -> None:
    """Raises InputError when the loss, or a weight since, is not finite: before anything that cannot be used is saved."""
    loss, step = float(torch.stack([out.loss.detach() for out in outs]).mean()), training.progress.step
    if not math.isfinite(loss):
        raise broken(f"the loss is {loss}", step)
    weights = [values for values in training.model.state_dict().values() if values.is_floating_point()]
    if not bool(torch.stack([values.isfinite().all() for values in weights]).all()):
        raise broken("weights are not finite", step)


def broken(what: str, step: int) -> InputError:
    return InputError(f"{what} at step {step}; start again in another folder with a lower train.lr, or with train.clip=1")


def descend(training: Training) -> None:
    """The optimiser's and the schedule's step, on the gradients that are there."""
    if training.config.clip is not None:
        clip, wrapped = training.config.clip * training.progress.unit, training.wrapped
        training.fabric.clip_gradients(wrapped, training.optimizer, max_norm=clip, error_if_nonfinite=False)
    schedule = training.schedule
    training.optimizer.step()
    training.optimizer.zero_grad()
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        schedule.step()


def update_codebooks(training: Training, outs: Sequence[Elbo], noise: Noise) -> None:
    layers = range(len(training.model.layers))
    z_e = [torch.cat([out.z_e[i] for out in outs]) for i in layers]
    codes = [torch.cat([out.codes[i] for out in outs]) for i in layers]
    training.progress.restarted += training.model.update(z_e, codes, noise)
    for usage, chosen in zip(training.progress.usage, codes):
        usage.add(chosen)


class Stop:
    """Whether somebody asked to stop."""

    asked = False

    def asked_anywhere(self, fabric: Fabric) -> bool:
        """All processes must stop at the same step, or the others would wait for the first one's gradients for ever."""
        if fabric.world_size == 1:
            return self.asked
        return bool(all_sum(torch.tensor(int(self.asked), device=fabric.device)))


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Ctrl-C and a polite kill finish the step and write a checkpoint; a second Ctrl-C stops at once."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
