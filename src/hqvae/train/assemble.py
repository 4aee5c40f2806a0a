"""What a training is made of, put together at step 0, saved, and put back to where it was."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hqvae.config import Config, TrainConfig
from hqvae.data import Order, Splits
from hqvae.errors import DegenerateFeatures, InputError, NonFiniteError, summary_of
from hqvae.likelihood import FittedGaussian
from hqvae.metrics import Usage
from hqvae.model import HQVAE
from hqvae.quantize import Noise
from hqvae.ranks import all_sum, broadcast
from hqvae.run import Run

for _name in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # what runs on which device is in our own first line
# Codebooks start from so many features per code, of at most so many batches, and of no more than so many samples of signals.
_ROWS, _BATCHES, _NUMBERS = 64, 16, 2**26


@dataclass
class Progress:
    """What changes from step to step beside weights and optimiser; all of it is in a checkpoint."""

    usage: list[Usage]
    step: int = 0
    validated: int = 0
    restarted: int = 0
    unit: float = 1.0  # of gradients, in those of the first step; hardening changes it
    since: float = field(default_factory=time.perf_counter)
    since_step: int = 0


@dataclass
class Training:
    """The parts of a training in progress, put together by `assemble`."""

    config: TrainConfig
    fabric: Fabric
    run: Run
    splits: Splits
    total: int
    model: HQVAE
    wrapped: Any  # what Fabric makes of the model
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau
    average: AveragedModel | None
    progress: Progress
    writer: Any = None  # of TensorBoard events, in the first process

    @property
    def first_quantized(self) -> int:
        """The step at which codebooks start; before it the autoencoder learns alone."""
        return round(self.config.unquantized * self.total)

    @property
    def first_hard(self) -> int:
        """The step from which on codes are the nearest ones for certain; the last one, where that never happens."""
        return self.total - round(self.config.hard * self.total)

    @property
    def evaluated(self) -> HQVAE:
        """The weights that are measured and saved."""
        return self.model if self.average is None else cast(HQVAE, self.average.module)


def make_fabric(config: TrainConfig, accelerator: str, devices: int, nodes: int) -> Fabric:
    strategy = "ddp" if devices * nodes > 1 else "auto"
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=config.precision, strategy=strategy)
    except Exception as error:  # Fabric raises several classes for a machine that lacks what was asked for
        raise InputError(f"accelerator={accelerator} devices={devices} nodes={nodes}: {summary_of(error)}") from error
    fabric.launch()
    return fabric


def my_parts(config: TrainConfig, rank: int, world: int) -> list[slice]:
    """Which samples of every global batch this process takes, one slice per accumulated batch."""
    size, rest = divmod(config.batch_size, world * config.accumulate)
    if rest:
        raise InputError(
            f"train.batch_size={config.batch_size} cannot be shared by {world} process(es) × {config.accumulate} accumulated batch(es); "
            f"nearest: {max(1, round(config.batch_size / world / config.accumulate)) * world * config.accumulate}"
        )
    first = rank * config.accumulate
    return [slice((first + i) * size, (first + i + 1) * size) for i in range(config.accumulate)]


def open_run(fabric: Fabric, config: Config, out: str, resume: bool, contents: Mapping[str, str]) -> Run:
    """The run's folder, made or taken up by the first process, which alone writes into it."""
    if fabric.global_rank == 0:
        run = Run.resume(out, config, contents) if resume else Run.create(out, config, contents)
    fabric.barrier()
    return run if fabric.global_rank == 0 else Run.open(out)


def assemble(fabric: Fabric, config: Config, out: str, resume: bool, splits: Splits) -> Training:
    """Weights, optimiser and schedules at step 0, features scaled on the first global batch: the same in every process."""
    settings = config.train
    items = splits["train"]
    count = len(items)
    total = settings.steps if settings.epochs is None else max(1, round(settings.epochs * count / settings.batch_size))
    torch.manual_seed(settings.seed)
    model = HQVAE(config.model)
    first = items.training_batch(*ShuffledBatches(count, settings.batch_size, settings.seed).at(0))
    try:
        model.scale_from(items.signal(first))
    except (DegenerateFeatures, NonFiniteError) as error:
        raise InputError(f"{error}; expected {items.medium.noun}s that differ from each other and within") from error
    if config.model.axes == 2:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        model.compile()
    optimizer = torch.optim.Adam(parameter_groups(model, settings), betas=(0.9, settings.beta2))
    average = None
    if settings.ema is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)).to(fabric.device)
    wrapped, optimizer = fabric.setup(model, optimizer)
    usage = [Usage(layer.quantizer.codebook_size) for layer in model.layers]
    writer_of = tensorboard_writer() if settings.tensorboard else None
    run = open_run(fabric, config, out, resume, splits.fingerprints)
    writer = writer_of(str(run.path / "tensorboard")) if writer_of and fabric.global_rank == 0 else None
    schedule, progress = make_schedule(optimizer, settings, total, isinstance(model.likelihood, FittedGaussian)), Progress(usage)
    return Training(settings, fabric, run, splits, total, model, wrapped, optimizer, schedule, average, progress, writer)


def tensorboard_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("train.tensorboard=true needs TensorBoard: pip install 'hqvae[tensorboard]'") from error
    return SummaryWriter


def parameter_groups(model: HQVAE, config: TrainConfig) -> list[dict[str, Any]]:
    """Everything at `lr`, every log s² at `lr_log_s2` times that: one scalar moves only as fast as Adam lets it."""
    scalars = [p for name, p in model.named_parameters() if name.endswith("log_s2")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("log_s2")]
    groups = [{"params": rest, "lr": config.lr}, {"params": scalars, "lr": config.lr * config.lr_log_s2}]
    return [group for group in groups if group["params"]]


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, total: int, in_nats: bool
) -> torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau:
    if config.schedule == "plateau":
        # Losses in nats may be negative, where a relative threshold turns round; mean squared errors get as small as an absolute one.
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=config.patience - 1, threshold=1e-4, threshold_mode="abs" if in_nats else "rel", eps=0.0
        )

    def rate(step: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))) if config.schedule == "cosine" else 1.0
        return min(1.0, (step + 1) / (config.warmup + 1)) * fall

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def start_codebooks(training: Training, order: ShuffledBatches) -> None:
    """Codebooks and s² (once hard, counts) from what layers are given now, on the coming global batches; the first process's for all."""
    items, model, settings, begun = training.splits["train"], training.model, training.config, time.perf_counter()
    wanted = max(_ROWS * level.codebook_size / count for level, count in zip(model.config.levels, positions(training))) / order.batch_size
    most = min(_BATCHES, order.count / order.batch_size, _NUMBERS // (order.batch_size * math.prod(items.shape)))
    steps = range(training.progress.step, training.progress.step + max(1, math.ceil(min(wanted, most))))
    x = torch.cat([items.signal(items.training_batch(*order.at(step)), training.fabric.device) for step in steps])
    at_once = order.batch_size // (training.fabric.world_size * settings.accumulate)  # what training encodes at once fits
    model.start_from(x, Noise.of(settings.seed, _START), at_once, len(steps))
    for layer in model.layers:
        for parameter in layer.quantizer.parameters():  # Adam has counted steps without a gradient: it would overshoot
            training.optimizer.state.pop(parameter, None)
        for values in layer.quantizer.state_dict().values():
            values.copy_(broadcast(values))
    if training.average is not None:
        for mine, layer in zip(training.evaluated.layers, model.layers):
            mine.quantizer.load_state_dict(layer.quantizer.state_dict())
    training.progress.since += time.perf_counter() - begun


def positions(training: Training) -> list[int]:
    """|S_r| of every level."""
    shape, levels = training.splits["train"].shape[1:], training.model.config.levels
    return [math.prod(-(-side // level.stride) for side in shape) for level in levels]


def harden(training: Training, sigma2: float | None = None) -> None:
    """Codes are the nearest ones from here on, in the model and in its average.

    The objective changes its unit, from nats to a mean squared error: with `sigma2`, the decoder's variance now, what the optimiser
    remembers follows, so that its next step is of the size of the last one.
    """
    model, settings = training.model, training.config
    gone = {id(p) for layer in model.layers for p in layer.quantizer.parameters()}
    sizes, levels = positions(training), model.config.levels
    shared = [levels[layer.level].layers if levels[layer.level].shared else 1 for layer in model.layers]
    counts = [
        settings.batch_size * sizes[layer.level] * times / layer.quantizer.codebook_size for layer, times in zip(model.layers, shared)
    ]
    for one in {training.evaluated, model}:
        one.harden(counts)
    for group in training.optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) in gone]:
            training.optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    if sigma2 is not None:
        unit = training.progress.unit = 2 * sigma2 / math.prod(training.splits["train"].shape)
        for moments in training.optimizer.state.values():
            moments["exp_avg"].mul_(unit)
            moments["exp_avg_sq"].mul_(unit**2)
    schedule = training.schedule
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        schedule.best, schedule.num_bad_epochs, schedule.threshold_mode = math.inf, 0, "rel"
    training.wrapped = training.fabric.setup_module(model)  # what DDP waits for has changed


def describe(training: Training) -> str:
    model = training.model
    layers = ", ".join(f"stride {level.stride}: {level.layers} × {level.codebook_size} codes" for level in model.config.levels)
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{model.config.quantizer.kind} [{layers}], {weights:.2f} M weights, {training.splits['train'].describe()}"


def save(training: Training) -> None:
    """A checkpoint with all that the next step depends on, and, once codebooks have started, the weights as they are evaluated."""
    fabric, progress = training.fabric, training.progress
    mine = generator_states(fabric.device)
    generators = mine.new_zeros(fabric.world_size, len(mine))
    generators[fabric.global_rank] = mine
    generators = all_sum(generators)
    counts = [all_sum(usage.counts) for usage in progress.usage]
    if fabric.global_rank == 0:
        if progress.step > training.first_quantized:  # before it nothing can be encoded
            training.run.save_model(training.evaluated)  # first: a run with its last checkpoint must have its weights
        training.run.save_checkpoint({
            "step": progress.step, "model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(),
            "schedule": training.schedule.state_dict(), "average": training.average and training.average.state_dict(),
            "usage": counts, "restarted": progress.restarted, "validated": progress.validated, "unit": progress.unit,
            "generators": generators,
        })  # fmt: skip
    fabric.barrier()


def restore(training: Training) -> None:
    """Put a training at the step of its newest checkpoint; at step 0 when it was stopped before the first."""
    state, progress = training.run.load_checkpoint(), training.progress
    if training.fabric.global_rank == 0:
        training.run.truncate_log(0 if state is None else state["step"])
    if state is None:
        return
    if state["step"] > training.first_hard:
        harden(training)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.schedule.load_state_dict(state["schedule"])
    if training.average is not None:
        training.average.load_state_dict(state["average"])
    progress.step, progress.validated, progress.restarted, progress.unit = (
        state[name] for name in ("step", "validated", "restarted", "unit")
    )
    if training.fabric.global_rank == 0:
        progress.usage[:] = [Usage(len(counts), counts) for counts in state["usage"]]
    if len(state["generators"]) == training.fabric.world_size:
        mine, on_cpu = state["generators"][training.fabric.global_rank].cpu(), len(torch.get_rng_state())
        torch.set_rng_state(mine[:on_cpu])
        if training.fabric.device.type == "cuda" and len(mine) > on_cpu:
            torch.cuda.set_rng_state(mine[on_cpu:], training.fabric.device)


def generator_states(device: torch.device) -> torch.Tensor:
    """Of torch's generators: ours is never drawn from, but a quantizer of another library may draw, on its device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)
