"""Hours, shards and bytes for large sets of pictures, from the rates of `benchmarks/tokens.json`.

    python benchmarks/sizing.py [--rates benchmarks/tokens.json] [--gpu 10000]

Prints the table of docs/tokens.md. A core is as measured. `--gpu` is the rate of one GPU in
pictures a second, which was not measured: give your own, from a first `hqvae encode` of some
thousands.
Shards are as `hqvae encode` cuts them, and their bytes are as measured, with keys.
"""

import argparse
import json
from pathlib import Path

from hqvae.encode.job import MOST_SHARDS, SHARD_ITEMS

COUNTS = (10**6, 10**9)


def time_taken(seconds: float) -> str:
    """In the unit that one would say.

    >>> time_taken(9), time_taken(300), time_taken(3 * 3600), time_taken(10 * 86400)
    ('9 s', '5 min', '3.0 h', '10 days')
    """
    for unit, size, digits in (("days", 86_400, 0), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def size_of(count: float) -> str:
    """Bytes in the unit that one would say.

    >>> size_of(76e6), size_of(260e9)
    ('76 MB', '260 GB')
    """
    return f"{count / 1e9:.0f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=Path, default=Path("benchmarks/tokens.json"))
    parser.add_argument("--gpu", type=float, default=10_000.0)
    arguments = parser.parse_args()
    systems = json.loads(arguments.rates.read_text())["items_per_second"]
    print("| preset | pictures | 1 core | 64 cores | 1 GPU | 64 GPUs | shards | size |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rates in systems.items():
        for count in COUNTS:
            core = rates["tokenizer, in memory"]
            speeds = (core, 64 * core, arguments.gpu, 64 * arguments.gpu)
            times = " | ".join(time_taken(count / speed) for speed in speeds)
            shards = -(-count // max(SHARD_ITEMS, -(-count // MOST_SHARDS)))
            size = size_of(count * rates["bytes an item"])
            print(f"| `{name}` | {count:,} | {times} | {shards:,} | {size} |")


if __name__ == "__main__":
    main()
