"""A test split that nothing has read yet; and fewer, or unbalanced, pictures to train on.

    python experiments/posterior/cut.py cifar10/ cifar10-cut/ [--items 5000] [--seed 26]
    python experiments/posterior/cut.py cifar10-cut/ cifar10-few/ --keep 990
    python experiments/posterior/cut.py cifar10-cut/ cifar10-tail/ --imbalance 100

The first cuts `cifar10/train.parquet` in two, `train.parquet` and `test.parquet` of the new folder,
rows and columns as they are. The old test split is not copied: earlier experiments have read it.
The others copy `test.parquet` and keep a part of `train.parquet`: so many pictures, or of class c
of C the first one's number × imbalance^(−c/(C − 1)), the long tail of Cui et al. (CVPR 2019).
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet


def long_tail(labels: np.ndarray, order: np.ndarray, imbalance: float) -> np.ndarray:
    """The rows of `order` that are kept."""
    classes, counts = np.unique(labels, return_counts=True)
    kept = []
    for number, name in enumerate(classes):
        share = imbalance ** (-number / (len(classes) - 1))
        kept.append(order[labels[order] == name][: round(counts.min() * share)])
    return np.concatenate(kept)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--imbalance", type=float)
    parser.add_argument("--seed", type=int, default=26)
    arguments = parser.parse_args()
    table = parquet.read_table(arguments.data / "train.parquet")
    order = np.random.default_rng(arguments.seed).permutation(len(table))
    count = arguments.keep or arguments.items
    if not 0 < count < len(table):
        raise SystemExit(f"{count} pictures: expected 1 to {len(table) - 1}")
    arguments.out.mkdir(parents=True)
    if arguments.keep:
        parts = {"train": order[:count]}
    elif arguments.imbalance:
        parts = {"train": long_tail(table["label"].to_numpy(), order, arguments.imbalance)}
    else:
        parts = {"test": order[:count], "train": order[count:]}
    if "test" not in parts:
        shutil.copy(arguments.data / "test.parquet", arguments.out)
    for name, rows in parts.items():
        parquet.write_table(table.take(np.sort(rows)), arguments.out / f"{name}.parquet")
        print(f"{name}: {len(rows)} pictures")


if __name__ == "__main__":
    main()
