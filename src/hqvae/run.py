"""Run: one folder = config + weights + checkpoints + log + report; only this file knows its layout.

    RUN/config.json            the whole config, versions, fingerprints of the data's splits
    RUN/model.safetensors      the weights that are evaluated
    RUN/checkpoints/*.pt       what training needs to go on bitwise (tensors and plain values only)
    RUN/log.jsonl              one JSON object per log line
    RUN/left-out.jsonl         items of the data that cannot be read, where there are any
    RUN/report/                tables and pictures

All files but the log are written atomically; the log is only appended to.
"""

import hashlib
import io
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError

from hqvae.config import Config
from hqvae.errors import InputError, summary_of
from hqvae.files import atomic_write, lock
from hqvae.model import HQVAE
from hqvae.model.pretrained import save_weights
from hqvae.overrides import difference, from_dict, to_dict
from hqvae.versions import versions

logger = logging.getLogger("hqvae")
FORMAT = 2  # of the folder; 1 was that of hqvae 0.1 before its layers became levels
KEPT_CHECKPOINTS = 2
# What torch raises for damaged checkpoints.
_UNREADABLE = (RuntimeError, EOFError, OSError, LookupError, ValueError, pickle.UnpicklingError)
_NO_FINGERPRINTS: Mapping[str, str] = MappingProxyType({})


class Run:
    """A run's folder. Make one with `create`, `resume` or `open`.

    >>> from tempfile import TemporaryDirectory
    >>> from hqvae.presets import preset
    >>> with TemporaryDirectory() as folder:
    ...     run = Run.create(Path(folder) / "first", preset("sqvae"))
    ...     run.log({"kind": "train", "step": 1, "psnr": 21.5})
    ...     Run.open(run.path).entries("train")
    [{'kind': 'train', 'step': 1, 'psnr': 21.5}]
    """

    def __init__(self, path: Path, config: Config, fingerprints: Mapping[str, str]):
        self.path = path
        self.config = config
        self.fingerprints = fingerprints

    # ------------------------------------------------------------------------------ opening

    @staticmethod
    def check_unused(path: str | Path) -> None:
        """Raises InputError when a new run cannot have this folder."""
        path = Path(path)
        if path.is_file():
            raise InputError(f"out={str(path)!r} is a file; expected a new folder")
        if path.is_dir() and any(path.iterdir()):
            what = "files that are no run; choose"
            if (path / "config.json").exists():
                what = "a run; continue it with resume=True, or choose"
            raise InputError(f"out={str(path)!r} already holds {what} another folder")

    @classmethod
    def create(
        cls, path: str | Path, config: Config, fingerprints: Mapping[str, str] = _NO_FINGERPRINTS
    ) -> "Run":
        """A new run; `fingerprints` say what each split of the data is made of.

        Raises InputError when the folder is already in use or cannot be made.
        """
        cls.check_unused(path)
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out={str(path)!r} cannot be made: {error.strerror}") from error
        run = cls(path, config, fingerprints)
        about = {"format": FORMAT, "fingerprints": dict(fingerprints), "versions": versions()}
        run.write_json("config.json", {**to_dict(config), **about})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run. Raises InputError when there is none that this version can read."""
        path = Path(path)
        saved = _read_config(path)
        if saved.keys() == {"model"} and isinstance(saved["model"], dict):
            hint = "load it with HQVAE.from_pretrained"
            raise InputError(f"{str(path)!r} holds a model and no run; {hint}")
        made_with = saved.pop("versions", None)
        made_in = saved.pop("format", 1)
        if made_in != FORMAT:
            made_by = made_with.get("hqvae", "?") if isinstance(made_with, dict) else "?"
            raise InputError(
                f"run {str(path)!r} was made by hqvae {made_by} (format {made_in}), which this "
                f"version cannot read (hqvae {version('hqvae')}, format {FORMAT}); "
                "use the version that made it, or train again in a new folder"
            )
        fingerprints = saved.pop("fingerprints", {})
        return cls(path, from_dict(saved), fingerprints)

    @classmethod
    def resume(
        cls, path: str | Path, config: Config, fingerprints: Mapping[str, str] = _NO_FINGERPRINTS
    ) -> "Run":
        """An existing run, to go on with this config and data.

        Raises InputError when the run was made with another config or other data.
        """
        run = cls.open(path)
        if changed := difference(run.config, config):
            raise InputError(f"run {str(path)!r} was made with another config: {changed}")
        for split in ("train", "validation"):
            then, now = run.fingerprints.get(split), fingerprints.get(split)
            if then and now and then != now:
                raise InputError(
                    f"the {split} split of {config.data.source!r} has changed since run "
                    f"{str(path)!r} began ({then} then, {now} now): "
                    "put back what it was, or begin a new run"
                )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training into this folder.

        The lock ends with the block, or with the process, however it ends. Raises InputError when
        another process holds it.
        """
        # Opened for writing, because network file systems ask for it.
        with (self.path / "config.json").open("r+b") as file:
            if not lock(file):
                raise InputError(
                    f"run {str(self.path)!r} is in use: another process is training into it"
                )
            yield

    # ------------------------------------------------------------------------------ writing

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
        return [entry for entry in self.read_lines(self.log_path.name) if entry["kind"] == kind]

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """What `log` or `write_lines` wrote, but for a line that a killed run left incomplete."""
        path = self.path / name
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def truncate_log(self, step: int) -> None:
        """Drop the log's entries after a step, and an incomplete last line.

        A resumed run writes them again.
        """
        if self.log_path.exists():
            entries = self.read_lines(self.log_path.name)
            self.write_lines(self.log_path.name, [e for e in entries if e["step"] <= step])

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """One JSON object per line, written atomically."""
        with atomic_write(self.path / name) as temporary, temporary.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """A plain value as a JSON file of this name."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")
        return self.path / name

    def save_figure(self, name: str, figure: Figure) -> Path:
        """A figure in the report; the name's ending says the format."""
        with atomic_write(self.path / "report" / name) as temporary:
            figure.savefig(temporary, format=name.rsplit(".", 1)[1])
        return self.path / "report" / name

    def save_audio(self, name: str, samples: np.ndarray, rate: int) -> Path:
        """A waveform [T] in [−1, 1] in `report/audio/`, as 16-bit WAV."""
        import soundfile

        with atomic_write(self.path / "report" / "audio" / name) as temporary:
            soundfile.write(temporary, samples, rate, subtype="PCM_16", format="WAV")
        return self.path / "report" / "audio" / name

    def save_model(self, model: HQVAE) -> None:
        """The weights that are evaluated."""
        with atomic_write(self.path / "model.safetensors") as temporary:
            try:
                save_weights(model, temporary)
            except SafetensorError as error:
                # The system's reason is in the text only.
                reason = re.search(r"os error (\d+)", str(error))
                if reason is None:
                    raise
                number = int(reason[1])
                raise OSError(number, os.strerror(number), str(self.path)) from error

    def weights_sha256(self) -> str:
        """The digest of the weights, by which a report names them."""
        return hashlib.sha256((self.path / "model.safetensors").read_bytes()).hexdigest()

    def load_model(self) -> HQVAE:
        """The weights, in evaluation mode.

        Raises InputError when there are none yet, or they cannot be read.
        """
        if not (self.path / "model.safetensors").is_file():
            raise InputError(
                f"run {str(self.path)!r} has no weights yet: it was stopped before its first "
                "checkpoint, or before codebooks started"
            )
        try:
            return HQVAE.from_pretrained(self.path)
        except Exception as error:  # safetensors raises a class of its own for broken files
            raise InputError(
                f"the weights of run {str(self.path)!r} cannot be read: {summary_of(error)}"
            ) from error

    # ------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of step `state["step"]`, then drop all but the newest checkpoints."""
        with atomic_write(self.path / "checkpoints" / f"{state['step']:09d}.pt") as temporary:
            # Through memory: torch's own file writer hides why the system refused.
            buffer = io.BytesIO()
            torch.save(state, buffer)
            temporary.write_bytes(buffer.getbuffer())
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None when there is none.

        Raises InputError when there are checkpoints and none can be read.
        """
        # A disk may damage even a finished file; the checkpoint before it still serves.
        for path in reversed(self._checkpoints()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except _UNREADABLE as error:
                logger.warning(
                    "checkpoint %s cannot be read (%s); the one before it takes its place",
                    path,
                    summary_of(error),
                )
        if self._checkpoints():
            raise InputError(
                f"none of the checkpoints in {self.path / 'checkpoints'} can be read; "
                "delete them to start over"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("*.pt"))


def _read_config(path: Path) -> dict[str, Any]:
    """What config.json holds. Raises InputError when it is missing or no JSON object."""
    config_path = path / "config.json"
    if not config_path.is_file():
        siblings = list(path.parent.iterdir()) if path.parent.is_dir() else []
        beside = [p.name for p in siblings if (p / "config.json").is_file()]
        hint = f"; runs beside it: {', '.join(beside)}" if beside else ""
        raise InputError(f"{str(path)!r} is no run: it has no config.json{hint}")
    try:
        saved = json.loads(config_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{config_path} is not readable JSON: {error}") from error
    if not isinstance(saved, dict):
        raise InputError(f"{config_path} is no config: it holds {saved!r}")
    return saved
