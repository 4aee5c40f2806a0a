"""What cannot be used, said in one sentence.

The library raises these errors; the command prints an `InputError` and exits with code 2.
"""

import difflib
import logging
from collections.abc import Iterable


class InputError(ValueError):
    """A value, path or file that a person gave and that cannot be used.

    The message names it, says what was expected, and gives the nearest valid name.
    """


class NonFiniteError(ValueError):
    """Values that are NaN or infinite, or whose squares overflow float32."""


class DegenerateFeatures(ValueError):
    """Features that are all the same or not finite: no scale and no codebook fits them."""


def printable(text: str) -> str:
    """The text with what is not UTF-8, as in some file names, escaped: any stream takes it.

    >>> printable("caf" + bytes([0xE9]).decode(errors="surrogateescape"))
    'caf\\\\udce9'
    """
    return text.encode(errors="backslashreplace").decode()


def _escape_message(record: logging.LogRecord) -> bool:
    record.msg = printable(record.getMessage())
    record.args = None
    return True


logging.getLogger("hqvae").addFilter(_escape_message)


def nearest_name(name: str, names: Iterable[str]) -> str:
    """`did you mean 'X'?` for the closest of `names`; `expected one of: X, Y` if none is close.

    >>> nearest_name("sqvea", ["vqvae2", "sqvae"])
    "did you mean 'sqvae'?"
    >>> nearest_name("gpu", ["cpu", "auto"])
    "did you mean 'cpu'?"
    >>> nearest_name("?", ["cpu", "auto"])
    'expected one of: auto, cpu'
    """
    names = sorted(names)
    return close_name(name, names) or f"expected one of: {', '.join(names)}"


def close_name(name: str, names: Iterable[str]) -> str | None:
    """`did you mean 'X'?` for the closest of `names`; None if none is close.

    >>> close_name("photo", ["photos", "pictures"])
    "did you mean 'photos'?"
    """
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None


def summary_of(error: BaseException) -> str:
    """The first line of another library's error message; the error's class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
