"""The backends that tests of kernels go over, and inputs and results to compare them by."""

import math
from typing import NamedTuple

import pytest
import torch

from hqvae.quantize.kernels import blocked, operators, reference

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
SINGLE = {"rtol": 2e-4, "atol": 2e-5}
ROWS_PER_BLOCK = [16, 25, 10**6]  # many blocks with a ragged last one, few, one


class Backend(NamedTuple):
    """An implementation, and the dtype it is tested in."""

    name: str
    dtype: torch.dtype

    @property
    def tolerance(self):
        return TIGHT if self.dtype == torch.float64 else SINGLE


NUMBA = Backend("numba", torch.float32)
TORCH = Backend("torch", torch.float64)
TORCH_SINGLE = Backend("torch", torch.float32)
TRITON = Backend("triton", torch.float32)  # in its interpreter
BLOCKED = [NUMBA, TORCH, TORCH_SINGLE]


def backends(*chosen):
    """Parametrises a test with these backends only."""
    return pytest.mark.parametrize("backend", chosen, indirect=True, ids=backend_id)


def backend_id(backend):
    return f"{backend.name}-{str(backend.dtype).removeprefix('torch.')}"


@pytest.fixture(params=[*BLOCKED, TRITON], ids=backend_id)
def backend(request, monkeypatch):
    """Every backend in turn, in its dtype, where a test does not choose with `backends`."""
    name = request.param.name
    if name == "torch":
        monkeypatch.setattr(blocked, "_numba_passes", lambda: None)
    elif name == "numba" and blocked._numba_passes() is None:
        pytest.skip("Numba is not installed")
    elif name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        triton_gpu = operators._triton()
        monkeypatch.setattr(
            operators, "_backend", lambda z: triton_gpu if z.shape[1] <= 256 else blocked
        )
    return request.param


blockwise = pytest.mark.parametrize(
    ("backend", "rows_per_block"),
    [
        *((backend, rows) for backend in BLOCKED for rows in ROWS_PER_BLOCK),
        (TRITON, ROWS_PER_BLOCK[0]),  # it has tiles of its own
    ],
    indirect=True,
    ids=lambda value: backend_id(value) if isinstance(value, Backend) else f"{value}-rows",
)


@pytest.fixture
def rows_per_block(request, monkeypatch):
    """Blocks of that many rows, whatever the number of codes."""
    set_rows_per_block(monkeypatch, request.param)
    return request.param


def set_rows_per_block(monkeypatch, rows):
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(blocked, "MIN_ROWS", rows)


def textbook(z, codebook, log_s2, temperature, seed, first_row=0):
    """The reference in float64, whatever is given."""
    inputs64 = (z.double(), codebook.double(), log_s2.double())
    return reference.quantize(*inputs64, temperature, torch.as_tensor(seed), first_row)


def inputs(rows, codes, dim, dtype=torch.float64, s2=0.7, seed=0):
    """z, codebook and log_s2, leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    codebook = torch.randn(codes, dim, generator=generator, dtype=torch.float64)
    log_s2 = torch.tensor(math.log(s2), dtype=torch.float64)
    return tuple(t.to(dtype).requires_grad_() for t in (z, codebook, log_s2))


def with_gradients(function, leaves, *rest):
    """The three results, and the gradients of a fixed weighting of z and entropy."""
    out, entropy, codes = function(*leaves, *rest)
    generator = torch.Generator().manual_seed(9)
    z_weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    entropy_weights = torch.randn(entropy.shape, generator=generator, dtype=torch.float64)
    loss = (out.double() * z_weights).sum() + (entropy.double() * entropy_weights).sum()
    return [out.detach(), entropy.detach(), codes], torch.autograd.grad(loss, leaves)
