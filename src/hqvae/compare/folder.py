"""Where a comparison lies: its runs, what their commands printed, and their figures.

OUT/runs/NAME/                 an ordinary run
OUT/runs/NAME.log              what its commands printed
OUT/results/NAME.SPLIT.json    its figures; a run that has them is done
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hqvae.errors import InputError
from hqvae.files import atomic_write, lock, read_json
from hqvae.overrides import difference, from_dict

from .spec import RunSpec, run_name


class ComparisonDir:
    """Where a comparison lies, and the only place that knows its layout."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def run(self, spec: RunSpec) -> Path:
        """The run's folder."""
        return self.path / "runs" / spec.name

    def log(self, spec: RunSpec) -> Path:
        """What the run's commands print."""
        return self.path / "runs" / f"{spec.name}.log"

    def result(self, spec: RunSpec, split: str) -> dict[str, Any] | None:
        """A finished run's figures; None while there are none.

        Raises InputError when they are another config's, or damaged.
        """
        path = self._result(spec.name, split)
        if not path.exists():
            return None
        try:
            saved = read_json(path)
            config = saved["config"]
        except (ValueError, LookupError) as error:
            raise _damaged(path) from error
        try:
            changed = difference(from_dict(config), spec.config)
        except InputError as error:  # of a version that had other settings
            changed = str(error)
        if changed:
            raise InputError(
                f"{path} is of another config: {changed}; "
                "choose another folder, or delete what is to be run again"
            )
        for name in ("measures", "protocol"):
            if not isinstance(saved.get(name), dict):
                raise _damaged(path)
        return saved

    def save_result(self, split: str, result: dict[str, Any]) -> None:
        """Keep a finished run's figures, with which it counts as done."""
        name = run_name(result["case"], result["system"], result["seed"])
        with atomic_write(self._result(name, split)) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")

    def _result(self, name: str, split: str) -> Path:
        return self.path / "results" / f"{name}.{split}.json"

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Two processes that finish together write their reports one after the other."""
        with (self.path / "report.lock").open("ab") as file:
            lock(file, wait=True)
            yield


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} holds no figures of a run; delete it, and they are taken again")
