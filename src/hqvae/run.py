"""Run: one folder = config + weights + checkpoints + log + report; only this file knows its layout.

    RUN/config.json            the whole config, versions, fingerprints of the data's splits
    RUN/model.safetensors      the weights that are evaluated
    RUN/checkpoints/*.pt       what training needs to go on bitwise (tensors and plain values only)
    RUN/checkpoints/*.sha256   their checksums
    RUN/log.jsonl              one JSON object per log line
    RUN/left-out.jsonl         items of the data that cannot be read, where there are any
    RUN/report/                tables and pictures

All files but the log are written atomically; the log is only appended to.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError

from hqvae.checkpoints import UNFIT, load_checkpoint, save_checkpoint
from hqvae.config import Config
from hqvae.errors import InputError, summary_of
from hqvae.files import atomic_write, lock
from hqvae.model import HQVAE
from hqvae.model.pretrained import save_weights
from hqvae.overrides import difference, from_dict, to_dict
from hqvae.run_files import RunFiles, is_unused, read_config, runs_beside
from hqvae.versions import versions

logger = logging.getLogger("hqvae")
# What may be another than at the start: how long, from where, and what is said meanwhile.
CHANGEABLE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.tensorboard",
    "data.source",
    "data.workers",
    "data.cache_mb",
)
FORMAT = 2  # of the folder; 1 was that of hqvae 0.1 before its layers became levels
_NO_FINGERPRINTS: Mapping[str, str] = MappingProxyType({})


class Run(RunFiles):
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
        super().__init__(path)
        self.config = config
        self.fingerprints = fingerprints

    # ------------------------------------------------------------------------------ opening

    @staticmethod
    def check_unused(out: str | Path) -> None:
        """Raises InputError when a new run cannot have this folder."""
        path = Path(out)
        if path.is_file():
            raise InputError(f"out={str(path)!r} is a file; expected a new folder")
        if not str(out):
            raise InputError("out='' names no folder; expected a new one, such as runs/first")
        if path.is_dir() and not is_unused(path):
            what = "files that are no run; choose"
            if (path / "config.json").exists():
                what = "a run; continue it with resume=True, or choose"
            raise InputError(f"out={str(path)!r} already holds {what} another folder")

    @staticmethod
    def check_begun(out: str | Path) -> None:
        """Raises InputError where there is nothing to go on with, not even the start of a run."""
        path = Path(out)
        if not path.exists() or is_unused(path):
            raise InputError(
                f"{str(path)!r} holds no run, or one that was stopped before its first step; "
                f"begin it without resume=True{runs_beside(path)}"
            )

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
        run.save_config()
        return run

    def save_config(self) -> None:
        """Write config, versions and fingerprints."""
        about = {"format": FORMAT, "fingerprints": dict(self.fingerprints), "versions": versions()}
        self.write_json("config.json", {**to_dict(self.config), **about})

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run. Raises InputError when there is none that this version can read."""
        path = Path(path)
        saved = read_config(path)
        if (
            "model" in saved
            and saved.keys() <= {"model", "data"}
            and isinstance(saved["model"], dict)
        ):
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
        if not isinstance(fingerprints, dict) or any(
            not isinstance(value, str) for value in fingerprints.values()
        ):
            raise InputError(
                f"{path / 'config.json'}: fingerprints={fingerprints!r:.80}: "
                "expected a name for every split"
            )
        return cls(path, from_dict(saved), fingerprints)

    @classmethod
    def resume(
        cls, path: str | Path, config: Config, fingerprints: Mapping[str, str] = _NO_FINGERPRINTS
    ) -> "Run":
        """An existing run, to go on with this config and data.

        Keys in `CHANGEABLE` may differ; the run's config is what it was.

        Raises InputError when the run was made with another config or other data.
        """
        cls.check_begun(path)
        run = cls.open(path)
        if changed := difference(run.config, config, but=CHANGEABLE):
            raise InputError(
                f"run {str(path)!r} was made with another config: {changed}; "
                "settings need not be repeated, the run has them"
            )
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
            for left in (self.path / "checkpoints").glob(".*.partial"):
                left.unlink(missing_ok=True)  # of a process that was killed
            yield

    # ------------------------------------------------------------------------------ weights

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

        Those that are missing or damaged are had back from the newest checkpoint, with a warning.
        Raises InputError when there are none yet, or neither can be read.
        """
        what = "has no model.safetensors"
        missing = not (self.path / "model.safetensors").exists()
        try:
            if not missing:
                return HQVAE.from_pretrained(self.path)
        except (ValueError, OSError) as error:
            what = f"has weights that cannot be read: {summary_of(error)}"
        model = self._model_of_checkpoint(what)
        if model is not None:
            return model
        if missing:
            what = (
                "has no weights yet: it was stopped before its first checkpoint, or before "
                "codebooks started"
            )
        raise InputError(f"run {str(self.path)!r} {what}")

    def _model_of_checkpoint(self, what: str) -> HQVAE | None:
        """The weights that the newest checkpoint goes with, which are saved again, and said."""
        try:
            state = self.load_checkpoint()
        except InputError as error:
            raise InputError(f"run {str(self.path)!r} {what}; {error}") from error
        if state is None or not state.get("has_weights"):
            return None
        model = HQVAE(self.config.model, data=self.config.data)
        try:
            if state["task"]["posterior"] != model.posterior:
                model.use_nearest()
            weights = state["model"]
            if state["average"] is not None:
                module = "module."
                named = state["average"].items()
                weights = {k.removeprefix(module): v for k, v in named if k.startswith(module)}
            model.load_state_dict(weights)
        except UNFIT as error:
            raise InputError(
                f"run {str(self.path)!r} {what}; its checkpoint does not fit its config"
            ) from error
        logger.warning(
            "run %s %s; those of its checkpoint at step %d take their place",
            self.path,
            what,
            state["step"],
        )
        self.save_model(model)
        return model.eval()

    # ------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of step `state["step"]`, then drop all but the newest checkpoints."""
        save_checkpoint(self.path / "checkpoints", state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None when there is none.

        Raises InputError when there are checkpoints and none can be read.
        """
        return load_checkpoint(self.path / "checkpoints")
