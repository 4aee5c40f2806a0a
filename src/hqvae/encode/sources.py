"""Which data are coded, and in which splits: those of the run, or the source's own."""

import logging
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
        return open_splits(config, indexes, channels, wanted, progress)[1]


def coded_source(run: Run, source: str | None) -> CodedSource:
    """The run's data in its splits, wherever they lie now; other data in splits of their own.

    Raises InputError for data that a model of the run cannot take.
    """
    trained = run.config.data
    config = replace(trained, source=trained.source if source is None else source, cache_mb=0)
    model = run.config.model
    modality: Modality[Any] = config.modality
    modality.check_model(config, model.channels, model.axes)
    try:
        found = fingerprints(cut(config, open_source(config)))
    except InputError:  # too few to cut; what else is wrong is said where they are opened
        return CodedSource(config, is_cut=False)
    own = _place(config.source) == _place(trained.source)
    known = run.fingerprints
    if known and all(found.get(name) == was for name, was in known.items()):
        return CodedSource(config, is_cut=True)
    if not own or not known:
        return CodedSource(config, is_cut=own)
    log.warning(
        "%s has changed since run %s began: some of its validation and test items may have been "
        "trained on",
        *(config.source, run.path),
    )
    return CodedSource(config, is_cut=True)


def _place(source: str) -> Path:
    return Path(source).expanduser().resolve()
