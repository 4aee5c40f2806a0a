"""Run: one folder = config + weights + checkpoints + log + report. The only place that knows its layout.

    RUN/config.json            the whole config, versions, what the data's splits are made of
    RUN/model.safetensors      the weights that are evaluated
    RUN/checkpoints/*.pt       everything training needs to go on bitwise (tensors and plain values only)
    RUN/log.jsonl              one JSON object per log line
    RUN/report/                tables and pictures

Every file appears whole or not at all: written beside its place, flushed to disk, then moved.
"""

import errno
import io
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import save_model

from hqvae.config import Config, difference, from_dict, to_dict
from hqvae.errors import InputError, summary_of
from hqvae.model import HQVAE

log = logging.getLogger("hqvae")
KEPT_CHECKPOINTS = 2


class Run:
    """A run's folder. Make one with `create`, `resume` or `open`."""

    def __init__(self, path: Path, config: Config, contents: Mapping[str, str]):
        self.path, self.config, self.contents = path, config, contents

    # ------------------------------------------------------------------------------------------------ opening

    @staticmethod
    def refuse_used(path: str | Path) -> None:
        """Raises InputError when a new run cannot have this folder."""
        path = Path(path)
        if path.is_file():
            raise InputError(f"--out {str(path)!r} is a file; expected a new folder")
        if path.is_dir() and any(path.iterdir()):
            run = (path / "config.json").exists()
            what = "a run; continue it with --resume, or choose" if run else "files that are no run; choose"
            raise InputError(f"--out {str(path)!r} already holds {what} another folder")

    @classmethod
    def create(cls, path: str | Path, config: Config, contents: Mapping[str, str] = MappingProxyType({})) -> "Run":
        """A new run; `contents` says what the data's splits are made of. Raises InputError when the folder is already in use."""
        cls.refuse_used(path)
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {str(path)!r} cannot be made: {error.strerror}") from error
        run = cls(path, config, contents)
        run.write_json("config.json", {**to_dict(config), "contents": dict(contents), "versions": versions()})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run. Raises InputError when there is none."""
        path = Path(path)
        if not (path / "config.json").is_file():
            beside = [p.name for p in path.parent.iterdir() if (p / "config.json").is_file()] if path.parent.is_dir() else []
            raise InputError(
                f"{str(path)!r} is no run: it has no config.json" + (f"; runs beside it: {', '.join(beside)}" if beside else "")
            )
        try:
            saved = json.loads((path / "config.json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path / 'config.json'} is not readable JSON: {error}") from error
        if not isinstance(saved, dict):
            raise InputError(f"{path / 'config.json'} is no config: it holds {saved!r}")
        saved.pop("versions", None)
        contents = saved.pop("contents", {})  # which the oldest runs do not say
        return cls(path, from_dict(saved), contents)

    @classmethod
    def resume(cls, path: str | Path, config: Config, contents: Mapping[str, str] = MappingProxyType({})) -> "Run":
        """An existing run, to go on with this config and data. Raises InputError when it was made with others."""
        run = cls.open(path)
        changed = difference(run.config, config)
        if changed:
            raise InputError(f"run {str(path)!r} was made with another config: {changed}")
        for split in ("train", "validation"):
            before, now = run.contents.get(split), contents.get(split)
            if before and now and before != now:
                raise InputError(
                    f"the {split} split of {config.data.source!r} has changed since run {str(path)!r} began ({before} then, {now} now): "
                    "put back what it was, or begin a new run"
                )
        return run

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes from training into this folder. The lock ends with the block, or the process, however it ends.

        Raises InputError when another process holds it.
        """
        with (self.path / "config.json").open("r+b") as held:  # writable, because network file systems ask for it
            if not lock(held):
                raise InputError(f"run {str(self.path)!r} is in use: another process is training into it")
            yield

    # ------------------------------------------------------------------------------------------------ writing

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    def log(self, entry: dict[str, Any]) -> None:
        with self.log_path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """The log's entries of one kind (`train`, `validation`, `alarm`), oldest first."""
        if not self.log_path.exists():
            return []
        return [entry for _, entry in self._lines() if entry["kind"] == kind]

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The log's lines and what they say; one that a killed run left torn is passed over."""
        for line in self.log_path.read_text().splitlines():
            try:
                yield line, json.loads(line)
            except json.JSONDecodeError:
                continue

    def forget_after(self, step: int) -> None:
        """Drop the log's lines past a step, and a torn last one: the resumed run writes them again."""
        if self.log_path.exists():
            lines = [line for line, entry in self._lines() if entry["step"] <= step]
            with whole(self.log_path) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))

    def write_json(self, name: str, value: Any) -> Path:
        with whole(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")
        return self.path / name

    def save_figure(self, name: str, figure: Figure) -> Path:
        """A picture in the report."""
        with whole(self.path / "report" / name) as temporary:
            figure.savefig(temporary, format=name.rsplit(".", 1)[1])
        return self.path / "report" / name

    def save_sound(self, name: str, samples: np.ndarray, rate: int) -> Path:
        """A sound [T] in [−1, 1] among the report's, 16-bit WAV."""
        import soundfile

        with whole(self.path / "report" / "sounds" / name) as temporary:
            soundfile.write(temporary, samples, rate, subtype="PCM_16", format="WAV")
        return self.path / "report" / "sounds" / name

    def save_model(self, model: HQVAE) -> None:
        with whole(self.path / "model.safetensors") as temporary:
            try:
                save_model(model, str(temporary))
            except SafetensorError as error:  # says the system's reason in its text only
                found = re.search(r"os error (\d+)", str(error))
                raise (OSError(int(found[1]), os.strerror(int(found[1])), str(self.path)) if found else error) from error

    def load_model(self) -> HQVAE:
        """The weights, in evaluation mode. Raises InputError when there are none yet, or they are broken."""
        if not (self.path / "model.safetensors").is_file():
            raise InputError(
                f"run {str(self.path)!r} has no weights yet: it was stopped before its first checkpoint, or before codebooks started"
            )
        try:
            return HQVAE.from_pretrained(self.path)
        except Exception as error:  # safetensors raises its own class for broken files
            raise InputError(f"the weights of run {str(self.path)!r} cannot be read: {summary_of(error)}") from error

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of step `state["step"]`, then drop all but the newest checkpoints."""
        with whole(self.path / "checkpoints" / f"{state['step']:09d}.pt") as temporary:
            torch.save(state, buffer := io.BytesIO())  # torch's own file writer hides why the system refused
            temporary.write_bytes(buffer.getbuffer())
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None when there is none. Raises InputError when there are, and all are broken."""
        for path in reversed(self._checkpoints()):  # a disk may tear even a finished file; the one before it still serves
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, LookupError, ValueError, pickle.UnpicklingError) as error:
                log.warning("checkpoint %s cannot be read (%s); the one before it takes its place", path, summary_of(error))
        if self._checkpoints():
            raise InputError(f"none of the checkpoints in {self.path / 'checkpoints'} can be read; delete them to start over")
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("*.pt"))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block succeeds, and disappears when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def lock(held: IO[Any], wait: bool = False) -> bool:
    """Take the lock of a file open for writing, until it is closed or the process ends, however it ends; False when another has it.

    Raises InputError on a file system without locks.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise InputError(f"{held.name} cannot be locked: {error.strerror}; choose a folder on a file system with locks") from error
    return True


def versions() -> dict[str, str]:
    """Of what numbers may depend on."""
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("hqvae", "torch", "numpy", "pillow")}}
