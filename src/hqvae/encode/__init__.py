"""A run and a data set → a folder of tokens: Parquet shards and a manifest, each item once."""

from contextlib import closing
from pathlib import Path

from hqvae.apart import check_apart
from hqvae.coded import CodedSource, coded_source
from hqvae.console import ProgressBar, scan_bars
from hqvae.data import Splits
from hqvae.files import said_if_full
from hqvae.model import HQVAE
from hqvae.ranks import pick_device
from hqvae.rates import check_has_rates
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.manifest import Manifest
from hqvae.trained import load_with_digest, open_trained

from .engine import Engine
from .job import Job, description
from .local import LocalEngine
from .options import EncodeOptions

__all__ = ["EncodeOptions", "encode"]


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
    weights, model = load_with_digest(opened)
    if options.rate_weight is not None:
        check_has_rates(model, run)
    coded, indexes = coded_source(opened, source, options.column)
    check_apart(out, coded.config.source, tables=True)
    with scan_bars() as progress:
        splits = coded.open_splits(indexes, model.config.channels, options.split, progress)
    with (
        said_if_full(out, "the same command goes on"),
        _engine(opened, weights, model, coded, splits, options) as engine,
    ):
        made = description(opened, weights, model, splits, engine.compute(), options)
        return _run(engine, Job(Path(out), made, coded.config.source))


def _run(engine: Engine, job: Job) -> Manifest:
    with job.locked():
        missing = job.missing()
        if job.manifest.complete and not missing:
            return job.manifest
        total = sum(job.items.values())
        done = total - sum(shard.stop - shard.start for shard in missing)
        # Closed before the lock is, whatever stops it.
        with (
            closing(engine.write(job, missing)) as written,
            ProgressBar(total, done, quiet=False) as progress_bar,
        ):
            for count in written:
                done += count
                progress_bar.show(done, f"{done:,} of {total:,} items")
        return job.finish()


def _engine(
    run: Run,
    weights: str,
    model: HQVAE,
    source: CodedSource,
    splits: Splits,
    options: EncodeOptions,
) -> Engine:
    if options.engine == "ray":
        from .ray_data import RayEngine

        return RayEngine(run, weights, source, options)
    device = pick_device(options.accelerator)
    tokenizer = Tokenizer(model.to(device), options.rate_weight)
    return LocalEngine(tokenizer, splits, options.workers)
