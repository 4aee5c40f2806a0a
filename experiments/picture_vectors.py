"""Pictures as vectors, to see what codes do to a large table: small pictures, row by row.

    python experiments/picture_vectors.py cifar10/ vectors.parquet [--side 8] [--items 50000]
    python experiments/items.py vectors.parquet --layers 4 --seeds 1 --only RSQ-VAE --dim 16

The training split of any pictures that `hqvae train` reads. Each is made small by the mean of its
pixels, and its values are a vector of 3 side² numbers from 0 to 1. Rows have `id`, `embedding`, and
the class as `brand` where the pictures have one.
"""

import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from hqvae.data import ImageConfig, open_source

GROUP = 5000  # rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--items", type=int, default=50_000)
    arguments = parser.parse_args()
    side = arguments.side
    index = open_source(ImageConfig(source=arguments.pictures))["train"]
    vectors = []
    for i in range(min(len(index), arguments.items)):
        picture = index.open(i).convert("RGB").resize((side, side), Image.Resampling.BOX)
        vectors.append(np.asarray(picture, np.float32).ravel() / 255)
    labels = (index.labels or [])[: len(vectors)]
    column = pa.array(vectors, pa.list_(pa.float32()))
    table = {"id": index.names[: len(vectors)], "embedding": column}
    if labels and None not in labels:
        table["brand"] = labels
    parquet.write_table(pa.table(table), arguments.out, row_group_size=GROUP)
    print(f"{arguments.out}: {len(vectors):,} vectors of {len(vectors[0])}")


if __name__ == "__main__":
    main()
