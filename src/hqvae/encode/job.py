"""A folder of tokens in the making: what belongs into it, what is there, and its end."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hqvae.data import Splits
from hqvae.errors import InputError
from hqvae.files import lock, write_json_lines
from hqvae.model import HQVAE
from hqvae.model.signals import preparation
from hqvae.run import Run
from hqvae.run_files import is_unused
from hqvae.tokens.manifest import (
    LEFT_OUT,
    NAME,
    Manifest,
    ShardFile,
    SplitFiles,
    check_shard,
    describe_layers,
    file_sha256,
    plan_shards,
    read_manifest,
)
from hqvae.tokens.shards import Shard, read_footer, schema
from hqvae.versions import versions

from .options import EncodeOptions

log = logging.getLogger("hqvae")
SHARD_ITEMS = 4096
MOST_SHARDS = 1000  # of a split, where nothing else is said
_WHAT = {
    "model": "of another model",
    "layers": "of another model",
    "whole": "of items that were prepared in another way (whole=True)",
    "data": "of other data, or of other splits of them",
    "compute": "computed on another device",
    "shard_items": "in shards of another size",
    "rate_weight": "at another rate (rate_weight)",
}


def description(
    run: Run,
    weights: str,
    model: HQVAE,
    splits: Splits,
    compute: Mapping[str, Any],
    options: EncodeOptions,
) -> dict[str, Any]:
    """What rows depend on, as `Manifest.made`.

    Args:
        run, weights, model: the run, the digest of its weights, and its model
        splits: of the data
        compute: what a tokenizer says of itself
        options: as `encode` has them
    """
    of_splits = describe_splits(splits, options.whole)
    most = max(split["items"] for split in of_splits.values())
    fitting = max(SHARD_ITEMS, -(-most // MOST_SHARDS))
    return {
        "model": {
            "sha256": weights,
            "posterior": model.posterior,
            "beam_size": run.config.model.beam_size,
        },
        "layers": describe_layers(model.config.layout),
        "axes": model.config.axes,
        "data": {
            "prepared": preparation(run.config.data),
            "splits": of_splits,
            "labels": _labels(splits),
        },
        "whole": options.whole,
        "compute": dict(compute),
        "shard_items": options.shard_items or fitting,
        "rate_weight": options.rate_weight,
    }


def describe_splits(splits: Splits, whole: bool) -> dict[str, dict[str, Any]]:
    """What tells splits from others: how much of each is coded, and of which items."""
    return {
        name: {"items": len(data.keys) if whole else len(data), **splits.contents(name)}
        for name, data in splits.items()
    }


def _labels(splits: Splits) -> dict[str, Any] | None:
    labels = {label for data in splits.values() for label in data.labels or ()} - {None}
    kinds = {type(label) for label in labels}
    if len(kinds) != 1:
        return None
    # Some data sets have hashes of 64 bits.
    fit = all(isinstance(label, int) and -(2**63) <= label < 2**63 for label in labels)
    kind = "integer" if fit else "string"
    return {"type": kind, "names": None if kind == "string" else _names(splits.label_names)}


def _names(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


class Job:
    """A folder of tokens until it is complete.

    Args:
        folder: new, or one that an earlier call with the same description left
        made: what rows depend on
        source: where the data lie

    Raises InputError for a folder that holds anything else.
    """

    def __init__(self, folder: Path, made: Mapping[str, Any], source: str):
        self.folder = folder
        self.manifest = Manifest(dict(made), source, versions(), False, {}, {})
        self.items = {name: split["items"] for name, split in made["data"]["splits"].items()}
        self.shards = plan_shards(self.items, made["shard_items"])
        self._begin()

    def _begin(self) -> None:
        folder = self.folder
        if folder.is_file():
            raise InputError(f"out={str(folder)!r} is a file; expected a new folder")
        there = (folder / NAME).exists()
        if folder.exists() and not there and not is_unused(folder):
            raise InputError(
                f"out={str(folder)!r} already holds files that are no tokens; choose another folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out={str(folder)!r} cannot be made: {error.strerror}") from error
        # Of two processes that begin at once, the second finds what the first wrote.
        if there or not self.manifest.create(folder):
            before = read_manifest(folder)
            self._check_same(before)
            self.manifest = before

    def _check_same(self, before: Manifest) -> None:
        made = self.manifest.made
        for name, what in _WHAT.items():
            if before.made.get(name) != made[name]:
                raise InputError(
                    f"out={str(self.folder)!r} holds tokens {what}; choose another folder"
                )
        if before.source != self.manifest.source:
            log.warning(
                "%s was begun with data %s and goes on with %s, whose items have the same names",
                *(self.folder, before.source, self.manifest.source),
            )
        older = before.versions.get("torch")
        if older != versions()["torch"]:
            log.warning(
                "%s was begun with torch %s and goes on with %s, which may round in another way",
                *(self.folder, older, versions()["torch"]),
            )

    def anywhere(self) -> "Job":
        """The same for processes in other folders: its own is absolute."""
        same = copy.copy(self)
        same.folder = self.folder.absolute()
        return same

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; raises InputError where there is one."""
        with (self.folder / NAME).open("r+b") as file:
            if not lock(file):
                raise InputError(
                    f"out={str(self.folder)!r} is in use: another process writes tokens into it"
                )
            for left in self.folder.glob(".*.partial"):
                left.unlink(missing_ok=True)  # of a process that was killed
            yield

    # ----------------------------------------------------------------------------- shards

    def missing(self) -> list[Shard]:
        """The shards that are not there yet.

        Raises InputError for files that are no such shards, or that are damaged.
        """
        names = {shard.name for shard in self.shards}
        for path in sorted(self.folder.glob("*.parquet")):
            footer = read_footer(path)
            if path.name not in names or footer is None or footer.get("made") != self.manifest.id():
                raise InputError(
                    f"{path} is none of these tokens; take it out, or choose another folder"
                )
        for split in self.manifest.splits.values():
            for file in split.shards:
                if (self.folder / file.name).exists():
                    check_shard(self.folder, file)
        return [shard for shard in self.shards if not (self.folder / shard.name).exists()]

    @property
    def columns(self) -> pa.Schema:
        """Of every shard."""
        labels = self.manifest.made["data"]["labels"]
        return schema(self.manifest.layout, labels and labels["type"])

    def footer(self) -> dict[str, Any]:
        """What every shard says of itself; its writer adds what it left out."""
        return {"made": self.manifest.id(), "left_out": []}

    # ----------------------------------------------------------------------------- the end

    def finish(self) -> Manifest:
        """Write the list of what is left out, and a manifest that names every shard."""
        splits = {}
        left_out: list[dict[str, str]] = []
        for split in self.items:
            files = []
            before = len(left_out)
            for shard in self.shards:
                if shard.split == split:
                    footer = read_footer(self.folder / shard.name)
                    assert footer is not None
                    left_out += [{"split": split, **entry} for entry in footer["left_out"]]
                    files.append(_file_of(self.folder / shard.name, footer["rows"]))
            rows = sum(file.rows for file in files)
            absent = len(left_out) - before
            splits[split] = SplitFiles(rows + absent, rows, absent, tuple(files))
        if left_out:
            write_json_lines(self.folder / LEFT_OUT, left_out)
        else:
            (self.folder / LEFT_OUT).unlink(missing_ok=True)  # of items that are whole now
        reasons = Counter(entry["reason"] for entry in left_out)
        made = self.manifest.made
        done = Manifest(
            made, self.manifest.source, self.manifest.versions, True, splits, dict(reasons)
        )
        done.write(self.folder)
        return done


def _file_of(path: Path, rows: int) -> ShardFile:
    return ShardFile(path.name, rows, path.stat().st_size, file_sha256(path))
