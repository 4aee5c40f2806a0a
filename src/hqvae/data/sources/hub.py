"""Data sets that the library `datasets` loads by name."""

import io
from functools import partial
from pathlib import Path
from typing import Any

from hqvae.errors import InputError, nearest_name, summary_of

from ..modality import Modality
from .index import SPLIT_NAMES, FileIndex, Label
from .labels import class_names, label_column, labels_of


def index_hub(
    name: str, column: str | None, modality: Modality, meant: str | None = None
) -> dict[str, FileIndex]:
    """The splits of a data set that the library `datasets` loads by name.

    `meant` is what a message says where there is none: perhaps a name that is here.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data {name!r} is no file or folder; "
            + (f"{meant} " if meant else "")
            + "to read it as a Hugging Face data set, pip install 'hqvae[hub]'"
        ) from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # its own classes, its client's and the file system's
        raise InputError(
            f"data {name!r} is no file or folder, "
            f"and loading it from the hub failed: {summary_of(error)}"
            + (f"; {meant}" if meant else "")
        ) from error
    feature = getattr(datasets, modality.hub_feature)
    indexes = {}
    for key, table in loaded.items():
        chosen = _feature_column(name, table.features, feature, column, modality)
        # One way to decode, whatever the source: the library's decoders are switched off.
        raw = table.cast_column(chosen, feature(decode=False))
        if key.lower() in SPLIT_NAMES or len(loaded) == 1:
            rows = [f"{name} {key} row {i}" for i in range(len(table))]
            split = SPLIT_NAMES.get(key.lower(), "train")
            indexes[split] = FileIndex(
                rows, partial(_open_hub_row, modality, raw, chosen), None, *_labels(table)
            )
    return indexes


def _labels(table: Any) -> tuple[list[Label] | None, list[str] | None]:
    """(labels, names of the classes) of a table with a column `label`, or one called alike."""
    schemas = [table.features.arrow_schema]
    column = label_column(schemas)
    if column is None:
        return None, None
    names = class_names(schemas, column)
    return labels_of(table[column][:], names), names


def _feature_column(
    name: str, features: dict[str, Any], feature: type, column: str | None, modality: Modality
) -> str:
    fitting = [title for title, kind in features.items() if isinstance(kind, feature)]
    if column is not None and column not in fitting:
        raise InputError(
            f"{name} has no {modality.name} column {column!r}; {nearest_name(column, fitting)}"
        )
    if not fitting:
        raise InputError(
            f"{name} has no {modality.name} column; its columns: {', '.join(features)}"
        )
    return column or fitting[0]


def _open_hub_row(modality: Modality, table: Any, column: str, i: int) -> Any:
    cell = table[i][column]
    return modality.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"]))
