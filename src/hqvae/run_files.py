"""What a run's folder holds beside config and weights: the log, lists, figures and sounds.

All files but the log are written atomically; the log is only appended to.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hqvae.data.sound_files import write_wav
from hqvae.errors import InputError
from hqvae.files import atomic_write, read_json, read_json_lines, write_json, write_json_lines

logger = logging.getLogger("hqvae")
_NAMED = 5  # runs that a message names


class RunFiles:
    """The files of a run's folder that are written while it trains and is measured."""

    def __init__(self, path: Path):
        self.path = path
        self._said: set[str] = set()  # files with damaged lines

    @property
    def log_path(self) -> Path:
        """The log: one JSON object per line."""
        return self.path / "log.jsonl"

    def log(self, entry: dict[str, Any]) -> None:
        """Append an entry; it has a `kind` and a `step`."""
        with self.log_path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """The log's entries of one kind (`train`, `validation`, `alarm`), oldest first."""
        entries = self.read_lines(self.log_path.name)
        return [entry for entry in entries if entry.get("kind") == kind]

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """What `log` or `write_lines` wrote, but for lines that hold no JSON object.

        A last line that a killed run left incomplete is passed over; any other is said.
        """
        path = self.path / name
        rows, damaged = read_json_lines(path)
        if damaged and name not in self._said:
            self._said.add(name)  # it is read at every validation
            logger.warning(
                "%s: %d line(s) that hold no JSON object are passed over, the first is line %d",
                path,
                len(damaged),
                damaged[0],
            )
        return rows

    def truncate_log(self, step: int) -> None:
        """Drop the log's entries after a step, and what is no entry.

        A resumed run writes them again.
        """
        if self.log_path.exists():
            entries = self.read_lines(self.log_path.name)
            kept = [entry for entry in entries if _step_of(entry) <= step]
            self.write_lines(self.log_path.name, kept)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """One JSON object per line, written atomically."""
        write_json_lines(self.path / name, rows)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """A plain value as a JSON file of this name."""
        write_json(self.path / name, value)
        return self.path / name

    def save_figure(self, name: str, figure: Figure) -> Path:
        """A figure in the report; the name's ending says the format."""
        with atomic_write(self.path / "report" / name) as temporary:
            figure.savefig(temporary, format=name.rsplit(".", 1)[1])
        return self.path / "report" / name

    def save_audio(self, name: str, samples: np.ndarray, rate: int) -> Path:
        """A waveform [T] in [−1, 1] in `report/audio/`, as 16-bit WAV."""
        with atomic_write(self.path / "report" / "audio" / name) as temporary:
            write_wav(temporary, samples, rate)
        return self.path / "report" / "audio" / name


def _step_of(entry: Mapping[str, Any]) -> float:
    """Of an entry of the log; infinite where it has none."""
    step = entry.get("step")
    return float(step) if isinstance(step, int) else math.inf


def is_unused(path: Path) -> bool:
    """Whether a folder holds nothing but what a killed process left half-written, or a cache."""
    if not path.is_dir():
        return False
    return all(re.fullmatch(r"\..*\.partial|\.arrow", p.name) for p in path.iterdir())


def runs_beside(path: Path) -> str:
    """The end of a sentence, with the names of runs in it or beside it; empty without any."""
    for where, folder in (("in", path), ("beside", path.parent)):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        names = [p.name for p in inside if _is_run(p)]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            return f"; runs {where} it: {', '.join(names[:_NAMED])}{more}"
    return ""


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run, and not a model alone."""
    config = path / "config.json"
    return config.is_file() and b'"train"' in config.read_bytes()


def read_config(path: Path) -> dict[str, Any]:
    """What config.json holds. Raises InputError when it is missing or no JSON object."""
    config_path = path / "config.json"
    if not config_path.is_file():
        what = "has no config.json" if path.exists() else "does not exist"
        raise InputError(f"{str(path)!r} is no run: it {what}{runs_beside(path)}")
    try:
        return read_json(config_path)
    except ValueError as error:
        raise InputError(str(error)) from error
