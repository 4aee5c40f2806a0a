"""The verbs of the command: `hqvae VERB …`. Each returns its exit code."""

import os
import shlex
import sys
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from hqvae.errors import InputError

from .app import (
    STOPPED,
    Accelerator,
    Data,
    Limit,
    OtherData,
    RunFolder,
    Setting,
    Split,
    Switch,
    TrainingData,
    app,
)


@app.command
def train(
    preset: str | None = None,
    *settings: Setting,
    data: TrainingData = None,
    out: str,
    resume: Switch = False,
    compile: Switch = False,
    accelerator: Accelerator = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> int:
    """Train a system on images, sounds or arrays; writes a run folder. Or go on with one.

    Examples:

        hqvae train hqvae --data ~/pictures --out runs/first

        hqvae train sqvae --data cifar10/ --out runs/sq train.epochs=100 train.batch_size=128

        hqvae train rsqvae --out runs/deep model.levels.0.layers=8 train.lr=3e-4

        hqvae train --resume --out runs/deep

    Parameters
    ----------
    preset
        vqvae, vqvae2, rqvae (deterministic), sqvae, sqvae2, rsqvae, hqvae (stochastic); for audio
        rqvae-mel, sqvae-mel, rsqvae-mel (spectra) and rqvae-audio, rsqvae-audio, hqvae-audio
        (waveforms); for arrays sqvae-vector, rsqvae-vector, rqvae-vector and rsqvae-series;
        the seven for images have one with -paper behind that trains as the papers do.
    settings
        key=value on top of the preset; `hqvae presets PRESET` lists all keys.
    out
        Run folder, new (or with --resume, the one to go on with).
    resume
        Go on bitwise from the newest checkpoint of --out, with the run's own settings. A preset
        and settings may be repeated, and must then be the run's; train.steps, train.epochs,
        train.log_every, train.tensorboard, data.workers, data.cache_mb and --data may be others.
    compile
        Use torch.compile (half a minute at the start; worth it on a GPU).
    devices
        Devices of this machine to train on (DDP).
    nodes
        Machines to train on.
    """
    from hqvae.overrides import override
    from hqvae.presets import PRESETS
    from hqvae.presets import preset as preset_named
    from hqvae.train import resumed_config
    from hqvae.train import train as run_training

    words = list(settings)
    if preset is not None and "=" in preset:
        words = [preset, *words]
        preset = None
    if compile:
        words.append("train.compile=true")
    if resume:
        config = resumed_config(out, preset, words, data)
    elif preset is None:
        raise InputError(f"train needs a preset; expected one of: {', '.join(PRESETS)}")
    else:
        config = preset_named(preset)
        data_config = replace(config.data, source="photos" if data is None else data)
        config = override(replace(config, data=data_config), words)
    run = run_training(config, out, resume, accelerator, devices, nodes)
    if run is not None:
        print(f"{out} is trained; next: hqvae evaluate {out}")
    code = STOPPED if run is None else 0
    if devices * nodes > 1:
        _end_at_once(code)
    return code


def _end_at_once(code: int) -> None:
    """End a process of several. All is saved, and threads of their group may abort an exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command
def evaluate(
    run: RunFolder,
    *,
    data: OtherData = None,
    split: Split = "test",
    batch_size: int = 64,
    limit: Limit = None,
    accelerator: Accelerator = "auto",
    shuffle_items: int = 1000,
    size: int | None = None,
    seconds: float | None = None,
    rate_weight: Annotated[tuple[float, ...], Parameter(negative=())] = (),
) -> int:
    """Measure a run, layer by layer; prints tables and fills RUN/report with figures and pictures.

    Examples:

        hqvae evaluate runs/first

        hqvae evaluate runs/first --data other/pictures --split validation

    Parameters
    ----------
    batch_size
        Images or segments at a time.
    shuffle_items
        Images or segments used for the ablation of every layer (one decoding per layer each).
    size
        Side of the images; that of the training when not given.
    seconds
        Length of the segments that tile each audio file; that of the training when not given.
    rate_weight
        Weight of a learned prior at which error and bits are measured, once for each that is
        wanted; some when not given.
    """
    from hqvae.evaluate import EvalOptions, print_report
    from hqvae.evaluate import evaluate as run_evaluation

    weights = rate_weight or None
    options = EvalOptions(split, batch_size, limit, size, seconds, shuffle_items, weights)
    print_report(run_evaluation(run, data, options, accelerator), run)
    same = f" --split {split}" if split != "test" else ""
    if data is not None:
        same += f" --data {shlex.quote(data)}"
    print(f"{run}/report has these figures, and pictures or audio; next: hqvae doctor {run}{same}")
    return 0


@app.command
def doctor(
    run: RunFolder,
    *,
    data: OtherData = None,
    split: Split = "test",
    limit: Limit = None,
    accelerator: Accelerator = "auto",
) -> int:
    """Say in words which layers carry what, what collapsed, and what to change.

    **Examples**

        hqvae doctor runs/first
    """
    from hqvae.console import print_paragraph
    from hqvae.doctor import diagnose, diagnose_ids
    from hqvae.evaluate import EvalOptions
    from hqvae.evaluate import evaluate as run_evaluation
    from hqvae.run import Run

    report = run_evaluation(run, data, EvalOptions(split, limit=limit), accelerator)
    config = Run.open(run).config
    of_ids = [] if report.ids is None else diagnose_ids(report.ids)
    for paragraph in [*diagnose(report.measures, report.findings, config, split), *of_ids]:
        print_paragraph(paragraph)
    return 0


@app.command
def compare(
    spec: str,
    *settings: Setting,
    data: Data = "photos",
    out: str,
    split: str | None = None,
    seeds: int | None = None,
    only: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    jobs: int = 1,
    accelerator: Accelerator = "auto",
    devices: int = 1,
) -> int:
    """Train several systems with several seeds at equal rate; prints tables and writes a report.

    Started again, it goes on where it was stopped. Started several times at once, its processes
    share the runs.

    Examples:

        hqvae compare experiments/residual.yaml --data cifar10/ --out runs/residual

        hqvae compare my.yaml --data ~/pictures --out runs/mine --split validation train.steps=500

        hqvae compare experiments/depth.yaml --out runs/depth --only RSQ-VAE --only "L = 1"

    Parameters
    ----------
    spec
        YAML file of systems, cases and settings; `experiments/` of the repository has some,
        docs/compare.md says how they read.
    settings
        key=value for every run, over what the spec says.
    out
        Folder of the comparison: runs, results, report.
    split
        Images that the figures are of; what the spec says when not given. Tune on validation, read
        test once.
    seeds
        Only the first so many of the spec's seeds.
    only
        A system or case of the spec, once for each that is wanted; the report is then of these.
    jobs
        Runs at a time, each on GPUs of its own where there are several.
    devices
        Devices of this machine for each run (DDP).
    """
    from hqvae.compare import Resources, read_spec
    from hqvae.compare import compare as run_comparison

    selected = read_spec(spec).select(split, seeds, settings, only)
    missing = run_comparison(selected, data, out, Resources(accelerator, devices, jobs))
    print(f"{out}/report.html, {out}/report.json")
    for sentence in missing:
        print(f"! {sentence}")
    return 1 if missing else 0


@app.command
def presets(name: str | None = None) -> int:
    """List the presets, or every key of one with its value and what it is.

    **Examples**

        hqvae presets

        hqvae presets rsqvae

    Parameters
    ----------
    name
        A preset; all of them in a table when not given.
    """
    from hqvae.console import print_table
    from hqvae.presets import describe, overview
    from hqvae.presets import preset as preset_named

    if name is not None:
        print("\n".join(describe(preset_named(name))))
        return 0
    print_table("presets", ["preset", "quantizer", "levels (layers × codes)"], list(overview()))
    return 0
