"""How close signals are and how codes are used: fed batch by batch, summed over processes.

But IDs of items (`ids.py`) are measured as a whole: whether two are the same has no batches.


Means are over the whole split, weighted by the number of signals: never means of batch means.
Torchmetrics is imported where it is first needed: it takes seconds.
"""

from .arrays import ArrayError
from .audio import AudioQuality, stft_distance
from .base import Mean, Metric
from .distortion import PEAK_SQUARE, SSIM, Distortion, psnr, ssim
from .ids import IdMeasures, LayerUse, PrefixMeasures, measure_ids
from .perceptual import Perceptual
from .usage import Usage

__all__ = [
    "PEAK_SQUARE",
    "SSIM",
    "ArrayError",
    "AudioQuality",
    "Distortion",
    "IdMeasures",
    "LayerUse",
    "Mean",
    "Metric",
    "Perceptual",
    "PrefixMeasures",
    "Usage",
    "measure_ids",
    "psnr",
    "ssim",
    "stft_distance",
]
