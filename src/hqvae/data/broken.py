"""Items that cannot be had, and errors that are their fault."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hqvae.errors import InputError, summary_of

# Of a machine that has no memory or no files left, or whose network drive does not answer.
_NO_FAULT_OF_AN_ITEM = frozenset(
    {errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
)


class BrokenItem(Exception):
    """An item that cannot be decoded, or an example that its item does not hold.

    >>> str(BrokenItem("a.png", "no image"))
    'a.png (no image)'
    """

    def __init__(self, key: str, reason: str):
        super().__init__(key, reason)  # as pickle makes it again
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key} ({self.reason})"


def is_fault_of_items(error: Exception) -> bool:
    """Whether items that are read are broken, and not the machine: decoders raise anything."""
    if isinstance(error, OSError) and error.errno in _NO_FAULT_OF_AN_ITEM:
        return False
    return not isinstance(error, InputError | MemoryError)


@contextmanager
def damage_said(source: str) -> Iterator[None]:
    """Raises InputError where all items are read at once in the block, and some are damaged."""
    try:
        yield
    except Exception as error:
        if not is_fault_of_items(error):
            raise
        raise InputError(f"data {source!r} cannot be read: {summary_of(error)}") from error
