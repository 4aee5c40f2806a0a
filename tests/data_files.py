"""Files of pictures for the tests of data: written, opened, and read back as grey values."""

import io

import numpy as np
import pytest
from PIL import Image

from hqvae.data import ImageConfig, ImageDataset, open_data, open_source, sequential_batches

TRAIN = list(range(0, 120, 10))  # the one grey value that each image is filled with
TEST = [200, 201, 202]


def solid(value, size=8):
    return np.full((size, size, 3), value, np.uint8)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def torn_png(size=32):
    """Its header is whole, its pixels are not."""
    return png(noise(size, size))[:500]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else png(content))
    return path


def folder(root, values, classes=1):
    for i, value in enumerate(values):
        write(root / f"class{i % classes}" / f"{value:03d}.png", solid(value))
    return root


def folders(root, train, test):
    folder(root / train, TRAIN, classes=2)
    folder(root / test, TEST)
    return root


def table(path, values, struct):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [png(solid(value)) for value in values]
    if struct:
        cells = [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)]
    parquet.write_table(Table.from_pydict({"label": list(values), "picture": cells}), path)
    return path


def tables(root, struct):
    table(root / "train-00000-of-00002.parquet", TRAIN[:5], struct)
    table(root / "train-00001-of-00002.parquet", TRAIN[5:], struct)
    table(root / "test-00000-of-00001.parquet", TEST, struct)
    return root


def tables_at(root, train, test):
    table(root / train, TRAIN, True)
    table(root / test, TEST, True)
    return root


def npz(path, **arrays):
    np.savez(
        path, **{name: np.stack([solid(v) for v in values]) for name, values in arrays.items()}
    )
    return path


WHOLE_SOURCES = {
    "folder": lambda tmp: folder(tmp / "d", TRAIN),
    "folder of classes": lambda tmp: folder(tmp / "d", TRAIN, classes=3),
    "table of structs": lambda tmp: table(tmp / "d.parquet", TRAIN, True),
    "table of bytes": lambda tmp: table(tmp / "d.parquet", TRAIN, False),
    "npz": lambda tmp: npz(tmp / "d.npz", images=TRAIN),
}
"""Sources without splits, each of the same images."""


def opened(source, channels=3, **config):
    """(resolved config, splits) of a source of images."""
    return open_data(ImageConfig(source=str(source), **config), channels)


def train_split(source, channels=3, **config):
    """The training split of a source, nothing cut off."""
    config = ImageConfig(source=str(source), **config)
    return ImageDataset(open_source(config)["train"], config, channels)


def values_of(images):
    """The grey values of a split of solid images, in order; every pixel must agree."""
    values = []
    for batch in sequential_batches(images, 64):
        assert (batch == batch[:, :1, :1, :1]).all()
        values += batch[:, 0, 0, 0].tolist()
    return values
