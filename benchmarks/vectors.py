"""Vectors → codes: rows a second in memory, and a whole table of generated rows, with its memory.

    python benchmarks/vectors.py [--width 768] [--rows 1000000] [--rounds 5]
        [--out benchmarks/vectors.json]

The preset `rsqvae-vector`, four layers of 256 codes, with codebooks from its first rows and no
training: speed does not care. *In memory* is `Tokenizer.encode_batch` on all of torch's threads,
beside the bare model at the same batch. The table is a `.npy` of float16 that `hqvae ids` reads in
a process of its own, whose peak of memory is told.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hqvae.config import Config
from hqvae.data import open_data
from hqvae.model import HQVAE
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.quantize import Noise
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer

IN_MEMORY = 65_536  # rows
AT_ONCE = 1024  # rows of a batch, as the tokenizer takes them
BLOCK = 100_000  # rows that are generated at a time


def generate(path: Path, rows: int, width: int) -> None:
    """Rows around a thousand centres."""
    array = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((1000, width))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = 0.5 * generator.standard_normal((count, width))
        array[start : start + count] = centres[generator.integers(0, 1000, count)] + noise
    array.flush()


def make_run(table: Path, folder: Path) -> Run:
    config = override(preset("rsqvae-vector"), [f"data.source={table}", "data.cache_mb=0"])
    resolved, splits = open_data(config.data, 0, ("train",), 0)
    data = splits["train"]
    changed = override(
        Config(config.model, resolved, config.phases, config.train),
        [f"model.channels={data.shape[0]}"],
    )
    torch.manual_seed(0)
    model = HQVAE(changed.model, data=resolved)
    x = data.signal(data.training_batch(np.arange(8192), np.zeros((8192, 2))))
    model.init_scale(x)
    model.init_codebooks(x, Noise(1), at_once=1024)
    run = Run.create(folder, changed, splits.fingerprints)
    run.save_model(model)
    return run


def in_memory(run: Run, rounds: int) -> dict[str, float]:
    """Rows a second; the first round is not counted."""
    tokenizer = Tokenizer(run.load_model())
    x = torch.randn(IN_MEMORY, run.config.model.channels)
    times: dict[str, list[float]] = {"bare model": [], "tokenizer": []}

    def bare() -> None:
        for start in range(0, len(x), AT_ONCE):
            tokenizer.model.encode(x[start : start + AT_ONCE])

    parts = {"bare model": bare, "tokenizer": lambda: tokenizer.encode_batch(x)}
    for number in range(rounds + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: len(x) / statistics.median(taken) for name, taken in times.items()}


def whole_table(run: Run, rows: int, out: Path) -> dict[str, float]:
    """Rows a second of `hqvae ids`, its start included, and its peak of memory in GB."""
    words = [sys.executable, "-m", "hqvae.cli", "ids", str(run.path), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"rows_per_second": rows / taken, "peak_gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/vectors.json"))
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        table = Path(name) / "rows.npy"
        generate(table, arguments.rows, arguments.width)
        run = make_run(table, Path(name) / "run")
        rates = in_memory(run, arguments.rounds)
        ids = whole_table(run, arguments.rows, Path(name) / "ids")
    for what, rate in rates.items():
        print(f"{what:12s} {rate:10,.0f} rows a second, {torch.get_num_threads()} thread(s)")
    print(
        f"{'hqvae ids':12s} {ids['rows_per_second']:10,.0f} rows a second of {arguments.rows:,}, "
    )
    print(f"{'':12s} {ids['peak_gb']:10.2f} GB at its peak")
    machine = {"cores": torch.get_num_threads(), "torch": torch.__version__}
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), **machine},
        "width": arguments.width,
        "rows": arguments.rows,
        "in_memory": rates,
        "ids": ids,
    }
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
