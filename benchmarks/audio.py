"""Loading, training and coding of audio: seconds of sound per second.

    python benchmarks/audio.py [--rounds 5] [--threads 2] [--out benchmarks/audio.json]

Noise stands for sounds: neither loader nor networks care. Variants are interleaved in one run;
medians count.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import torch

from hqvae.data import (
    AUDIO,
    AudioConfig,
    AudioDataset,
    FileIndex,
    ShuffledBatches,
    sequential_batches,
    training_batches,
)
from hqvae.data.samples import decode
from hqvae.model import HQVAE
from hqvae.presets import preset
from hqvae.quantize import Noise
from hqvae.tiling import decode_chunked, encode_chunked

BATCH, FILES, SECONDS, LONG = 8, 8, 5.0, 60.0
Variant = tuple[Callable[[], object], float]  # what to do, and how many seconds of sound that is


def dataset(name: str) -> AudioDataset:
    """Eight files of 44.1 kHz as a preset sees them, resampled and kept in memory."""
    generator, config = np.random.default_rng(0), preset(name).data
    assert isinstance(config, AudioConfig)
    files = []
    for _ in range(FILES):
        soundfile.write(
            file := BytesIO(),
            generator.uniform(-0.1, 0.1, round(SECONDS * 44100)),
            44100,
            format="FLAC",
        )
        files.append(file.getvalue())
    index = FileIndex([str(i) for i in range(FILES)], lambda i: AUDIO.open(BytesIO(files[i])))
    return AudioDataset(index, config)


def loading(items: AudioDataset) -> Variant:
    batches = training_batches(
        items, ShuffledBatches(len(items), BATCH, 0), 0, 10**9, [slice(0, BATCH)]
    )
    return lambda: items.signal(next(batches)), BATCH * items.samples / items.rate


def decoding(items: AudioDataset) -> Variant:
    return lambda: decode(items.index.open(0), items.rate, None), SECONDS


def training(name: str, items: AudioDataset) -> Variant:
    """One step as the loop takes it, in bf16."""
    torch.manual_seed(0)
    model = HQVAE(preset(name).model)
    x = items.signal(next(sequential_batches(items, BATCH)))
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x, 0.7, Noise(2))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_codebooks(out.z_e, out.codes, Noise(3))

    return step, BATCH * items.samples / items.rate


def coding(name: str, back: bool) -> Variant:
    """A minute in chunks of four seconds, in float32."""
    config = preset(name)
    assert isinstance(config.data, AudioConfig)
    model, rate = HQVAE(config.model).eval(), config.data.rate
    x = 0.1 * torch.randn(1, 1, round(LONG * rate), generator=torch.Generator().manual_seed(0))
    codes = encode_chunked(model, x, 4 * rate)
    return (
        lambda: (
            list(decode_chunked(model, codes, 4 * rate))
            if back
            else encode_chunked(model, x, 4 * rate)
        )
    ), LONG


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/audio.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variants: dict[str, Variant] = {}
    for name in ("rsqvae-mel", "rsqvae-audio"):
        items = dataset(name)
        variants |= {
            f"{name}: decoding and resampling a file": decoding(items),
            f"{name}: loading from memory": loading(items),
        }
        variants |= {f"{name}: training": training(name, items)}
    for name in ("rsqvae-audio", "hqvae-audio"):
        variants |= {
            f"{name}: encoding a minute": coding(name, False),
            f"{name}: decoding a minute": coding(name, True),
        }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(-1, arguments.rounds):
        for name, (step, _) in variants.items():
            start = time.perf_counter()
            step()
            if run >= 0:
                times[name].append(time.perf_counter() - start)
    speeds = {
        name: seconds / statistics.median(times[name]) for name, (_, seconds) in variants.items()
    }
    for name, speed in speeds.items():
        print(f"{name:50s} {speed:10.1f} × real time")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    arguments.out.write_text(
        json.dumps({"machine": machine, "batch": BATCH, "times_real_time": speeds}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
