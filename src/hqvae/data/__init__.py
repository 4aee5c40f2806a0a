"""Data: a name or a path → splits of images, audio or arrays → batches.

`open_data` gives a `Dataset` per split. `read` gives its items exactly, `load` as evaluation sees
them; `training_batches` and `sequential_batches` go over it.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hqvae.errors import InputError
from hqvae.ranks import warn

from .array_dataset import ArrayDataset
from .arrays import ARRAY, ArrayConfig
from .audio import AUDIO, AudioConfig
from .audio_dataset import AudioDataset
from .batches import (
    ShuffledBatches,
    examples_for_figure,
    sequential_batches,
    starting_signals,
    training_batches,
)
from .broken import BrokenItem
from .dataset import Dataset
from .frontend import Frontend, LogMel, MelConfig, WaveConfig, Waveform
from .image_dataset import ImageDataset
from .images import IMAGE, PIXEL_UNIT, ImageConfig
from .items import Block, Item, ItemBlock, Items, StackedBlock
from .modality import Modality, SignalUnit
from .scan import Progress
from .sources import SPLITS, FileIndex, SourceConfig, cut_splits, digest, open_source
from .stored import to_pixels, to_signal

__all__ = [
    "ARRAY",
    "AUDIO",
    "IMAGE",
    "PIXEL_UNIT",
    "SPLITS",
    "ArrayConfig",
    "ArrayDataset",
    "AudioConfig",
    "AudioDataset",
    "Block",
    "BrokenItem",
    "DataConfig",
    "Dataset",
    "FileIndex",
    "Frontend",
    "ImageConfig",
    "ImageDataset",
    "Item",
    "ItemBlock",
    "Items",
    "LogMel",
    "MelConfig",
    "Modality",
    "Progress",
    "ShuffledBatches",
    "SignalUnit",
    "SourceConfig",
    "Splits",
    "StackedBlock",
    "WaveConfig",
    "Waveform",
    "cut",
    "examples_for_figure",
    "fingerprints",
    "open_data",
    "open_source",
    "open_splits",
    "sequential_batches",
    "starting_signals",
    "to_pixels",
    "to_signal",
    "training_batches",
]

log = logging.getLogger("hqvae")
DataConfig = ImageConfig | AudioConfig | ArrayConfig  # a union by `kind`
ConfigT = TypeVar("ConfigT", bound=SourceConfig)


class Splits(dict[str, Dataset]):
    """The splits that were wanted, by name."""

    label_names: Sequence[str] | None
    """Of the classes by number, where labels are numbers and all splits that name them agree."""
    fingerprints: dict[str, str]
    """Of every split of the source, wanted or not: another one where items were added, removed or
    renamed."""

    def __init__(self, datasets: Mapping[str, Dataset], indexes: Mapping[str, FileIndex]):
        super().__init__(datasets)
        self._indexes = dict(indexes)
        self.fingerprints = fingerprints(indexes)
        named = [index.label_names for index in indexes.values() if index.label_names is not None]
        agree = all(list(names) == list(named[0]) for names in named)
        self.label_names = named[0] if named and agree else None

    def contents(self, name: str) -> dict[str, str | None]:
        """All that tells the items of a split from others without reading them.

        Beside their names what the source says of their content, and a digest of their labels; None
        where it says nothing or has none.
        """
        index = self._indexes[name]
        return {
            "fingerprint": self.fingerprints[name],
            "content": index.content,
            "labels": None if index.labels is None else digest(list(index.labels)),
        }

    def left_out(self) -> list[dict[str, str]]:
        """Items known to be broken, of every split: {split, key, reason} each."""
        return [
            {"split": name, "key": key, "reason": reason}
            for name, dataset in self.items()
            for key, reason in dataset.left_out()
        ]


def fingerprints(indexes: Mapping[str, FileIndex]) -> dict[str, str]:
    """What every split is made of."""
    return {name: _fingerprint(index) for name, index in indexes.items()}


def _fingerprint(index: FileIndex) -> str:
    """Number of items and a digest of their names."""
    sha256 = hashlib.sha256()
    for number, name in enumerate(index.names):
        # Names that are not UTF-8, too.
        sha256.update(("\n" * (number > 0) + name).encode(errors="surrogatepass"))
    return f"{len(index)} items, {sha256.hexdigest()[:16]}"


def open_data(
    config: ConfigT,
    channels: int,
    wanted: Sequence[str] = SPLITS,
    axes: int = 2,
    progress: Progress | None = None,
) -> tuple[ConfigT, Splits]:
    """(the config with what it leaves open filled in, the wanted splits).

    Args:
        config: source, cut and preparation
        channels, axes: of the model that is to see the data
        wanted: splits to open
        progress: called with (items done, items in all) while a long scan of a split goes on

    Raises InputError for data that cannot be used, also by such a model.
    """
    for name in wanted:
        if name not in SPLITS:
            raise InputError(f"split {name!r} is not one of {', '.join(SPLITS)}")
    config.modality.check_model(config, channels, axes)
    indexes = cut(config, open_source(config), wanted)
    resolved, splits = open_splits(config, indexes, channels, wanted, progress)
    resolved.modality.check_model(resolved, channels, axes)  # arrays are known only now
    return resolved, splits


def cut(
    config: SourceConfig, indexes: Mapping[str, FileIndex], wanted: Sequence[str] = SPLITS
) -> dict[str, FileIndex]:
    """All splits, those that the source lacks cut from its training items as the config says.

    Raises InputError where a wanted one cannot be had.
    """
    shares = {"test": config.test, "validation": config.validation}
    return cut_splits(indexes, shares, config.seed, wanted)


def open_splits(
    config: ConfigT,
    indexes: Mapping[str, FileIndex],
    channels: int,
    wanted: Sequence[str],
    progress: Progress | None = None,
    to_train: bool = True,
) -> tuple[ConfigT, Splits]:
    """`open_data` from indexes that are known. Raises InputError for an empty split.

    What another model would do better is said where one is `to_train`.
    """
    modality: Modality[Any] = config.modality
    for name in wanted:
        if not len(indexes[name]):
            raise InputError(f"data {config.source!r} has no {modality.noun} in its {name} split")
    resolved = modality.resolve(config, indexes, wanted)
    datasets: dict[str, Dataset] = {}
    for name in wanted:  # splits that are the same items are the same data set
        twins = [one for one in datasets if indexes[one] is indexes[name]]
        if twins:
            datasets[name] = datasets[twins[0]]
        else:
            datasets[name] = modality.dataset(indexes[name], resolved, channels, progress)
    same = [name for name in wanted if name != "train" and indexes[name] is indexes.get("train")]
    for name in same:
        warn("data %s: its %s split is the training items (data.%s=0)", config.source, name, name)
    training = to_train and "train" in wanted
    for sentence in modality.remarks(datasets["train" if training else wanted[0]], training):
        warn("data %s: %s", config.source, sentence)
    return resolved, Splits(datasets, indexes)
