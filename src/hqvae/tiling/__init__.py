"""Signals of any size and batches of several: the same tokens as one by one, in bounded memory."""

from .chunked import decode_chunked, encode_chunked, receptive_margin
from .padded import decode_padded, encode_padded
from .windows import Window, Windows, put, take

__all__ = [
    "Window",
    "Windows",
    "decode_chunked",
    "decode_padded",
    "encode_chunked",
    "encode_padded",
    "put",
    "receptive_margin",
    "take",
]
