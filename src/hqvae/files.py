"""Files that may be damaged, or written meanwhile: JSON, atomic writes and locks."""

import errno
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import IO, Any

from hqvae.errors import InputError, summary_of

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of a disk, or of a person's share of it."""
# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def atomic_write(path: Path, writer: str = "") -> Iterator[Path]:
    """A temporary path that becomes `path` when the block succeeds, and is removed when it fails.

    The temporary file lies beside `path` and is flushed to disk before it is moved. Where several
    may write the same at once, each names itself as `writer`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{writer and '.'}{writer}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def said_if_full(out: str, next_step: str) -> Iterator[None]:
    """Raises InputError, which says what to do, where the disk of `out` is full in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"no space left on the disk of {out}; free some, and {next_step}"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """A plain value, written atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def create_json(path: Path, value: Any) -> bool:
    """A plain value, written where there is no such file yet; False where there is one."""
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        os.link(temporary, path)  # which never takes the place of another, as a move does
    except OSError as error:
        if path.exists():  # another process was first, and may have put this one's away
            return False
        if error.errno not in _NO_LINKS:
            raise
        write_json(path, value)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line, written atomically."""
    with atomic_write(path) as temporary, temporary.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ValueError, in one sentence, for a file that holds none or cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path} is not readable JSON: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # of bytes, of JSON, and of numbers too long
        raise ValueError(f"{path} is not readable JSON: {summary_of(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """(the JSON objects of a file's lines, the numbers of lines that hold none).

    A last line that a killed process left incomplete is neither. No file has no lines.
    """
    rows = []
    damaged = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            rows.append(value)
        elif line.endswith(b"\n"):
            damaged.append(number)
    return rows, damaged


def lock(file: IO[Any], wait: bool = False) -> bool:
    """Take the lock of a file that is open for writing; False when another process holds it.

    The lock is held until the file is closed or the process ends, however it ends: a worker that
    `multiprocessing` forks does not hold it too. With `wait`, wait for the other process.

    Raises InputError on a file system without locks.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise InputError(
            f"{file.name} cannot be locked: {error.strerror}; "
            "choose a folder on a file system with locks"
        ) from error
    register_after_fork(file, _drop_lock)
    return True


def _drop_lock(file: IO[Any]) -> None:
    """In a worker, which may outlive its parent and would hold its lock: the file leads nowhere."""
    if not file.closed:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, file.fileno(), inheritable=False)
        os.close(nowhere)
