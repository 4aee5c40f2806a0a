"""A run and a split → distortion, rate, use and ablation of every layer: a table, `report/report.json`, a picture."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hqvae.config import to_dict
from hqvae.data import SPLITS, Images, in_order, open_images, to_signal
from hqvae.errors import InputError, nearest_name
from hqvae.measure import Finding, Measures, findings, measure
from hqvae.model import HQVAE
from hqvae.perceptual import Perceptual
from hqvae.pictures import grid
from hqvae.run import Run, versions
from hqvae.screen import table

_PICTURES = 10


@dataclass(frozen=True)
class Report:
    """What `evaluate` found out and how: `protocol` names everything the numbers depend on."""

    measures: Measures
    findings: list[Finding]
    protocol: dict[str, Any]


def evaluate(
    run: str,
    source: str | None = None,
    split: str = "test",
    batch_size: int = 64,
    limit: int | None = None,
    accelerator: str = "auto",
    shuffle_images: int = 1000,
    size: int | None = None,
) -> Report:
    """Measure a run's model on a split and write `report/report.json` and `report/reconstructions.png`.

    Args:
        run: folder of the run
        source: data as `--data` takes it; the training data when None
        split: train, validation or test
        batch_size: images at a time; no number depends on it beyond rounding
        limit: at most so many images
        accelerator: auto, cpu or cuda
        shuffle_images: images used for the ablation of every layer
        size: side of the images; that of the training when None

    Raises InputError for a run, data or split that cannot be used.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} does not exist; {nearest_name(split, SPLITS)}")
    for name, count in {"batch_size": batch_size, "limit": limit, "shuffle_images": shuffle_images, "size": size}.items():
        if count is not None and count < 1:
            raise InputError(f"{name}={count}: expected at least 1")
    opened = Run.open(run)
    device = pick_device(accelerator)
    model = opened.load_model().to(device)
    trained = opened.config.data
    config = replace(trained, source=trained.source if source is None else source, size=trained.size if size is None else size)
    data, images = open_images(config, model.config.channels, (split,))
    perceptual = Perceptual.at_hand(device) if model.config.axes == 2 else None
    measures = measure(model, in_order(images[split], batch_size, limit), device, shuffle_images, perceptual=perceptual)
    found = findings(measures, model.config)
    weights = hashlib.sha256((opened.path / "model.safetensors").read_bytes()).hexdigest()
    protocol = {
        "data": to_dict(replace(opened.config, data=data))["data"], "split": split, "images": measures.images,
        "broken": len(images[split].collection) - len(images[split]), "device": str(device), "dtype": "float32",
        "model_sha256": weights, "versions": versions(),
    }  # fmt: skip
    report = Report(measures, found, protocol)
    opened.write_json("report/report.json", asdict(report))
    if model.config.axes == 2 and model.config.channels in (1, 3):
        opened.save_figure("reconstructions.png", grid(reconstructions(model, images[split], device)))
    return report


def pick_device(accelerator: str) -> torch.device:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise InputError(f"accelerator {accelerator!r} does not exist; {nearest_name(accelerator, ('auto', 'cpu', 'cuda'))}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("accelerator 'cuda' was asked for, but this machine has no CUDA device; expected auto or cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@torch.no_grad()
def reconstructions(model: HQVAE, images: Images, device: torch.device) -> list[tuple[str, torch.Tensor]]:
    """Rows of a picture: originals, then reconstructions from the first 1, 2 … L layers; images spread over the split."""
    count = min(_PICTURES, len(images))
    x = to_signal(next(in_order(images, count, count)), device)
    codes = model.encode(x)
    rows = [("original", x)]
    for layers in range(1, len(codes) + 1):
        rows.append((f"{layers} layer{'s' * (layers > 1)}", model.decode(codes, layers, size=x.shape[2:])))
    return rows


def print_report(report: Report, title: str) -> None:
    """The measures as two tables on standard output."""
    m = report.measures
    figures = {
        "RMSE (0–255)": f"{m.rmse:.2f}", "PSNR dB": f"{m.psnr:.2f}", "SSIM": "–" if m.ssim is None else f"{m.ssim:.4f}",
        **({"LPIPS": f"{m.lpips:.4f}"} if m.lpips is not None else {}), **({"rFID": f"{m.rfid:.2f}"} if m.rfid is not None else {}),
        "bits/dim (−ELBO)": f"{m.bits_per_dim:.3f}", "rate bits/pixel": f"{m.bits_per_pixel:.4f}",
    }  # fmt: skip
    where = f"{report.protocol['split']} split of {report.protocol['data']['source']}"
    table(f"{title}: {m.images} images, {where}", list(figures), [list(figures.values())])
    rows = []
    for layer in m.layers:
        rows.append([
            layer.name, str(layer.stride), str(layer.positions), str(layer.codebook_size), f"{layer.perplexity:.1f}",
            f"{layer.used / layer.codebook_size:.0%}", f"{layer.entropy_bits:.2f}", f"{layer.s2:.3g}",
            f"{layer.psnr_after:.2f}", f"{layer.psnr_loss:+.2f}".replace("+", "−") if layer.psnr_loss > 0 else f"{-layer.psnr_loss:+.2f}",
        ])  # fmt: skip
    columns = ["layer", "stride", "codes", "K", "perplexity", "used", "H(P̂) bits", "s²", "PSNR so far", "if shuffled"]
    table("layer by layer", columns, rows)
    for finding in report.findings:
        print(f"! {finding.layer} {finding.kind}: {finding.what}")
