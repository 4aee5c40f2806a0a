"""A run and a data set → a folder of tokens: Parquet shards and a manifest, each item once."""

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from hqvae.apart import check_apart
from hqvae.console import ProgressBar, scan_bars
from hqvae.data import SPLITS, Splits
from hqvae.errors import InputError, nearest_name
from hqvae.files import said_if_full
from hqvae.ranks import pick_device
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.manifest import Manifest
from hqvae.tokens.shards import Shard
from hqvae.trained import open_trained

from .job import Job, description
from .local import Encoder, encode_locally
from .sources import coded_source

__all__ = ["EncodeOptions", "encode"]

ENGINES = ("local", "ray")
_READERS = 4  # threads that read, at most
_ENCODERS = 8  # threads that compute on the CPU, at most


@dataclass(frozen=True)
class EncodeOptions:
    """What of the data is coded, and by whom. No token depends on engine or workers.

    split: all, or one of train, validation, test
    whole: items at their own size; else as the run saw them
    engine: local (this process) or ray
    address: of a Ray cluster; one is started here when None
    workers: local: threads that read for each device; ray: actors. As many as fit when None
    shard_items: items of a shard; 4096 when None, or more where that makes over 1000 shards
    accelerator: auto, cpu or cuda

    Raises InputError for what cannot be.
    """

    split: str = "all"
    whole: bool = False
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    shard_items: int | None = None
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in ("all", *SPLITS):
            raise InputError(
                f"split {self.split!r} does not exist; {nearest_name(self.split, ('all', *SPLITS))}"
            )
        if self.engine not in ENGINES:
            raise InputError(
                f"engine {self.engine!r} does not exist; {nearest_name(self.engine, ENGINES)}"
            )
        for name in ("workers", "shard_items"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name}={count}: expected at least 1")
        if self.address is not None and self.engine != "ray":
            raise InputError(f"address={self.address!r} is of a Ray cluster; expected engine='ray'")


def encode(
    run: str, source: str | None, out: str, options: EncodeOptions = EncodeOptions()
) -> Manifest:
    """Write the tokens of a data set, or go on with a folder that an earlier call left.

    Args:
        run: folder of the run
        source: data as for training; the training data when None
        out: folder for the tokens
        options: split, size, engine and more

    Raises InputError for a run, data or folder that cannot be used.
    """
    opened = open_trained(run)
    tokenizer = Tokenizer(opened.load_model().to(pick_device(options.accelerator)))
    coded = coded_source(opened, source)
    check_apart(out, coded.config.source)
    with scan_bars() as progress:
        splits = coded.open(opened.config.model.channels, options.split, progress)
    made = description(opened, tokenizer, splits, options.whole, options.shard_items)
    with said_if_full(out, "the same command goes on"):
        job = Job(Path(out), made, coded.config.source)
        with job.locked():
            missing = job.missing()
            if job.manifest.complete and not missing:
                return job.manifest
            total = sum(job.items.values())
            done = total - sum(shard.stop - shard.start for shard in missing)
            # Closed before the lock is, whatever stops it.
            with (
                closing(_written(tokenizer, splits, job, options, missing)) as written,
                ProgressBar(total, done, quiet=False) as progress_bar,
            ):
                for count in written:
                    done += count
                    progress_bar.show(done, f"{done:,} of {total:,} items")
            return job.finish()


def _written(
    tokenizer: Tokenizer, splits: Splits, job: Job, options: EncodeOptions, shards: list[Shard]
) -> Generator[int, None, None]:
    """Numbers of items as they are done."""
    threads = torch.get_num_threads()
    tokenizers = _tokenizers(tokenizer, min(threads, len(shards)))
    readers = options.workers or max(1, min(_READERS, os.cpu_count() or 1) // len(tokenizers))
    encoders = [Encoder(one, splits, job, readers) for one in tokenizers]
    # Several that compute on one thread each do more than one that computes on several.
    torch.set_num_threads(max(1, threads // len(encoders)))
    try:
        yield from encode_locally(encoders, shards)
    finally:
        torch.set_num_threads(threads)


def _tokenizers(tokenizer: Tokenizer, most: int) -> list[Tokenizer]:
    """One for each GPU of this machine where it is on one, else the same for several threads."""
    if tokenizer.device.type != "cuda":
        return [tokenizer] * max(1, min(most, _ENCODERS))
    return [tokenizer, *(tokenizer.on(f"cuda:{i}") for i in range(1, torch.cuda.device_count()))]
