"""Throughput of training, loading and evaluation: the small CIFAR-10 net, every preset for images.

    python benchmarks/training.py [--rounds 5] [--out benchmarks/training.json]

Ratios and medians are what counts: the variants are interleaved in one run, because machines are
shared and noisy. Images are random; the networks do not care. Reported per variant: median images
per second, and its ratio to plain float32. `benchmarks/against.py` sets two commits side by side.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hqvae.data import (
    PIXEL_UNIT,
    FileIndex,
    ImageConfig,
    ImageDataset,
    ShuffledBatches,
    sequential_batches,
    to_signal,
    training_batches,
)
from hqvae.measure import measure
from hqvae.metrics import SSIM, Distortion
from hqvae.model import HQVAE
from hqvae.presets import PRESETS, preset
from hqvae.quantize import NearestCodeConfig, Noise

BATCH, SIDE = 128, 32


def training_step(
    name: str, bf16: bool = True, channels_last: bool = True, ema: bool = False
) -> Callable[[], None]:
    """One step of a preset as the loop takes it: forward, backward, Adam, codebook update.

    `ema` puts nearest codes and running averages into it.
    """
    torch.manual_seed(0)
    config = preset(name).model
    model = HQVAE(replace(config, quantizer=NearestCodeConfig()) if ema else config)
    x = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(x, 0.7, Noise(2))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_codebooks(out.z_e, out.codes, Noise(3))

    return step


def bare_step(bf16: bool, channels_last: bool) -> Callable[[], None]:
    """The same networks with no quantizer between them."""
    torch.manual_seed(0)
    model = HQVAE(preset("vqvae").model)
    level, decoder = model.levels[0], model.decoder
    x = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x_hat = decoder(level.project(model.encoder(x)[0]))
        (x - x_hat.float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pictures() -> ImageDataset:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, (2048, SIDE, SIDE, 3), dtype=np.uint8)
    index = FileIndex([str(i) for i in range(len(arrays))], lambda i: Image.fromarray(arrays[i]))
    return ImageDataset(index, ImageConfig(size=SIDE), channels=3)


def loading(images: ImageDataset) -> Callable[[], None]:
    batches = training_batches(
        images, ShuffledBatches(len(images), BATCH, 0), 0, 10**9, [slice(0, BATCH)]
    )
    return lambda: to_signal(next(batches)).sum().item() and None


def evaluation(images: ImageDataset, only_forward: bool) -> Callable[[], None]:
    model = HQVAE(preset("vqvae").model).eval()

    def whole() -> None:
        measure(
            model,
            map(to_signal, sequential_batches(images, BATCH, BATCH)),
            PIXEL_UNIT,
            [Distortion(PIXEL_UNIT.scale), SSIM()],
            shuffle_items=1,
        )

    def forward() -> None:
        with torch.no_grad():
            model(to_signal(next(sequential_batches(images, BATCH, BATCH))))

    return forward if only_forward else whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps per variant and round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training.json"))
    arguments = parser.parse_args()
    images = pictures()
    variants = {
        "bare autoencoder, float32": bare_step(False, False),
        "bare autoencoder, bf16 + channels_last": bare_step(True, True),
        **{
            f"{name}, bf16 + channels_last": training_step(name)
            for name, config in PRESETS.items()
            if config.data.kind == "images" and not name.endswith("-paper")
        },
        "sqvae, float32": training_step("sqvae", bf16=False, channels_last=False),
        **{
            f"{name} with the EMA quantizer": training_step(name, ema=True)
            for name in ("sqvae", "rsqvae")
        },
        "loading from memory": loading(images),
        "evaluation: forward pass alone, float32": evaluation(images, True),
        "evaluation: everything `hqvae evaluate` measures, float32": evaluation(images, False),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()
    for _ in range(arguments.rounds):
        for name, step in variants.items():
            for _ in range(arguments.steps):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    speeds = {name: BATCH / statistics.median(seconds) for name, seconds in times.items()}
    plain = speeds["bare autoencoder, float32"]
    for name, speed in speeds.items():
        print(f"{name:62s} {speed:10.0f} images/s   {speed / plain:6.2f} × plain float32")
    for name in ("sqvae", "rsqvae"):
        ratio = speeds[f"{name} with the EMA quantizer"] / speeds[f"{name}, bf16 + channels_last"]
        print(f"a step of {name} takes {ratio:.2f} × one of the same model with the EMA quantizer")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    arguments.out.write_text(
        json.dumps({"machine": machine, "batch": BATCH, "images_per_second": speeds}, indent=2)
        + "\n"
    )


if __name__ == "__main__":
    main()
