"""Doctests of the package run with the public names at hand, as a reader would have them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, operation by operation

import pytest


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace):
    from pathlib import Path

    import torch

    import hqvae
    from hqvae.quantize import Noise

    names = {name: getattr(hqvae, name) for name in hqvae.__all__}
    doctest_namespace.update(torch=torch, Path=Path, Noise=Noise, **names)
    torch.manual_seed(0)
