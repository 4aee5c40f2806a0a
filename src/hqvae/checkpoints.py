"""Checkpoints of a run, one file a step: written whole, checked when they are read.

Torch writes a zip file with a checksum (CRC-32) of every tensor, and never looks at it again. A bit
that a disk has flipped is found here, and the checkpoint before takes the damaged one's place.
"""

import io
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from hqvae.errors import InputError, summary_of
from hqvae.files import atomic_write

logger = logging.getLogger("hqvae")
KEPT_CHECKPOINTS = 2
# What zipfile and torch raise for damaged files.
_UNREADABLE = (
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
# What is raised by those who are given a state of another shape.
UNFIT = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of step `state["step"]`, then drop all but the newest checkpoints."""
    with atomic_write(folder / f"{state['step']:09d}.pt") as temporary:
        # Through memory: torch's own file writer hides why the system refused.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        temporary.write_bytes(buffer.getbuffer())
    for old in _checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()


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
