"""The door: `hqvae VERB …`. Arguments in, a verb called, a sentence and exit code 2 for what cannot be used."""

import errno
import logging
import sys
from dataclasses import replace
from typing import Annotated

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console

from hqvae import __version__
from hqvae.errors import InputError

app = App(
    name="hqvae",
    version=__version__,
    help="Hierarchical discrete representation learning that does not collapse: train, measure layer by layer, diagnose.",
    help_format="markdown",
)


@app.command
def train(
    preset: str,
    *settings: Annotated[str, Parameter(allow_leading_hyphen=False)],
    data: str = "photos",
    out: str,
    resume: Annotated[bool, Parameter(negative="")] = False,
    compile: Annotated[bool, Parameter(negative="")] = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> int:
    """Train a system on images or sounds; writes a run folder.

    Examples:

        hqvae train hqvae --data ~/pictures --out runs/first

        hqvae train sqvae --data cifar10/ --out runs/sq train.epochs=100 train.batch_size=128

        hqvae train rsqvae --out runs/deep model.levels.0.layers=8 train.lr=3e-4

    Parameters
    ----------
    preset
        vqvae, vqvae2, rqvae (deterministic), sqvae, sqvae2, rsqvae, hqvae (stochastic); for sounds rqvae-mel, sqvae-mel,
        rsqvae-mel (spectra) and rqvae-audio, rsqvae-audio, hqvae-audio (waveforms).
    settings
        key=value on top of the preset; `hqvae presets PRESET` lists all keys.
    data
        Folder of images or sounds, Parquet file or folder, .npz of images, name of a Hugging Face data set, or photos (built in).
    out
        Run folder, new (or with --resume, the one to go on with).
    resume
        Go on bitwise from the newest checkpoint of --out; everything else as in the first command.
    compile
        Use torch.compile (half a minute at the start; worth it on a GPU).
    accelerator
        auto, cpu or cuda.
    devices
        Devices of this machine to train on (DDP).
    nodes
        Machines to train on.
    """
    from hqvae.config import override
    from hqvae.config import preset as preset_named
    from hqvae.train import train as run_training

    config = preset_named(preset)
    config = replace(config, data=replace(config.data, source=data), train=replace(config.train, compile=compile))
    config = override(config, list(settings))
    return 130 if run_training(config, out, resume, accelerator, devices, nodes) is None else 0


@app.command
def evaluate(
    run: str, *, data: str | None = None, split: str = "test", batch_size: int = 64, limit: int | None = None, accelerator: str = "auto",
    shuffle_images: int = 1000, size: int | None = None, seconds: float | None = None,
) -> int:  # fmt: skip
    """Measure a run, layer by layer; prints tables, writes RUN/report/report.json and reconstructions.png.

    Examples:

        hqvae evaluate runs/first

        hqvae evaluate runs/first --data other/pictures --split validation

    Parameters
    ----------
    run
        Run folder that `hqvae train` wrote.
    data
        Data as for train; the run's own when not given.
    split
        train, validation or test.
    batch_size
        Images at a time.
    limit
        At most so many images.
    accelerator
        auto, cpu or cuda.
    shuffle_images
        Images used for the ablation of every layer (one decoding per layer each).
    size
        Side of the images; that of the training when not given.
    seconds
        Length of the segments that tile each sound; that of the training when not given.
    """
    from hqvae.evaluate import Reading, print_report
    from hqvae.evaluate import evaluate as run_evaluation

    print_report(run_evaluation(run, data, Reading(split, batch_size, limit, size, seconds), accelerator, shuffle_images), run)
    print(f"{run}/report/report.json, and pictures or sounds beside it")
    return 0


@app.command
def doctor(run: str, *, data: str | None = None, split: str = "test", limit: int | None = None, accelerator: str = "auto") -> int:
    """Say in words which layers carry what, what collapsed, and what to change.

    Examples:

        hqvae doctor runs/first

    Parameters
    ----------
    run
        Run folder that `hqvae train` wrote.
    data
        Data as for train; the run's own when not given.
    split
        train, validation or test.
    limit
        At most so many images.
    accelerator
        auto, cpu or cuda.
    """
    from hqvae.doctor import diagnose
    from hqvae.evaluate import Reading
    from hqvae.evaluate import evaluate as run_evaluation
    from hqvae.run import Run

    report = run_evaluation(run, data, Reading(split, limit=limit), accelerator)
    for paragraph in diagnose(report.measures, report.findings, Run.open(run).config.model):
        Console(width=None if sys.stdout.isatty() else 120).print(paragraph, highlight=False, markup=False)
    return 0


@app.command
def compare(
    spec: str, *settings: Annotated[str, Parameter(allow_leading_hyphen=False)], data: str = "photos", out: str, split: str | None = None,
    seeds: int | None = None, only: Annotated[tuple[str, ...], Parameter(negative=())] = (), jobs: int = 1, accelerator: str = "auto",
    devices: int = 1,
) -> int:  # fmt: skip
    """Train several systems with several seeds at equal rate; prints tables, writes OUT/report.html.

    Started again, it goes on where it was stopped; started several times at once, its processes share the runs.

    Examples:

        hqvae compare experiments/residual.yaml --data cifar10/ --out runs/residual

        hqvae compare my.yaml --data ~/pictures --out runs/mine --split validation --seeds 1 train.steps=500

        hqvae compare experiments/depth.yaml --data cifar10/ --out runs/depth --only RSQ-VAE --only "L = 1" --only "L = 2"

    Parameters
    ----------
    spec
        YAML file of systems, cases and settings; `experiments/` of the repository has some, docs/compare.md says how they read.
    settings
        key=value for every run, over what the spec says.
    data
        Data as for train.
    out
        Folder of the comparison: runs, results, report.
    split
        Images that the figures are of; what the spec says when not given. Tune on validation, read test once.
    seeds
        Only the first so many of the spec's seeds.
    only
        A system or case of the spec, once for each that is wanted; the report is then of these.
    jobs
        Runs at a time, each on GPUs of its own where there are several.
    accelerator
        auto, cpu or cuda.
    devices
        Devices of this machine for each run (DDP).
    """
    from hqvae.compare import Machine, read_spec
    from hqvae.compare import compare as run_comparison

    chosen = read_spec(spec).narrowed(split, seeds, settings, only)
    missing = run_comparison(chosen, data, out, Machine(accelerator, devices, jobs))
    print(f"{out}/report.html, {out}/report.json")
    for sentence in missing:
        print(f"! {sentence}")
    return 1 if missing else 0


@app.command
def presets(name: str | None = None) -> int:
    """List the presets, or every key of one with its value.

    **Examples**

        hqvae presets

        hqvae presets rsqvae

    Parameters
    ----------
    name
        A preset; all of them in a table when not given.
    """
    from hqvae.config import PRESETS, flatten, to_dict
    from hqvae.config import preset as preset_named
    from hqvae.console import print_table

    if name is not None:
        for key, value in flatten(to_dict(preset_named(name))).items():
            print(f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}")
        return 0
    rows = []
    for title, config in PRESETS.items():
        levels = " + ".join(
            f"stride {v.stride}: {v.layers} × {v.codebook_size}{' shared' if v.shared else ''}" for v in config.model.levels
        )
        rows.append([title, config.model.quantizer.kind, levels])
    print_table("presets", ["preset", "quantizer", "levels (layers × codes)"], rows)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except InputError as error:
        return _refuse(str(error))
    except cyclopts.CycloptsError as error:
        return _refuse(" ".join(str(error).split()))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse(f"no space left on the disk of {error.filename or 'the run folder'}; free some and go on with --resume")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _refuse(f"{error.filename} cannot be written or read: {error.strerror}")
        raise
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)


def _refuse(sentence: str, code: int = 2) -> int:
    print(f"hqvae: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
