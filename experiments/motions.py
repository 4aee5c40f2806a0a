"""Motions of a wrist as series: aeon's BasicMotions, cut into windows, as an `.npz` to train on.

    pip install aeon
    python experiments/motions.py motions.npz
    hqvae train rsqvae-series --data motions.npz --out runs/motions train.steps=1500
    hqvae evaluate runs/motions

80 recordings of a smart watch, half of them for the test: acceleration and angular velocity, three
axes each, 100 steps of ten a second, in the sensors' units. Four motions: standing, walking,
running, badminton. Windows of 64 steps begin every fourth step: 400 of them from 40 recordings.
Source: the UEA archive of multivariate time series (Bagnall et al., 2018), as aeon ships it.
"""

import sys

import numpy as np

LENGTH = 64  # steps
HOP = 4


def windows(recordings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, C, T] → (windows [M, 64, C], a number for each one's motion)."""
    starts = range(0, recordings.shape[2] - LENGTH + 1, HOP)
    cut = [recordings[:, :, start : start + LENGTH] for start in starts]
    numbers = np.unique(labels, return_inverse=True)[1]
    series = np.concatenate(cut).transpose(0, 2, 1).astype(np.float32)
    return series, np.tile(numbers, len(cut))


def main() -> None:
    from aeon.datasets import load_basic_motions

    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = windows(*load_basic_motions(split))
    np.savez(sys.argv[1], **arrays)
    print(", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()))


if __name__ == "__main__":
    main()
