"""Several systems × several seeds at equal rate → one report: which reconstructs better, which uses its codebooks."""

from pathlib import Path

from hqvae.console import ProgressBar
from hqvae.data import Items, open_data
from hqvae.errors import InputError
from hqvae.ranks import pick_device

from .jobs import Folder, Grid, Machine
from .report import Place, print_tables, write_report
from .spec import Entry, Spec, entries, read_spec

__all__ = ["Entry", "Machine", "Spec", "compare", "entries", "read_spec"]


def compare(spec: Spec, data: str, out: str, machine: Machine = Machine()) -> list[str]:
    """Train and measure every run of `spec` that is not done yet, then write the report into the folder `out` and print its tables.

    Args:
        spec: systems, cases and seeds
        data: as `hqvae train --data` takes it
        out: a new folder, or that of a comparison to go on with; several processes may work on one
        machine: accelerator, devices, and how many runs at a time

    Returns what is missing: a sentence per run that has no figures, because it failed or another process is at it. Raises InputError
    for a spec, data or folder that cannot be used, before anything is written.
    """
    for name, count in (("jobs", machine.jobs), ("devices", machine.devices)):
        if count < 1:
            raise InputError(f"{name}={count}: expected at least 1")
    pick_device(machine.accelerator)  # each run picks its own; here only to refuse one that is missing
    if Path(out).is_file():
        raise InputError(f"--out {out!r} is a file; expected a folder")
    grid = entries(spec, data)
    items = {case: _items(next(entry for entry in grid if entry.case == case), spec.split) for case in spec.cases}
    folder = Folder(out)
    done = sum(folder.result(entry, spec.split) is not None for entry in grid)
    with ProgressBar(len(grid), done, quiet=False) as screen:
        missing = Grid(folder, grid, spec.split, machine).work(screen)
    results = [result for entry in grid if (result := folder.result(entry, spec.split)) is not None]
    with folder.reporting():
        rows = write_report(spec, grid, results, missing, Place(folder, machine, items))
    print_tables(spec, rows)
    return missing


def _items(entry: Entry, split: str) -> Items:
    """The signals of a case, whose systems all have the same data."""
    config = entry.config
    items = open_data(config.data, config.model.channels, (split,), config.model.axes)[1][split]
    stride, least = config.model.levels[0].stride, min(items.shape[1:])
    if stride > least:
        raise InputError(f"{entry.title}: model.levels.0.stride={stride} is larger than the {items.medium.noun}s; expected at most {least}")
    return items
