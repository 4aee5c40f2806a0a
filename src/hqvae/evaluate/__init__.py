"""A run and a split → distortion, rate, use and ablation of every layer; tables, JSON, pictures."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hqvae.console import scan_bars
from hqvae.data import Dataset, Splits, open_data, sequential_batches
from hqvae.doctor import findings
from hqvae.errors import InputError, NonFiniteError
from hqvae.item_codes import ItemCodes
from hqvae.measure import Measures, measure
from hqvae.metrics import IdMeasures
from hqvae.model import HQVAE
from hqvae.overrides import to_dict
from hqvae.pictures import save_pictures
from hqvae.ranks import pick_device
from hqvae.rates import measure_rates
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.trained import open_trained
from hqvae.versions import versions

from .options import EvalOptions
from .report import Report, print_report

__all__ = ["EvalOptions", "Report", "evaluate", "print_report"]

log = logging.getLogger("hqvae")


def evaluate(
    run: str,
    source: str | None = None,
    options: EvalOptions = EvalOptions(),
    accelerator: str = "auto",
) -> Report:
    """Measure a run's model on a split; write the report and pictures into the run's folder.

    Args:
        run: folder of the run
        source: data as for training; the training data when None
        options: split, batch size and more
        accelerator: auto, cpu or cuda

    Raises InputError for a run, data or split that cannot be used.
    """
    opened = open_trained(run)
    device = pick_device(accelerator)
    model = opened.load_model().to(device)
    weights = options.weights(model, run)
    config = options.data(opened.config.data, source, run)
    sides = (model.config.channels, (options.split,), model.config.axes)
    with scan_bars() as progress:
        resolved, splits = open_data(config, *sides, progress)
    data = splits[options.split]
    if config == opened.config.data:
        warn_of_change(opened, options.split, splits.fingerprints)
    model.config.spectral.check_fits(data.sample_rate, data.shape[-1])
    metrics = data.modality.metrics(resolved, device, thorough=True)
    try:
        batches = _signals(data, options, device)
        measures = measure(model, batches, data.unit, metrics, options.shuffle_items)
        again = _signals(data, options, device)
        rates = measure_rates(model, again, data.unit, weights) if weights else []
    except NonFiniteError as error:
        raise InputError(f"run {run!r} cannot be measured: {error}") from error
    read = {
        "data": to_dict(replace(opened.config, data=resolved))["data"],
        "split": options.split,
        "items": measures.items,
        "broken": len(data.broken),
    }
    protocol = {**read, **_words(data), **_model_protocol(opened, model, device)}
    measures, ids = _with_ids(measures, model, data, options)
    report = Report(measures, findings(measures, opened.config), protocol, ids, rates)
    opened.write_json("report/report.json", report.entry())
    record_left_out(opened, splits)
    save_pictures(opened, model, data, device)
    return report


def _signals(data: Dataset, options: EvalOptions, device: torch.device) -> Iterator[Tensor]:
    for batch in sequential_batches(data, options.batch_size, options.limit):
        yield data.signal(batch, device)


def _with_ids(
    measures: Measures, model: HQVAE, data: Dataset, options: EvalOptions
) -> tuple[Measures, IdMeasures | None]:
    """Of vectors, whose codes are IDs, the measures of these too."""
    if model.config.axes:
        return measures, None
    ids = ItemCodes.read(Tokenizer(model), {options.split: data}, options.limit).measures()
    figures = {**measures.figures, "own_id": ids.collisions.alone}
    return replace(measures, figures=figures), ids


def _words(data: Dataset) -> dict[str, str]:
    """What examples, points, errors and their ratio are called."""
    unit = data.unit
    words = {"noun": data.modality.example, "point": unit.point}
    return {**words, "unit": unit.name, "ratio": unit.ratio}


def record_left_out(run: Run, splits: Splits) -> None:
    """List what is broken in the report, where something is; an older list goes."""
    name = "report/left-out.jsonl"
    found = splits.left_out()
    if found:
        run.write_lines(name, found)
    else:
        (run.path / name).unlink(missing_ok=True)


def _model_protocol(run: Run, model: HQVAE, device: torch.device) -> dict[str, Any]:
    """What of the model, the machine and the programs figures depend on."""
    return {
        "device": str(device),
        "dtype": "float32",
        "posterior": model.posterior,
        "model_sha256": run.weights_sha256(),
        "versions": versions(),
    }


def warn_of_change(run: Run, split: str, fingerprints: Mapping[str, str]) -> None:
    """Say so where the run's data have changed: a split may hold what the run was trained on."""
    changed = [
        name
        for name in ("train", split)
        if run.fingerprints.get(name) not in (None, fingerprints.get(name))
    ]
    if len(changed) == 2:
        log.warning(
            "%s has changed since run %s began (%s split: %s then, %s now): some of what is "
            "measured may have been trained on; name other data to measure on",
            run.config.data.source,
            run.path,
            split,
            run.fingerprints[split],
            fingerprints.get(split),
        )
