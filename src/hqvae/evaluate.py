"""A run and a split → distortion, rate, use and ablation of every layer; tables, JSON, pictures."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError

from hqvae.config import check_data
from hqvae.console import print_table, scan_bars
from hqvae.data import SPLITS, DataConfig, Dataset, Splits, open_data, sequential_batches
from hqvae.doctor import Finding, findings
from hqvae.errors import InputError, NonFiniteError, nearest_name
from hqvae.item_codes import ItemCodes, print_ids
from hqvae.measure import LayerMeasures, Measures, measure
from hqvae.metrics import IdMeasures
from hqvae.model import HQVAE
from hqvae.overrides import explain, to_dict
from hqvae.pictures import save_pictures
from hqvae.ranks import pick_device
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.trained import open_trained
from hqvae.versions import versions

log = logging.getLogger("hqvae")


@dataclass(frozen=True)
class Report:
    """What `evaluate` found and how: `protocol` names everything the numbers depend on."""

    measures: Measures
    findings: list[Finding]
    protocol: dict[str, Any]
    ids: IdMeasures | None = None
    """Of vectors, whose codes are their IDs."""

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "measures": self.measures.entry(),
            "findings": [asdict(finding) for finding in self.findings],
            "protocol": self.protocol,
            **({} if self.ids is None else {"ids": self.ids.entry()}),
        }


@dataclass(frozen=True)
class EvalOptions:
    """What of the data is measured, and how it is read.

    split: train, validation or test
    batch_size: examples at a time; no number depends on it beyond rounding
    limit: at most so many of them
    size: side of the images; that of the training when None
    seconds: length of the segments that tile each audio file; that of the training when None
    shuffle_items: examples used for the ablation of every layer

    Raises InputError for what cannot be.
    """

    split: str = "test"
    batch_size: int = 64
    limit: int | None = None
    size: int | None = None
    seconds: float | None = None
    shuffle_items: int = 1000

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(
                f"split {self.split!r} does not exist; {nearest_name(self.split, SPLITS)}"
            )
        for name in ("batch_size", "limit", "size", "shuffle_items"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name}={count}: expected at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InputError(f"seconds={self.seconds}: expected a number above 0")

    def data(self, trained: DataConfig, source: str | None, run: str) -> DataConfig:
        """The data to measure on. Raises InputError for a size of audio, or seconds of images."""
        modality = trained.modality
        changes: dict[str, Any] = {} if source is None else {"source": source}
        for name, value in {"size": self.size, "seconds": self.seconds}.items():
            if value is None:
                continue
            if name not in modality.evaluation_options:
                raise InputError(
                    f"{name}={value:g}: run {run!r} is of {modality.noun}s, which have none"
                )
            changes[name] = value
        try:
            data = replace(trained, **changes)
        except ValidationError as error:
            raise InputError(explain(error, type(trained))) from error
        check_data(data)
        return data


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
    config = options.data(opened.config.data, source, run)
    with scan_bars() as progress:
        resolved, splits = open_data(
            config, model.config.channels, (options.split,), model.config.axes, progress
        )
    data = splits[options.split]
    if config == opened.config.data:
        warn_of_change(opened, options.split, splits.fingerprints)
    model.config.spectral.check_fits(data.sample_rate, data.shape[-1])
    raw = sequential_batches(data, options.batch_size, options.limit)
    batches = (data.signal(batch, device) for batch in raw)
    metrics = data.modality.metrics(resolved, device, thorough=True)
    try:
        measures = measure(model, batches, data.unit, metrics, options.shuffle_items)
    except NonFiniteError as error:
        raise InputError(f"run {run!r} cannot be measured: {error}") from error
    protocol = {
        "data": to_dict(replace(opened.config, data=resolved))["data"],
        "split": options.split,
        "items": measures.items,
        "broken": len(data.broken),
        **_words(data),
        **_model_protocol(opened, model, device),
    }
    measures, ids = _with_ids(measures, model, data, options)
    report = Report(measures, findings(measures, opened.config), protocol, ids)
    opened.write_json("report/report.json", report.entry())
    record_left_out(opened, splits)
    save_pictures(opened, model, data, device)
    return report


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


# ------------------------------------------------------------------------------- tables

_COLUMNS = {
    "rmse": ("RMSE", None),
    "explained_variance": ("explained", 4),
    "own_id": ("own ID", 4),
    "psnr": ("{ratio} dB", 2),
    "ssim": ("SSIM", 4),
    "si_sdr": ("SI-SDR dB", 2),
    "stft_distance": ("STFT distance", 3),
    "mel_distance": ("mel distance", 3),
    "log_mel_rmse": ("log-mel RMSE", 3),
    "lpips": ("LPIPS", 4),
    "rfid": ("rFID", 2),
}


def print_report(report: Report, title: str) -> None:
    """The measures as two tables on standard output."""
    measures = report.measures
    protocol = report.protocol
    cells = _figures(measures, protocol)
    where = f"{protocol['split']} split of {protocol['data']['source']}"
    heading = f"{title}: {measures.items} {protocol['noun']}s, {where}"
    print_table(heading, list(cells), [list(cells.values())])
    rows = [_layer_cells(layer, measures, protocol["ratio"]) for layer in measures.layers]
    print_table("layer by layer", list(rows[0]), [list(row.values()) for row in rows])
    if report.ids is not None:
        print_ids(report.ids)
    for finding in report.findings:
        print(f"! {finding.layer} {finding.kind}: {finding.what}")


def _figures(measures: Measures, protocol: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    for name, (head, digits) in _COLUMNS.items():
        if name in measures.figures:
            value = measures.figures[name]
            places = (2 if value > 2 else 4) if digits is None else digits
            named = f"{head} ({protocol['unit']})" if name == "rmse" else head
            cells[named.format(**protocol)] = f"{value:.{places}f}"
    cells["−ELBO bits/dim"] = f"{measures.bits_per_dim:.3f}"
    if measures.bits_per_second is None:
        cells["−ELBO, nearest code"] = f"{measures.bits_per_dim_deterministic:.3f}"
        cells[f"rate bits/{protocol['point']}"] = f"{measures.bits_per_point:.4f}"
    else:  # audio has enough columns
        cells["rate bits/s"] = f"{measures.bits_per_second:.0f}"
    return cells


def _layer_cells(layer: LayerMeasures, measures: Measures, ratio: str) -> dict[str, str]:
    drop = layer.ablation_drop_db
    certain = layer.s2 == 0  # codes are the nearest ones: no posterior has collapsed here
    explained = measures.explained(layer)
    places = {"stride": str(layer.stride), "codes": str(layer.positions)}
    return {
        "layer": layer.name,
        **(places if explained is None or layer.positions > 1 else {}),
        "K": str(layer.codebook_size),
        "perplexity": f"{layer.perplexity:.1f}",
        "used": f"{layer.used / layer.codebook_size:.0%}",
        "H(P̂) bits": "–" if certain else f"{layer.entropy_bits:.2f}",
        "s²": "–" if certain else f"{layer.s2:.3g}",
        **({} if explained is None else {"explained": f"{explained:.4f}"}),
        f"{ratio} so far": f"{layer.psnr_cumulative:.2f}",
        "if shuffled": f"−{drop:.2f}" if drop > 0 else f"{-drop:+.2f}",
    }
