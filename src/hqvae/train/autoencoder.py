"""The autoencoder's task: HQ-VAE and the systems it generalises.

    pretraining    latents pass as they are                           (ours)
    samples        relaxed samples of the posterior                   (HQ-VAE)
    nearest codes  the limit s² → 0, codebooks by running averages     (ours; RQ-VAE, VQ-VAE)

A phase begins in `enter`. It starts codebooks or replaces a posterior, and nothing else.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, nn

from hqvae.config import Config
from hqvae.data import (
    ShuffledBatches,
    Splits,
    sequential_batches,
    starting_signals,
    training_batches,
)
from hqvae.doctor import SILENT, findings
from hqvae.errors import DegenerateFeatures, InputError
from hqvae.likelihood import running_variance
from hqvae.measure import measure
from hqvae.metrics import Usage
from hqvae.model import HQVAE, Losses, fit_prior
from hqvae.quantize import Noise, Stream
from hqvae.ranks import all_sum, broadcast
from hqvae.run import Run

from .enough import batches_to_fit, batches_to_start
from .pictures import Reconstructions, layers_figure
from .task import Task, Validation

_SETTLING = 0.05  # share of the run, from the start of codebooks on, that raises no alarm
_SHUFFLED_ITEMS = 128  # items for the ablation of every layer, in a validation


class Autoencoder(Task[Losses]):
    """Trains an `HQVAE`.

    Args:
        config: the whole run's
        splits: train and validation
        fabric: whose devices and processes share the work
        slices: which samples of every global batch this process takes, one per accumulated batch

    Raises InputError for data that no model can be initialised on.
    """

    model: HQVAE

    def __init__(self, config: Config, splits: Splits, fabric: Fabric, slices: Sequence[slice]):
        self.config = config
        self.fabric = fabric
        self.slices = slices
        self.train_data = splits["train"]
        self.validation_data = splits["validation"]
        items = len(self.train_data)
        self.total = config.train.total_steps(items)
        self.order = ShuffledBatches(items, config.train.batch_size, config.train.seed)
        self.quantize_from = config.phases.quantize_from(self.total)
        self.nearest_from = config.phases.nearest_from(self.total)
        torch.manual_seed(config.train.seed)
        self.model = HQVAE(config.model, data=config.data)
        self.mean_sigma2 = torch.zeros((), device=fabric.device)  # 0: of no batch yet
        self.pictures = Reconstructions()
        self.clear_counters()
        if config.phases.init_scale:
            self._init_scale()
        if config.model.axes == 2:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.train.compile:
            self.model.compile()

    def _init_scale(self) -> None:
        try:
            self.model.init_scale(starting_signals(self.train_data, self.order, step=0))
        except DegenerateFeatures as error:
            noun = self.train_data.modality.noun
            wish = f"expected {noun}s that differ from each other and within"
            raise InputError(f"{error}; {wish}") from error

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything at `lr`, s² at `lr_log_s2` times that: one scalar moves slowly."""
        lr = self.config.train.lr
        scalars = [p for level in self.model.levels for p in level.quantizer.posterior.parameters()]
        known = {id(p) for p in scalars}
        rest = [p for p in self.model.parameters() if id(p) not in known and p.requires_grad]
        rates = [(rest, lr), (scalars, lr * self.config.phases.lr_log_s2)]
        return [{"params": params, "lr": rate} for params, rate in rates if params]

    def batches(self, start: int) -> Generator[list[Tensor], None, None]:
        data = self.train_data
        with closing(training_batches(data, self.order, start, self.total, self.slices)) as raw:
            for _ in range(start, self.total):
                yield [data.signal(next(raw), self.fabric.device) for _ in self.slices]

    # --------------------------------------------------------------------------- a step

    def enter(self, step: int, average: nn.Module | None) -> str | None:
        if step == self.quantize_from:
            self._start_codebooks(self.model.init_codebooks, step, average)
        if step != self.nearest_from or self.nearest_from == self.total:
            return None
        self._use_nearest(average)
        self._start_codebooks(self.model.refine_codebooks, step, average)
        fraction = self.config.phases.nearest_fraction
        return f"nearest codes from step {step} on (phases.nearest_fraction={fraction:g})"

    @torch.no_grad()
    def share(self, model: Any, batches: Sequence[Tensor], step: int) -> Tensor | None:
        """σ² of the global batch, where it is taken in parts: known only after all of them.

        The same noise makes the second pass the same, and the result is that of one large batch.
        """
        if len(batches) == 1 or not self.config.model.needs_sigma2:
            return None
        passes = [self.loss(model, batches, part, step, None) for part in range(len(batches))]
        return torch.stack([losses.sigma2 for losses in passes]).mean(0)

    def loss(
        self, model: Any, batches: Sequence[Tensor], part: int, step: int, shared: Tensor | None
    ) -> Losses:
        phases = self.config.phases
        noise = self._noise(step)._replace(samples=self.slices[part].start)
        # Our own autocast: Fabric's would round the signals themselves, which are the target too.
        mixed = self.config.train.precision == "bf16-mixed"
        with torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=mixed):
            return model(
                batches[part],
                # A tensor: a compiled model takes any.
                torch.tensor(phases.temperature.at(step, self.total)),
                noise,
                shared,
                quantize=step >= self.quantize_from,
                mean_sigma2=self.mean_sigma2 if phases.sigma2_decay else None,
            )

    @torch.no_grad()
    def after_step(self, terms: Sequence[Losses], step: int) -> None:
        """Running averages move: of σ², and of codebooks that learn by them."""
        own = terms[0].sigma2[0, 0]  # of the global batch, in each of its parts
        self.mean_sigma2 = running_variance(self.mean_sigma2, own, self.config.phases.sigma2_decay)
        if step < self.quantize_from:
            return
        z_e = [torch.cat(of_level) for of_level in zip(*[losses.z_e for losses in terms])]
        codes = [torch.cat(layer) for layer in zip(*[losses.codes for losses in terms])]
        noise = self._noise(step)._replace(samples=self.slices[0].start).fold(Stream.RESTART)
        self.restarted += self.model.update_codebooks(z_e, codes, noise)
        for usage, layer in zip(self.usage, codes):
            usage.add(layer)

    def _noise(self, step: int) -> Noise:
        return Noise.of(self.config.train.seed, step)

    # --------------------------------------------------------------------------- phases

    def _start_codebooks(self, verb: Any, step: int, average: nn.Module | None) -> None:
        """Codebooks start, or are refined, on the coming global batches.

        The first process's result is for all.
        """
        wanted = batches_to_start(self.config.model, self.train_data, self.order.batch_size)
        x = starting_signals(self.train_data, self.order, step, wanted, self.fabric.device)
        verb(x, Noise.of(self.config.train.seed).fold(Stream.INIT), self._at_once, wanted)
        for level in self.model.levels:
            for values in level.quantizer.state_dict().values():
                values.copy_(broadcast(values))
        if isinstance(average, HQVAE):
            for theirs, level in zip(average.levels, self.model.levels):
                theirs.quantizer.load_state_dict(level.quantizer.state_dict())

    def finish(self, model: nn.Module) -> None:
        assert isinstance(model, HQVAE)
        if self.config.model.prior == "learned":
            wanted = batches_to_fit(self.config.model, self.train_data, self.order.batch_size)
            x = starting_signals(self.train_data, self.order, 0, wanted, self.fabric.device)
            fit_prior(model, x, self._at_once)

    @property
    def _at_once(self) -> int:
        """Samples that are encoded together: what training encodes at once fits."""
        return self.slices[0].stop - self.slices[0].start

    def _use_nearest(self, average: nn.Module | None) -> None:
        self.model.use_nearest()
        if isinstance(average, HQVAE):
            average.use_nearest()

    # ----------------------------------------------------------------------- monitoring

    def log(self, terms: Sequence[Losses], step: int) -> tuple[dict[str, Any], str]:
        """The last batch's terms, and the use of every layer's codes since the last line.

        Of kind "pretrain" while nothing is quantized.
        """
        data = self.train_data
        perplexity = [usage.perplexity() for usage in self.usage]
        quantizes = step > self.quantize_from
        entry = {
            "kind": "train" if quantizes else "pretrain",
            **terms[-1].log(data.unit.per_unit, data.unit.square),
            "perplexity": perplexity,
            "used": [usage.used() for usage in self.usage],
            "restarted": self.restarted,
            "temperature": self.config.phases.temperature.at(step - 1, self.total),
        }
        sizes = [place.codebook_size for place in self.config.model.layers]
        layer = min(range(len(sizes)), key=lambda index: perplexity[index] / sizes[index])
        lowest = f"lowest perplexity: {perplexity[layer]:.0f} of {sizes[layer]}, layer {layer}"
        use = lowest if quantizes else "not quantized yet"
        return entry, f"{entry['bits_per_dim']:.3f} bits/dim  {entry['psnr']:.2f} dB  {use}"

    def clear_counters(self) -> None:
        self.usage: list[Usage] = [Usage(place.codebook_size) for place in self.config.model.layers]
        self.restarted = 0

    def validate(self, model: nn.Module, step: int) -> Validation | None:
        """Measures on validation items, an alarm for every layer that fails, and figures."""
        assert isinstance(model, HQVAE)
        if not self.can_save(step):
            return None
        data = self.validation_data
        world_size = self.fabric.world_size
        at_once = max(1, self.config.train.batch_size // world_size)
        limit = self.config.train.validation_items
        batches = sequential_batches(data, at_once, limit, self.fabric.global_rank, world_size)
        device = self.fabric.device
        signals = (data.signal(batch, device) for batch in batches)
        metrics = data.modality.metrics(data.config, device)
        measures = measure(model, signals, data.unit, metrics, _SHUFFLED_ITEMS)
        perplexities = [
            f"{layer.perplexity:.0f}/{layer.codebook_size}" for layer in measures.layers
        ]
        settled = step == self.total or step - self.quantize_from > _SETTLING * self.total
        found = findings(measures, self.config) if settled else []
        validation = Validation(
            loss=measures.loss,
            entry=measures.entry(),
            summary=(
                f"{data.unit.ratio} {measures.psnr:.2f} dB, {measures.bits_per_dim:.3f} bits/dim, "
                f"perplexity {' '.join(perplexities)}"
            ),
            alarms=[finding.entry() for finding in found if finding.kind != SILENT],
            figures={"training-reconstructions.png": self.pictures.add(model, data, step, device)},
        )
        self.model.train()
        return validation

    def history(self, entries: Sequence[dict[str, Any]]) -> dict[str, Figure]:
        """How every layer fared so far."""
        if not entries:
            return {}
        figure = layers_figure(self.config.model, self.train_data.shape[1:], entries)
        return {"training-layers.png": figure}

    # ---------------------------------------------------------------------- checkpoints

    def can_save(self, step: int) -> bool:
        """Only once codebooks have started: before it nothing can be encoded."""
        return step > self.quantize_from

    def save_weights(self, run: Run, model: nn.Module) -> None:
        assert isinstance(model, HQVAE)
        run.save_model(model)

    def state(self) -> dict[str, Any]:
        return {
            "posterior": self.model.posterior,
            "mean_sigma2": self.mean_sigma2.cpu(),
            "pictures": self.pictures.rows,
            "usage": [all_sum(usage.counts) for usage in self.usage],
            "restarted": self.restarted,
        }

    def load_state(self, state: dict[str, Any], average: nn.Module | None) -> None:
        if state["posterior"] != self.model.posterior:
            self._use_nearest(average)
        self.mean_sigma2 = state["mean_sigma2"].to(self.fabric.device)
        self.pictures.rows = state["pictures"]
        if self.fabric.global_rank == 0:
            self.usage = [Usage(len(counts), counts) for counts in state["usage"]]
        self.restarted = state["restarted"]

    def describe(self) -> str:
        config = self.config.model
        levels = ", ".join(
            f"stride {level.stride}: {level.layers} × {level.codebook_size} codes"
            for level in config.levels
        )
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        data = f"{self.train_data.describe()} (validation: {len(self.validation_data)})"
        return f"{config.quantizer.kind} [{levels}], {millions:.2f} M weights, {data}"
