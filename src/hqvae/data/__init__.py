"""Data: a name or a path → splits of images or sounds → batches."""

import hashlib
from collections.abc import Mapping, Sequence

from hqvae.errors import InputError

from .batches import Order, in_order, training_batches
from .images import DataConfig, Images, resolved
from .items import IMAGE, Form, Items, to_signal
from .sounds import SOUND_MEDIUM, MelConfig, SoundConfig, Sounds, WaveConfig, front_of
from .sources import IMAGE_MEDIUM, SPLITS, Collection, open_source, split

__all__ = [
    "IMAGE", "SPLITS", "DataConfig", "Form", "Images", "Items", "MelConfig", "Order", "SoundConfig", "Sounds", "Splits", "WaveConfig",
    "front_of", "in_order", "open_data", "to_signal", "training_batches",
]  # fmt: skip

AnyDataConfig = DataConfig | SoundConfig


class Splits(dict[str, Items]):
    """The splits that were wanted, by name; `contents` says of every split of the source, wanted or not, what it is made of."""

    def __init__(self, items: Mapping[str, Items], collections: Mapping[str, Collection]):
        super().__init__(items)
        self.contents = {name: _content(collection) for name, collection in collections.items()}


def _content(collection: Collection) -> str:
    """Number of items and a digest of their names: another one where files were added, removed or renamed."""
    return f"{len(collection)} items, {hashlib.sha256(chr(10).join(collection.names).encode(errors='replace')).hexdigest()[:16]}"


def open_data(config: AnyDataConfig, channels: int, wanted: Sequence[str] = SPLITS, axes: int = 2) -> tuple[AnyDataConfig, Splits]:
    """(the config with what it left open resolved, the wanted splits).

    Raises InputError for data that cannot be used, also by a model of so many channels and axes.
    """
    for name in wanted:
        if name not in SPLITS:
            raise InputError(f"split {name!r} is not one of {', '.join(SPLITS)}")
    sounds = isinstance(config, SoundConfig)
    needed = front_of(config).axes if isinstance(config, SoundConfig) else 2
    if axes != needed:
        kind = f"sounds with data.front.kind={config.front.kind}" if isinstance(config, SoundConfig) else "images"
        raise InputError(f"model.axes={axes}: {kind} have {needed}")
    if channels not in ((1,) if sounds else (1, 3)):
        kinds = "sounds have 1 channel" if sounds else "images have 1 channel (grey) or 3 (colour)"
        raise InputError(f"model.channels={channels}: {kinds}")
    size = None if isinstance(config, SoundConfig) else config.size
    found = open_source(config.source, config.column, size, SOUND_MEDIUM if sounds else IMAGE_MEDIUM, config.held)
    collections = split(found, config.validation, config.test, config.seed, wanted)
    empty = [name for name in wanted if not len(collections[name])]
    if empty:
        raise InputError(f"data {config.source!r} has no {'sound' if sounds else 'image'} in its {empty[0]} split")
    if isinstance(config, SoundConfig):
        return config, Splits({name: Sounds(collections[name], config) for name in wanted}, collections)
    config = resolved(config, collections, wanted)
    return config, Splits({name: Images(collections[name], config, channels) for name in wanted}, collections)
