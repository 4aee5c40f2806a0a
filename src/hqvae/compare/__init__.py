"""Several systems × several seeds at equal rate → one report.

It says which system reconstructs better, and which uses its codebooks.
"""

from pathlib import Path

from hqvae.apart import check_apart
from hqvae.console import ProgressBar
from hqvae.data import Dataset, open_data
from hqvae.errors import InputError
from hqvae.ranks import check_devices, pick_device

from .folder import ComparisonDir
from .jobs import JobPool, Resources
from .report import ReportContext, print_tables, write_report
from .spec import RunSpec, Spec, read_spec, run_specs

__all__ = ["Resources", "RunSpec", "Spec", "compare", "read_spec", "run_specs"]


def compare(spec: Spec, data: str, out: str, resources: Resources = Resources()) -> list[str]:
    """Train and evaluate every run of `spec` that is not done yet, write and print the report.

    Args:
        spec: systems, cases and seeds
        data: a path or name, as for `train`
        out: a new folder, or that of a comparison to go on with; several processes may share one
        resources: accelerator, devices, and how many runs at a time

    Returns what is missing: a sentence per run that has no figures, because it failed or another
    process is at it. Raises InputError for a spec, data or folder that cannot be used, before
    anything is written.
    """
    if resources.jobs < 1:
        raise InputError(f"jobs={resources.jobs}: expected at least 1")
    # Each run picks its own device; this refuses one that is missing.
    pick_device(resources.accelerator)
    check_devices(resources.accelerator, resources.devices)
    if not out:
        raise InputError("out='' names no folder; expected one, such as runs/first")
    check_apart(out, data)
    if Path(out).is_file():
        raise InputError(f"out={out!r} is a file; expected a folder")
    runs = run_specs(spec, data)
    datasets = {case: _open_dataset(_first(runs, case), spec.split) for case in spec.cases}
    folder = ComparisonDir(out)
    done = sum(folder.result(run, spec.split) is not None for run in runs)
    with ProgressBar(len(runs), done, quiet=False) as progress:
        missing = JobPool(folder, runs, spec.split, resources).work(progress)
    saved = [folder.result(run, spec.split) for run in runs]
    results = [result for result in saved if result is not None]
    with folder.reporting():
        context = ReportContext(spec, runs, folder, resources, datasets)
        rows = write_report(context, results, missing)
    print_tables(spec, rows)
    return missing


def _first(runs: list[RunSpec], case: str) -> RunSpec:
    return next(run for run in runs if run.case == case)


def _open_dataset(run: RunSpec, split: str) -> Dataset:
    """The signals of a case, whose systems all have the same data."""
    model = run.config.model
    dataset = open_data(run.config.data, model.channels, (split,), model.axes)[1][split]
    stride = model.levels[0].stride
    shortest = min(dataset.shape[1:], default=stride)
    if stride > shortest:
        raise InputError(
            f"{run.title}: model.levels.0.stride={stride} is larger than the "
            f"{dataset.modality.example}s; expected at most {shortest}"
        )
    return dataset
