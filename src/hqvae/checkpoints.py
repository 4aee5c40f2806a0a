"""Checkpoints of a run, one file a step: written whole, checked when they are read.

The SHA-256 of each lies beside it (`000001000.sha256`). Torch looks at no checksum of its zip
files, and theirs are of the tensors alone. A bit that a disk has flipped is found here, and the
checkpoint before takes the damaged one's place.
"""

import hashlib
import io
import logging
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hqvae.errors import InputError, summary_of
from hqvae.files import atomic_write

logger = logging.getLogger("hqvae")
KEPT_CHECKPOINTS = 2
_DIGEST = ".sha256"
# What zipfile and torch raise for damaged files.
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)
# What is raised by those who are given a state of another shape.
UNFIT = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of step `state["step"]`, then drop all but the newest checkpoints."""
    path = folder / f"{state['step']:09d}.pt"
    # Through memory: torch's own file writer hides why the system refused.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = path.with_suffix(_DIGEST)
    digest.unlink(missing_ok=True)  # of the same step before: it must not meet the new checkpoint
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    with atomic_write(digest) as temporary:
        temporary.write_text(hashlib.sha256(buffer.getbuffer()).hexdigest())
    for old in _checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()
        old.with_suffix(_DIGEST).unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None when there is none.

    Raises InputError when there are checkpoints and none can be read.
    """
    paths = _checkpoints(folder)
    for path, before in zip(reversed(paths), [*reversed(paths[:-1]), None]):
        try:
            return _read(path)
        except _UNREADABLE as error:
            instead = f"; {before.name} takes its place" if before else ""
            logger.warning("checkpoint %s cannot be read (%s)%s", path, summary_of(error), instead)
    if paths:
        raise InputError(
            f"none of the checkpoints in {str(folder)!r} can be read; delete them to start over"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    """Raises one of _UNREADABLE for a file that is not what was written."""
    digest = path.with_suffix(_DIGEST)
    if digest.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest.read_text(errors="replace"):
            raise ValueError("its checksum is wrong")
    else:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"its checksum of {damaged} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError("it holds no state of training")
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if path.is_file())
