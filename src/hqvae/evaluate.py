"""A run and a split → distortion, rate, use and ablation of every layer: a table, `report/report.json`, a picture."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hqvae.config import to_dict
from hqvae.console import print_table
from hqvae.data import SPLITS, DataConfig, Items, SoundConfig, Sounds, in_order, open_data
from hqvae.errors import DegenerateFeatures, InputError, NonFiniteError, nearest_name
from hqvae.figures import image_grid
from hqvae.measure import Finding, Measures, findings, measure
from hqvae.metrics import Perceptual
from hqvae.model import HQVAE
from hqvae.ranks import pick_device
from hqvae.run import Run, versions

_PICTURES, _SOUNDS = 10, 3
log = logging.getLogger("hqvae")


@dataclass(frozen=True)
class Report:
    """What `evaluate` found out and how: `protocol` names everything the numbers depend on."""

    measures: Measures
    findings: list[Finding]
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """What of the data is measured, and how it is read.

    Args:
        split: train, validation or test
        batch_size: images or segments at a time; no number depends on it beyond rounding
        limit: at most so many of them
        size: side of the images; that of the training when None
        seconds: length of the segments that tile each sound; that of the training when None

    Raises InputError for what cannot be.
    """

    split: str = "test"
    batch_size: int = 64
    limit: int | None = None
    size: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split {self.split!r} does not exist; {nearest_name(self.split, SPLITS)}")
        for name, count in {"batch_size": self.batch_size, "limit": self.limit, "size": self.size}.items():
            if count is not None and count < 1:
                raise InputError(f"{name}={count}: expected at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InputError(f"seconds={self.seconds}: expected a number above 0")

    def data(self, trained: ImageConfig | AudioConfig, source: str | None, run: str) -> ImageConfig | AudioConfig:
        """The data to measure on. Raises InputError for a size of audio, or seconds of images."""
        modality = trained.modality
        changes: dict[str, Any] = {} if source is None else {"source": source}
        for name, value in {"size": self.size, "seconds": self.seconds}.items():
            if value is not None and name not in modality.evaluation_options:
                raise InputError(f"{name}={value:g}: run {run!r} is of {modality.noun}s, which have none")
            changes |= {} if value is None else {name: value}
        return replace(trained, **changes)


def evaluate(
    run: str, source: str | None = None, reading: Reading = Reading(), accelerator: str = "auto", shuffle_images: int = 1000
) -> Report:
    """Measure a run's model on a split and write `report/report.json` and `report/reconstructions.png`.

    Args:
        run: folder of the run
        source: data as `--data` takes it; the training data when None
        reading: split, batch size and more
        accelerator: auto, cpu or cuda
        shuffle_images: images used for the ablation of every layer

    Raises InputError for a run, data or split that cannot be used.
    """
    if shuffle_images < 1:
        raise InputError(f"shuffle_images={shuffle_images}: expected at least 1")
    opened = Run.open(run)
    device = pick_device(accelerator)
    model = opened.load_model().to(device)
    config = reading.data(opened.config.data, source, run)
    data, splits = open_data(config, model.config.channels, (reading.split,), model.config.axes)
    items = splits[reading.split]
    if config == opened.config.data:
        warn_of_change(opened, reading.split, splits.contents)
    if isinstance(data, SoundConfig):
        model.config.spectral.refuse_unfit(data.rate, items.shape[-1])
    perceptual = Perceptual.from_cache(device) if items.form.per_second is None else None  # of pictures
    batches = (items.signal(batch, device) for batch in in_order(items, reading.batch_size, reading.limit))
    try:
        measures = measure(model, batches, items.form, shuffle_images, perceptual=perceptual)
    except (DegenerateFeatures, NonFiniteError) as error:
        raise InputError(f"run {run!r} cannot be measured: {error}") from error
    found = findings(measures, opened.config.model)
    weights = hashlib.sha256((opened.path / "model.safetensors").read_bytes()).hexdigest()
    protocol = {
        "data": to_dict(replace(opened.config, data=data))["data"], "split": reading.split, "images": measures.images,
        "unit": items.unit.name, "broken": len(items.broken), "device": str(device), "dtype": "float32",
        "model_sha256": weights, "versions": versions(),
    }  # fmt: skip
    report = Report(measures, found, protocol)
    opened.write_json("report/report.json", asdict(report))
    rows = reconstructions(model, items, device)
    shown = [(label, items.picture(signals)) for label, signals in rows]
    opened.save_figure("reconstructions.png", image_grid(shown, spectra=items.form.per_second is not None))
    if isinstance(items, Sounds):
        save_audio(opened, items, rows)
    return report


def warn_of_change(run: Run, split: str, contents: Mapping[str, str]) -> None:
    """Say so where the run's data has grown or shrunk, so that a split cut from it may hold what the run was trained on."""
    changed = [name for name in ("train", split) if run.fingerprints.get(name) not in (None, contents.get(name))]
    if len(changed) == 2:
        log.warning(
            "%s has changed since run %s began (%s split: %s then, %s now): some of what is measured may have been trained on; "
            "name data of its own with --data",
            run.config.data.source, run.path, split, run.fingerprints[split], contents.get(split),
        )  # fmt: skip


@torch.no_grad()
def reconstructions(model: HQVAE, items: Dataset, device: torch.device) -> list[tuple[str, torch.Tensor]]:
    """Rows of a picture: originals, then reconstructions from the first 1, 2 … L layers; images spread over the split."""
    x = items.signal(examples_for_figure(items, _SOUNDS if items.modality.spectra else _PICTURES), device)
    codes = model.encode(x)
    rows = [("original", x)]
    for layers in range(1, len(codes) + 1):
        rows.append((f"{layers} layer{'s' * (layers > 1)}", model.decode(codes, layers, size=x.shape[2:])))
    return rows


def save_audio(run: Run, items: Sounds, rows: Sequence[tuple[str, torch.Tensor]]) -> None:
    """`report/audio/`: every row's sounds as the front end gives them back; the original's are the best that it can do."""
    for label, signals in rows:
        for number, sound in enumerate(items.front.inverse(signals.cpu())):
            run.save_audio(f"{number}-{label.replace(' ', '-')}.wav", sound[0].numpy(), items.rate)


def _or_none(figure: float | None, digits: int) -> str | None:
    return None if figure is None else f"{figure:.{digits}f}"


def print_report(report: Report, title: str) -> None:
    """The measures as two tables on standard output."""
    m = report.measures
    figures = {
        f"RMSE ({report.protocol['unit']})": f"{m.rmse:.{2 if m.rmse > 2 else 4}f}",
        "PSNR dB": f"{m.psnr:.2f}",
        "SSIM": _or_none(m.ssim, 4),
        "SI-SDR dB": _or_none(m.si_sdr, 2),
        "STFT distance": _or_none(m.stft_distance, 3),
        "mel distance": _or_none(m.mel_distance, 3),
        "log-mel RMSE": _or_none(m.log_mel_rmse, 3),
        "LPIPS": _or_none(m.lpips, 4),
        "rFID": _or_none(m.rfid, 2),
        "−ELBO bits/dim": f"{m.bits_per_dim:.3f}",
        "by nearest": f"{m.bits_per_dim_nearest:.3f}" if m.bits_per_second is None else None,  # sounds have enough columns
        "rate bits/pixel": f"{m.bits_per_pixel:.4f}" if m.bits_per_second is None else None,
        "rate bits/s": _or_none(m.bits_per_second, 0),
    }
    noun = "images" if m.bits_per_second is None else "segments"
    where = f"{report.protocol['split']} split of {report.protocol['data']['source']}"
    print_table(
        f"{title}: {m.images} {noun}, {where}",
        [name for name, f in figures.items() if f is not None],
        [[f for f in figures.values() if f is not None]],
    )
    rows = []
    for layer in m.layers:
        rows.append([
            layer.name, str(layer.stride), str(layer.positions), str(layer.codebook_size), f"{layer.perplexity:.1f}",
            f"{layer.used / layer.codebook_size:.0%}", f"{layer.entropy_bits:.2f}", f"{layer.s2:.3g}",
            f"{layer.psnr_after:.2f}", f"{layer.psnr_loss:+.2f}".replace("+", "−") if layer.psnr_loss > 0 else f"{-layer.psnr_loss:+.2f}",
        ])  # fmt: skip
    columns = ["layer", "stride", "codes", "K", "perplexity", "used", "H(P̂) bits", "s²", "PSNR so far", "if shuffled"]
    print_table("layer by layer", columns, rows)
    for finding in report.findings:
        print(f"! {finding.layer} {finding.kind}: {finding.what}")
