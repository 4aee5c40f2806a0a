"""A test split that nothing has read yet: so many training pictures, drawn by a seed.

    python experiments/posterior/cut.py cifar10/ cifar10-cut/ [--items 5000] [--seed 26]

`cifar10/train.parquet` is cut in two, `train.parquet` and `test.parquet` of the new folder, rows
and columns as they are. The old test split is not copied: earlier experiments have read it.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=26)
    arguments = parser.parse_args()
    table = parquet.read_table(arguments.data / "train.parquet")
    if not 0 < arguments.items < len(table):
        raise SystemExit(f"--items {arguments.items}: expected 1 to {len(table) - 1}")
    arguments.out.mkdir(parents=True)
    order = np.random.default_rng(arguments.seed).permutation(len(table))
    parts = {"test": order[: arguments.items], "train": order[arguments.items :]}
    for name, rows in parts.items():
        parquet.write_table(table.take(np.sort(rows)), arguments.out / f"{name}.parquet")
        print(f"{name}: {len(rows)} pictures")


if __name__ == "__main__":
    main()
