"""Which data are coded, and in which splits: those of the run, or the source's own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hqvae.data import (
    SPLITS,
    DataConfig,
    Modality,
    Progress,
    Splits,
    cut,
    fingerprints,
    open_source,
    open_splits,
)
from hqvae.errors import InputError, nearest_name
from hqvae.run import Run

log = logging.getLogger("hqvae")


@dataclass(frozen=True)
class CodedSource:
    """Data that are to be coded."""

    config: DataConfig
    """Where they lie, and how they are prepared; nothing is kept in memory."""
    is_cut: bool
    """Whether splits that the source lacks are cut, as they were for training."""

    def open(self, channels: int, split: str = "all", progress: Progress | None = None) -> Splits:
        """The splits, or the one that is named, for a model of so many channels.

        Raises InputError for data that cannot be used, and a split that is not there.
        """
        config = self.config
        indexes = open_source(config)
        if self.is_cut:
            indexes = cut(config, indexes)
        there = [name for name in SPLITS if len(indexes.get(name, ()))]
        if split != "all" and split not in there:
            expected = f"; {nearest_name(split, there)}" if there else ""
            raise InputError(f"data {config.source!r} has no {split} split{expected}")
        wanted = there if split == "all" else [split]
        if not wanted:
            raise InputError(f"data {config.source!r} holds no {config.modality.noun}")
        return open_splits(config, indexes, channels, wanted, progress, to_train=False)[1]


def coded_source(run: Run, source: str | None) -> CodedSource:
    """The run's data in its splits, wherever they lie now; other data in splits of their own.

    Raises InputError for data that a model of the run cannot take.
    """
    trained = run.config.data
    config = replace(trained, source=trained.source if source is None else source, cache_mb=0)
    model = run.config.model
    modality: Modality[Any] = config.modality
    modality.check_model(config, model.channels, model.axes)
    found = _fingerprints(config)
    same = found and all(found.get(name) == was for name, was in run.fingerprints.items())
    if run.fingerprints and same:
        return CodedSource(config, is_cut=True)
    if _place(config.source) != _place(trained.source):
        return CodedSource(_of_other_data(config), is_cut=False)
    if not found:
        return CodedSource(config, is_cut=False)
    log.warning(
        "%s has changed since run %s began: some of its validation and test items may have been "
        "trained on",
        *(config.source, run.path),
    )
    return CodedSource(config, is_cut=True)


def _fingerprints(config: DataConfig) -> dict[str, str] | None:
    """Of the splits as the run had them; None where they are too few to cut, or cannot be had."""
    try:
        with _unsaid():
            return fingerprints(cut(config, open_source(config)))
    except InputError:
        return None


def _of_other_data(config: DataConfig) -> DataConfig:
    """Without the folders and the column that the run's own data have, where these have none."""
    try:
        with _unsaid():
            open_source(config)
    except InputError:
        return replace(config, validation_folders=(), test_folders=(), column=None)
    return config


@contextmanager
def _unsaid() -> Iterator[None]:
    """Without the warnings, which come once more where the data are opened."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _place(source: str) -> Path:
    return Path(source).expanduser().resolve()
