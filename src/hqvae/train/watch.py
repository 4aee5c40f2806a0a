"""What is said while training: log lines, validation with alarms, pictures, TensorBoard events."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from hqvae.console import ProgressBar
from hqvae.data import in_order
from hqvae.figures import image_grid, layer_history
from hqvae.measure import Measures, findings, measure
from hqvae.metrics import Usage
from hqvae.model import Elbo

from .assemble import Training

_PICTURES, _SPECTRA = 8, 2


def log_step(training: Training, outs: Sequence[Elbo], temperature: float, screen: ProgressBar) -> None:
    """One line of the log: the last batch's terms, and the use of every layer's codes since the last line.

    Of kind "train", or "alone" while the autoencoder learns alone: figures of codes are then of none.
    """
    progress, fabric = training.progress, training.fabric
    perplexity = [usage.perplexity() for usage in progress.usage]
    used = [usage.used() for usage in progress.usage]
    images = (progress.step - progress.since_step) * training.config.batch_size
    items = training.splits["train"]
    entry = {
        "kind": "train" if any(used) else "alone", "step": progress.step, **outs[-1].log(items.unit.per_unit),
        "perplexity": perplexity, "used": used,
        "restarted": progress.restarted, "temperature": temperature, "lr": training.optimizer.param_groups[0]["lr"],
        "images_per_second": images / (time.perf_counter() - progress.since),
    }  # fmt: skip
    share, worst = min((u / usage.counts.numel(), i) for i, (u, usage) in enumerate(zip(used, progress.usage)))
    use = f"worst use: layer {worst} {share:.0%}" if any(used) else "not quantized yet"
    screen.update(progress.step, f"{entry['bits_per_dim']:.3f} bits/dim  {entry['psnr']:.2f} dB  "
                f"{entry['images_per_second']:.0f} {items.medium.noun}s/s  {use}")  # fmt: skip
    if fabric.global_rank == 0:
        training.run.log(entry)
        write_tensorboard(training, entry)
    progress.usage[:] = [Usage(usage.counts.numel()) for usage in progress.usage]
    progress.since, progress.since_step, progress.restarted = time.perf_counter(), progress.step, 0


def validate(training: Training, screen: ProgressBar) -> None:
    """Measure on validation images; log it, with an alarm for every layer that collapsed or carries nothing; refresh the pictures."""
    fabric, config, run, step = training.fabric, training.config, training.run, training.progress.step
    start = training.first_quantized
    if step <= start:
        screen.print(f"no validation at step {step}: the autoencoder learns alone to step {start}, nothing is quantized yet")
        return
    items, size = training.splits["validation"], max(1, config.batch_size // fabric.world_size)
    started = time.perf_counter()
    batches = sequential_batches(items, size, config.validation_images, fabric.global_rank, fabric.world_size)
    measures = measure(training.evaluated, (items.signal(b, fabric.device) for b in batches), items.unit, shuffle_images=128)
    if isinstance(training.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        training.schedule.step(measures.loss)
    if fabric.global_rank == 0:
        run.log({"kind": "validation", "step": step, **asdict(measures)})
        screen.print(f"validation at step {step}: PSNR {measures.psnr:.2f} dB, {measures.bits_per_dim:.3f} bits/dim, "
                   f"perplexity {' '.join(f'{layer.perplexity:.0f}/{layer.codebook_size}' for layer in measures.layers)}")  # fmt: skip
        known = {(entry["layer"], entry["finding"]) for entry in run.entries("alarm") if entry["step"] == training.progress.validated}
        for finding in findings(measures, run.config.model):
            run.log(
                {
                    "kind": "alarm",
                    "step": step,
                    "finding": finding.kind,
                    "layer": finding.layer,
                    "what": finding.what,
                    "advice": finding.advice,
                }
            )
            if (finding.layer, finding.kind) not in known:  # the log has every alarm, the screen those that are new
                screen.print(f"ALARM {finding.layer} {finding.kind}: {finding.what}. {finding.advice}")
        refresh_pictures(training, measures)
    training.progress.validated = step
    training.model.train()
    training.progress.since += time.perf_counter() - started  # the speed that is logged is that of training


def refresh_pictures(training: Training, measures: Measures) -> None:
    items, model = training.splits["validation"], training.evaluated
    count = _SPECTRA if items.modality.spectra else _PICTURES
    x = items.signal(examples_for_figure(items, count), training.fabric.device)
    with torch.no_grad():
        rows = [("original", items.picture(x)), (f"step {training.progress.step}", items.picture(model(x).reconstruction))]
    training.run.save_figure("training-reconstructions.png", image_grid(rows, spectra=items.form.per_second is not None))
    entries = training.run.entries("train")
    if entries:
        layers = measures.layers
        figure = layer_history(
            entries, [layer.name for layer in layers], [layer.codebook_size for layer in layers], [layer.positions for layer in layers]
        )
        training.run.save_figure("training-layers.png", figure)


def write_tensorboard(training: Training, entry: dict[str, Any]) -> None:
    if training.writer is None:
        return
    for name, value in entry.items():
        for index, number in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(number, int | float) and name != "step":
                training.writer.add_scalar(f"{name}/{index}" if isinstance(value, list) else name, number, entry["step"])
    training.writer.flush()
