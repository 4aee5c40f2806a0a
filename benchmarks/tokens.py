"""Encoding a data set: reader, encoder and writer apart, all of `hqvae encode`, and Ray's workers.

    python benchmarks/tokens.py [--data photos] [--rounds 5] [--ray] [--device cpu]
        [--out benchmarks/tokens.json]

Pictures of 32², two presets: `sqvae` (one layer) and `rsqvae` (four layers, found by a beam), with
codebooks from the first batch and no training: neither reader, encoder nor writer cares. The parts
are interleaved in one run on one thread, and medians count. *In memory* is `Tokenizer` beside the
bare model at the same batch, the ratio that is asked to stay above 0.9. *Local engine* and `--ray`,
which adds one and two workers, are measured after a quarter of the shards: starts do not count.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hqvae.coded import CodedSource
from hqvae.config import Config
from hqvae.data import Items, Splits, open_data
from hqvae.encode import EncodeOptions, encode
from hqvae.encode.engine import Engine
from hqvae.encode.job import Job, description
from hqvae.encode.local import LocalEngine
from hqvae.encode.ray_data import RayEngine
from hqvae.model import HQVAE
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.quantize import Noise
from hqvae.run import Run
from hqvae.tiling.batches import batch_size
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.shards import Row, schema, write_shard

PRESETS = ("sqvae", "rsqvae")
# Items of each part and of a shard: enough to keep it busy for a second.
DEVICES = {"cpu": (2048, 256), "cuda": (8192, 1024)}
Part = Callable[[], object]


def open_run(name: str, source: str, folder: Path) -> tuple[Run, Splits]:
    """A run of a preset whose codebooks come from its data, and the data."""
    config = override(preset(name), [f"data.source={source}", "data.size=32", "data.cache_mb=0"])
    resolved, splits = open_data(config.data, config.model.channels, ("train",))
    torch.manual_seed(0)
    model = HQVAE(config.model, data=resolved)
    items = Items(splits["train"], whole=False)
    x = torch.stack([items.read(i).signal for i in range(256)]) / 127.5 - 1
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    resolved_config = Config(config.model, resolved, config.phases, config.train)
    run = Run.create(folder / "run", resolved_config, splits.fingerprints)
    run.save_model(model)
    return run, splits


def parts(run: Run, splits: Splits, folder: Path, device: str, count: int) -> dict[str, Part]:
    """Reader, encoder and writer over the same items."""
    tokenizer = Tokenizer(run.load_model().to(device))
    items = Items(splits["train"], whole=False)
    read = [items.read(i) for i in range(count)]
    signals = [item.signal for item in read]
    batch = batch_size((32, 32), tokenizer.points)
    x = torch.stack(signals)
    tokens = tokenizer.encode_signals(signals)
    rows = [Row(r.key, r.label, r.original_size, t) for r, t in zip(read, tokens)]

    def bare() -> None:
        for start in range(0, count, batch):
            codes = tokenizer.model.encode(x[start : start + batch].to(device))
            for of_layer in codes:
                of_layer.cpu()

    def write() -> None:
        with write_shard(folder / "a.parquet", schema(tokenizer.layout, None), {}) as writer:
            writer.add(rows)

    return {
        "reader": lambda: list(items.read_in_order(0, count, threads=1)),
        "bare model": bare,
        "tokenizer, in memory": lambda: tokenizer.encode_signals(signals),
        "writer": write,
    }


def rates(variants: dict[str, Part], count: int, rounds: int) -> dict[str, float]:
    """Median items per second of each; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, rounds):
        for name, part in variants.items():
            start = time.perf_counter()
            part()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(taken) for name, taken in times.items()}


def encoded(run: Run, folder: Path, options: EncodeOptions) -> float:
    """Items per second of all of `hqvae encode`, its start included."""
    start = time.perf_counter()
    manifest = encode(str(run.path), None, str(folder), options)
    return manifest.rows / (time.perf_counter() - start)


def rate_of(engine: Engine, run: Run, splits: Splits, folder: Path, shard_items: int) -> float:
    """Items per second of an engine, once all who compute have begun."""
    with engine:
        compute, options = engine.compute(), EncodeOptions(shard_items=shard_items)
        made = description(run, run.weights_sha256(), run.load_model(), splits, compute, options)
        job = Job(folder, made, run.config.data.source)
        times = []
        for items in engine.write(job, job.missing()[:24]):
            times += [time.perf_counter()] * items
    begun = len(times) // 4
    return (len(times) - begun) / (times[-1] - times[begun])


def ray_engine(run: Run, workers: int) -> RayEngine:
    source = CodedSource(run.config.data, is_cut=True)
    return RayEngine(
        run, run.weights_sha256(), source, EncodeOptions(engine="ray", workers=workers)
    )


def measured(
    system: str, folder: Path, arguments: argparse.Namespace, cores: int
) -> dict[str, float]:
    """All rates of a preset."""
    device = arguments.device
    most, shard_items = DEVICES[device]
    run, splits = open_run(system, arguments.data, folder)
    torch.set_num_threads(1)
    count = min(most, len(splits["train"]))
    found = rates(parts(run, splits, folder, device, count), count, arguments.rounds)
    torch.set_num_threads(cores)
    local = LocalEngine(Tokenizer(run.load_model().to(device)), splits)
    found["local engine"] = rate_of(local, run, splits, folder / "local", shard_items)
    options = EncodeOptions(split="train", accelerator=device)
    found["all of hqvae encode"] = encoded(run, folder / "all", options)
    found["bytes an item"] = (folder / "a.parquet").stat().st_size / count
    for workers in (1, 2) if arguments.ray else ():
        engine = ray_engine(run, workers)
        rate = rate_of(engine, run, splits, folder / f"ray{workers}", shard_items)
        found[f"{workers} worker(s)"] = rate
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/tokens.json"))
    arguments = parser.parse_args()
    cores = torch.get_num_threads()
    results: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as name:
        for system in PRESETS:
            results[system] = measured(system, Path(name) / system, arguments, cores)
    for system, found in results.items():
        for what, rate in found.items():
            print(f"{system:8s} {what:32s} {rate:12,.0f}")
        ratio = found["tokenizer, in memory"] / found["bare model"]
        print(f"{system:8s} {'in memory / bare model':32s} {ratio:12.2f}")
        if arguments.ray:
            more = found["2 worker(s)"] / found["1 worker(s)"]
            print(f"{system:8s} {'2 workers / 1 worker':32s} {more:12.2f}")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "torch": torch.__version__,
    }
    content = {"machine": machine, "data": Path(arguments.data).name, "items_per_second": results}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
