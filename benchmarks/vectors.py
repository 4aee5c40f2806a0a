"""Vectors → codes: rows a second in memory, and whole tables of generated rows, with their memory.

    python benchmarks/vectors.py [--width 768] [--ids 1000000] [--encode 10000000] [--train 12000]
        [--rounds 5] [--out benchmarks/vectors.json]

The preset `rsqvae-vector`, four layers of 256 codes, with codebooks from its first rows and no
training: speed does not care. *In memory* is `Tokenizer.encode_batch` on all of torch's threads,
beside the bare model at the same batch. Tables are `.npy` of float16, which `hqvae ids` (so many
rows) and `hqvae encode` read in a process of their own. Its peak of memory is told: that of its
own, and with the mapped file. The larger table takes 15 GB of disk. *Training* is all of
`hqvae train rsqvae-vector` on 12,000 generated rows.
"""

import argparse
import json
import platform
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
    centres = generator.standard_normal((1000, width), np.float32)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = 0.5 * generator.standard_normal((count, width), np.float32)
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


def whole_table(verb: str, rows: int, width: int) -> dict[str, float]:
    """Rows a second of a verb, its start included, and its peaks of memory in GB."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "rows.npy", rows, width)
        run = make_run(folder / "rows.npy", folder / "run")
        words = [sys.executable, "-m", "hqvae.cli", verb, str(run.path)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*words, "--out", str(folder / "out")], stdout=subprocess.DEVNULL
        )
        peaks: dict[str, float] = {"peak_gb": 0.0, "peak_gb_with_file": 0.0}
        while process.poll() is None:
            own, mapped = memory(process.pid)
            peaks["peak_gb"] = max(own, peaks["peak_gb"])
            peaks["peak_gb_with_file"] = max(own + mapped, peaks["peak_gb_with_file"])
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(process.returncode)
        if not peaks["peak_gb"]:
            raise SystemExit("memory is read from /proc, as Linux has it")
        return {"rows": rows, "rows_per_second": rows / (time.perf_counter() - start), **peaks}


def training(rows: int, width: int) -> dict[str, float]:
    """Seconds of a whole training."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "rows.npy", rows, width)
        words = [sys.executable, "-m", "hqvae.cli", "train", "rsqvae-vector"]
        words += ["--data", str(folder / "rows.npy"), "--out", str(folder / "run")]
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return {"rows": rows, "seconds": time.perf_counter() - start}


def memory(process: int) -> tuple[float, float]:
    """(a process's own memory, mapped files that it has read) in GB, as Linux has them."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:  # it has just ended, or this is no Linux
        return 0.0, 0.0
    found = dict(line.split(":", 1) for line in status.splitlines())
    own, mapped = (
        int(found.get(name, "0 kB").split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile")
    )
    return own, mapped


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--encode", type=int, default=10_000_000)
    parser.add_argument("--train", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/vectors.json"))
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        table = Path(name) / "rows.npy"
        generate(table, 10_000, arguments.width)
        rates = in_memory(make_run(table, Path(name) / "run"), arguments.rounds)
    for what, rate in rates.items():
        print(f"{what:12s} {rate:10,.0f} rows a second, {torch.get_num_threads()} thread(s)")
    machine = {"cores": torch.get_num_threads(), "torch": torch.__version__}
    content: dict[str, object] = {
        "machine": {"processor": platform.processor() or platform.machine(), **machine},
        "width": arguments.width,
        "in_memory": rates,
    }
    content["training"] = trained = training(arguments.train, arguments.width)
    print(f"hqvae train  {trained['seconds']:10,.0f} seconds, {arguments.train:,} rows")
    for verb, rows in (("ids", arguments.ids), ("encode", arguments.encode)):
        found = whole_table(verb, rows, arguments.width)
        print(
            f"hqvae {verb:6s} {found['rows_per_second']:10,.0f} rows a second of {rows:,}; "
            f"{found['peak_gb']:.2f} GB, {found['peak_gb_with_file']:.2f} GB with the mapped file"
        )
        content[verb] = found
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
