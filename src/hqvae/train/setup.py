"""`train`: data, run and task put together, then the loop."""

import logging
import math
import os
import sys
from contextlib import ExitStack
from dataclasses import replace

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from hqvae.apart import check_apart
from hqvae.config import Config, TrainConfig, check_memory, check_together
from hqvae.console import scan_bars
from hqvae.data import Progress, Splits, open_data
from hqvae.errors import InputError, summary_of
from hqvae.ranks import check_devices, gather, pick_device, rank
from hqvae.run import Run

from .autoencoder import Autoencoder
from .loop import loop
from .monitor import summary_writer_class
from .resume import check_length, say_changes
from .state import TrainState

for _name in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # our own first line says what runs where

_LEFT_OUT = "left-out.jsonl"


def train(
    config: Config,
    out: str,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> Run | None:
    """Train what `config` describes into the run folder `out`.

    Args:
        config: model, data, phases and training
        out: a new folder, or with `resume` the run to go on with
        resume: go on from the newest checkpoint, bitwise as if there had been no stop
        accelerator, devices, nodes: as Lightning Fabric takes them; several devices train by DDP

    Returns the run, or None when it was interrupted. Raises InputError for data, folder or settings
    that cannot be used, before anything is written.
    """
    check_together(config)
    fabric = make_fabric(config, accelerator, devices, nodes)
    slices = rank_slices(config.train, fabric.global_rank, fabric.world_size)
    check_folder(config, out, resume)
    with scan_bars(quiet=fabric.global_rank > 0) as progress:
        config, splits = _open(config, progress)
    check_data(config, splits, fabric.world_size)
    task = Autoencoder(config, splits, fabric, slices)
    run = open_run(fabric, config, out, resume, splits.fingerprints)
    with ExitStack() as locks:
        if fabric.global_rank == 0:
            locks.enter_context(run.locked())
        state = TrainState(task, config.train, fabric, task.total)
        if resume:
            state.restore(run)
            check_length(run.config, config, len(splits["train"]), state.step)
            if fabric.global_rank == 0 and say_changes(run, config, state.step):
                run.config = config
                run.save_config()
                locks.enter_context(run.locked())  # of the new file
        record_left_out(run, splits)
        interval = config.train.validation_interval(len(splits["train"]))
        finished = loop(task, state, config.train, run, interval)
        record_left_out(run, splits)  # not all of them are known before they are read
        return run if finished else None


def _open(config: Config, progress: Progress) -> tuple[Config, Splits]:
    """(the config with what it leaves open filled in from the data, train and validation)."""
    model = config.model
    wanted = ("train", "validation")
    data, splits = open_data(config.data, model.channels, wanted, model.axes, progress)
    if not model.channels:
        model = replace(model, channels=splits["train"].shape[0])
    config = replace(config, model=model, data=data)
    check_together(config)
    return config, splits


def check_folder(config: Config, out: str, resume: bool) -> None:
    """Raises InputError for a folder that cannot be the run's, before its data are read."""
    if resume:
        Run.check_begun(out)
        Run.open(out)
    else:
        Run.check_unused(out)
        check_apart(out, config.data.source)


def make_fabric(config: Config, accelerator: str, devices: int, nodes: int) -> Fabric:
    """Raises InputError where the machine lacks what was asked for."""
    # Before codebooks start, and once codes are the nearest ones, some parameters have no gradient:
    # DDP is not to wait for one.
    phases = config.phases.pretrain_fraction > 0 or config.phases.nearest_fraction > 0
    if config.train.tensorboard:
        summary_writer_class()
    pick_device(accelerator)
    check_devices(accelerator, devices)
    if nodes < 1:
        raise InputError(f"nodes={nodes}: expected at least 1")
    strategy = DDPStrategy(find_unused_parameters=phases) if devices * nodes > 1 else "auto"
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy
        )
    except Exception as error:  # Fabric raises several classes
        raise InputError(
            f"accelerator={accelerator} devices={devices} nodes={nodes}: {summary_of(error)}"
        ) from error
    if nodes > 1:
        assert isinstance(fabric.strategy, DDPStrategy)
        check_meeting_point(fabric.strategy, nodes)
    fabric.launch()
    return fabric


def check_meeting_point(strategy: DDPStrategy, nodes: int) -> None:
    """Say whom this machine waits for.

    Raises InputError where it could never meet the others.
    """
    alone = isinstance(strategy.cluster_environment, LightningEnvironment)
    if alone and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"nodes={nodes}: the machines have no place to meet; expected MASTER_ADDR, MASTER_PORT "
            "and NODE_RANK (0, 1 …) in the environment of each, or a start by torchrun or Slurm"
        )
    print(f"waiting for the processes of {nodes} machines", file=sys.stderr, flush=True)


def rank_slices(config: TrainConfig, rank: int, world: int) -> list[slice]:
    """Which samples of every global batch a process takes, one slice per accumulated batch.

    Raises InputError for a batch that cannot be shared so.
    """
    shares = world * config.accumulate
    size, rest = divmod(config.batch_size, shares)
    if rest:
        nearest = max(1, round(config.batch_size / world / config.accumulate)) * shares
        raise InputError(
            f"train.batch_size={config.batch_size} cannot be shared by {world} process(es) × "
            f"{config.accumulate} accumulated batch(es); nearest: {nearest}"
        )
    first = rank * config.accumulate
    return [slice((first + i) * size, (first + i + 1) * size) for i in range(config.accumulate)]


def open_run(
    fabric: Fabric, config: Config, out: str, resume: bool, fingerprints: dict[str, str]
) -> Run:
    """The run's folder, made or taken up by the first process, which alone writes into it."""
    if fabric.global_rank == 0:
        make = Run.resume if resume else Run.create
        run = make(out, config, fingerprints)
    fabric.barrier()
    return run if fabric.global_rank == 0 else Run.open(out)


def record_left_out(run: Run, splits: Splits) -> None:
    """List what any process found broken in the run's folder, beside what was listed before."""
    found = [item for of_process in gather(splits.left_out()) for item in of_process]
    if not found or rank():
        return
    known = {(item["split"], item["key"]): item for item in [*run.read_lines(_LEFT_OUT), *found]}
    run.write_lines(_LEFT_OUT, known.values())


def check_data(config: Config, splits: Splits, processes: int) -> None:
    """Raises InputError where model, data and processes do not go together."""
    train, validation = splits["train"], splits["validation"]
    batch_size = config.train.batch_size
    values = batch_size * math.prod(train.shape)
    check_memory(4 * values, f"train.batch_size={batch_size} {train.modality.example}s")
    examples = train.modality.examples(config.data)
    stride = config.model.levels[0].stride
    space = train.shape[1:]
    if space and stride > min(space):
        sides = "×".join(map(str, space))
        raise InputError(
            f"model.levels.0.stride={stride} is larger than the {examples}, "
            f"which have {sides} points; expected at most {min(space)}"
        )
    config.model.spectral.check_fits(train.sample_rate, train.shape[-1])
    validated = min(len(validation), config.train.validation_items)
    if validated < processes:
        raise InputError(
            f"{validated} validation {train.modality.noun}(s) cannot be shared by {processes} "
            "processes, which need one each; raise data.validation or train.validation_items, "
            f"or take {validated} devices"
        )
