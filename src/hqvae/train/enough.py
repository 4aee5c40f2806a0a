"""How many batches are enough to start codebooks from, or to count codes in."""

import math

from hqvae.data import Dataset
from hqvae.model import HQVAEConfig

_ROWS_TO_START = 64  # features of every code, where there are so many
_ROWS_TO_FIT = 256
_MAX_BATCHES = 16  # that codebooks start from
_MAX_SAMPLES = 2**26  # of signals


def batches_to_start(model: HQVAEConfig, data: Dataset, batch_size: int) -> int:
    """Global batches that codebooks start from."""
    return min(_batches(_ROWS_TO_START, model, data, batch_size), _MAX_BATCHES)


def batches_to_fit(model: HQVAEConfig, data: Dataset, batch_size: int) -> int:
    """Global batches that a learned prior is fitted to, for other weights than its own."""
    return _batches(_ROWS_TO_FIT, model, data, batch_size)


def _batches(rows_per_code: int, model: HQVAEConfig, data: Dataset, batch_size: int) -> int:
    """As many as give each code of any layer so many features, where they fit into memory."""
    layers = zip(model.layers, model.positions(data.shape[1:]))
    wanted = max(rows_per_code * layer.codebook_size / positions for layer, positions in layers)
    fit = _MAX_SAMPLES // (batch_size * math.prod(data.shape))
    return max(1, math.ceil(min(wanted / batch_size, len(data) / batch_size, fit)))
