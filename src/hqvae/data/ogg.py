"""The last page of an Ogg file: which stream it is of, and whether that ends there."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

_HEADER = 27  # bytes of a page's header without its table of segments
_LARGEST = 65_307  # bytes of a page
_FLAGS = 5  # place in the header
_ENDS_STREAM = 4  # among the flags
_SERIAL = slice(14, 18)  # in the header: the number of the stream that the page is of


class LastPage(NamedTuple):
    """What the last page of an Ogg file tells."""

    of_another_stream: bool
    """Whether it is of another stream than the first page: the file is a chain."""
    ends_stream: bool
    """Whether its stream ends with it; else the file was cut, or never closed."""


def last_page(source: Path | BytesIO) -> LastPage:
    """The last page of an Ogg file. Source: RFC 3533, section 6."""
    if isinstance(source, BytesIO):
        data = source.getbuffer()
        head = bytes(data[:_HEADER])
        tail = bytes(data[-2 * _LARGEST :])
    else:
        with source.open("rb") as file:
            head = file.read(_HEADER)
            file.seek(max(0, source.stat().st_size - 2 * _LARGEST))
            tail = file.read()
    start = max(0, tail.rfind(b"OggS", 0, len(tail) - _HEADER + 4))
    header = tail[start : start + _HEADER]
    table = tail[start + _HEADER : start + _HEADER + header[-1]]
    whole = len(tail) >= start + _HEADER + header[-1] + sum(table)
    ends = bool(header[_FLAGS] & _ENDS_STREAM) and whole
    return LastPage(header[_SERIAL] != head[_SERIAL], ends)
