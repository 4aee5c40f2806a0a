"""How many batches are enough to start codebooks from, or to count codes in."""

import math

from hqvae.data import Dataset
from hqvae.model import HQVAEConfig

_ROWS_TO_START = 64  # features of every code, where there are so many
_MAX_BATCHES = 16  # that codebooks start from
_ROWS_TO_FIT = 2**16  # positions of the finest layer
_MAX_SAMPLES = 2**26  # of signals


def batches_to_start(model: HQVAEConfig, data: Dataset, batch_size: int) -> int:
    """Global batches that codebooks start from."""
    layers = zip(model.layers, model.positions(data.shape[1:]))
    wanted = max(_ROWS_TO_START * layer.codebook_size / positions for layer, positions in layers)
    return min(_batches(wanted, data, batch_size), _MAX_BATCHES)


def batches_to_fit(model: HQVAEConfig, data: Dataset, batch_size: int) -> int:
    """Global batches that a learned prior is fitted to, once training is done."""
    return _batches(_ROWS_TO_FIT / max(model.positions(data.shape[1:])), data, batch_size)


def _batches(wanted: float, data: Dataset, batch_size: int) -> int:
    """As many as hold so many samples, where there are so many and they fit into memory."""
    fit = _MAX_SAMPLES // (batch_size * math.prod(data.shape))
    return max(1, math.ceil(min(wanted / batch_size, len(data) / batch_size, fit)))
