"""Which data are coded, and in which splits: those of the run, or the source's own."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hqvae.data import (
    SPLITS,
    DataConfig,
    FileIndex,
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
        indexes = open_source(self.config)
        if self.is_cut:
            indexes = cut(self.config, indexes)
        return self.open_splits(indexes, channels, split, progress)

    def anywhere(self) -> "CodedSource":
        """The same for processes in other folders: what is there as a path is absolute."""
        path = Path(self.config.source).expanduser()
        if self.config.source == "photos" or not path.exists():
            return self
        return replace(self, config=replace(self.config, source=str(path.absolute())))

    def open_splits(
        self,
        indexes: Mapping[str, FileIndex],
        channels: int,
        split: str = "all",
        progress: Progress | None = None,
    ) -> Splits:
        """`open` where the indexes are known."""
        config = self.config
        there = [name for name in SPLITS if len(indexes.get(name, ()))]
        if split == "all":  # a split that is the training items has no items of its own
            train = indexes.get("train")
            there = [name for name in there if name == "train" or indexes[name] is not train]
        if split != "all" and split not in there:
            expected = f"; {nearest_name(split, there)}" if there else ""
            raise InputError(f"data {config.source!r} has no {split} split{expected}")
        wanted = there if split == "all" else [split]
        if not wanted:
            raise InputError(f"data {config.source!r} holds no {config.modality.noun}")
        return open_splits(config, indexes, channels, wanted, progress, to_train=False)[1]


def coded_source(
    run: Run, source: str | None, column: str | None = None
) -> tuple[CodedSource, dict[str, FileIndex]]:
    """(the data, their splits): the run's own as it had them, wherever they lie now.

    Other data are in splits of their own. `column` is of a table, in place of training's. Raises
    InputError for data that a model of the run cannot take, or that cannot be read.
    """
    trained = run.config.data
    config = replace(trained, source=trained.source if source is None else source, cache_mb=0)
    config = config if column is None else replace(config, column=column)
    model = run.config.model
    modality: Modality[Any] = config.modality
    modality.check_model(config, model.channels, model.axes)
    own = _place(config.source) == _place(trained.source)
    try:
        indexes = open_source(config)
    except InputError:
        if own:
            raise
        # Perhaps for folders or a column that the run's own data have, and these have not.
        config = config.for_other_data()
        config = config if column is None else replace(config, column=column)
        indexes = open_source(config)
    try:
        as_trained = cut(config, indexes)
    except InputError:  # too few
        return CodedSource(config, is_cut=False), dict(indexes)
    found = fingerprints(as_trained)
    known = run.fingerprints
    same = bool(known) and all(found.get(name) == was for name, was in known.items())
    if not same and not own:
        return CodedSource(config, is_cut=False), dict(indexes)
    if known and not same:
        log.warning(
            "%s has changed since run %s began: some of its validation and test items may have "
            "been trained on",
            *(config.source, run.path),
        )
    return CodedSource(config, is_cut=True), as_trained


def _place(source: str) -> Path:
    return Path(source).expanduser().resolve()
