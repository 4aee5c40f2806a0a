"""Command line: `hqvae VERB …`. What cannot be used ends in one sentence and exit code 2."""

import logging
import os
import sys
from io import TextIOWrapper

import cyclopts

from hqvae.errors import InputError
from hqvae.files import FULL

from . import tokens, verbs  # noqa: F401  they add their verbs to the command
from .app import STOPPED, app
from .sentences import with_example, with_flags

__all__ = ["app", "main"]

_REFUSED = 2
_NOBODY_READS = 141  # as shells have it of a process that SIGPIPE ends


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ and − outside of UTF-8
    _show_warnings()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code or 0
    except InputError as error:
        return _fail(with_flags(str(error), words[0] if words else ""))
    except cyclopts.CycloptsError as error:
        return _fail(with_example(" ".join(str(error).split()), words))
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except OSError as error:
        if error.errno in FULL:
            disk = error.filename or "the run folder"
            return _fail(f"no space left on the disk of {disk}; free some and go on with --resume")
        name = error.filename2 or error.filename
        if name is None:
            return _fail(str(error))
        return _fail(f"{name} cannot be written or read: {error.strerror}")
    except MemoryError as error:
        return _fail(f"not enough memory{f': {error}' if str(error) else ''}; close what needs it")
    except KeyboardInterrupt:
        return _fail("interrupted", STOPPED)


class _CurrentStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_warnings() -> None:
    """Ours, on standard error; other libraries show theirs by themselves."""
    logger = logging.getLogger("hqvae")
    if not any(isinstance(handler, _CurrentStderr) for handler in logger.handlers):
        handler = _CurrentStderr()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)


def _fail(sentence: str, code: int = _REFUSED) -> int:
    print(f"hqvae: {sentence}", file=sys.stderr)
    return code
