"""What a person got wrong, said in one sentence: the command prints it and exits with 2, the library raises it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value, path or file that cannot be used; the message names it, what was expected, and the nearest valid name."""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' for the closest of `names`, or the whole list when none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to its first line; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class NonFiniteError(ValueError):
    """Values are NaN or infinite, or their distances overflow."""


class DegenerateFeatures(ValueError):
    """Features are all the same or not finite: neither a codebook nor a scale can start there."""
