"""Where values, dtypes and memory end: what every backend bears, and what it says to bad input."""

import math

import pytest
import torch
from kernel_backends import (
    BLOCKED,
    NUMBA,
    TORCH_SINGLE,
    TRITON,
    backends,
    inputs,
    set_rows_per_block,
    with_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode

from hqvae.errors import NonFiniteError
from hqvae.quantize.kernels import assign, blocked, nearest, operators, quantize, reference, sample


@backends(NUMBA, TORCH_SINGLE, TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_inside_autocast(dtype, backend):
    z, *rest = inputs(50, 7, 3, dtype=torch.float32)
    z = z.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values, gradients = with_gradients(quantize, (z, *rest), 1.0, 5)
        assigned = [*assign(z, *rest), sample(z, *rest, 5)]
    rounded = z.detach().float().requires_grad_()
    expected, expected_gradients = with_gradients(quantize, (rounded, *rest), 1.0, 5)
    assert values[0].dtype == values[1].dtype == assigned[1].dtype == torch.float32
    assert gradients[0].dtype == dtype
    for ours, theirs in zip(values, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype))
    for ours, theirs in zip(assigned, [*assign(rounded, *rest), sample(rounded, *rest, 5)]):
        assert torch.equal(ours, theirs)


@backends(NUMBA, TORCH_SINGLE, TRITON)
@pytest.mark.parametrize("s2", [1e20, 1e38])
def test_a_variance_that_runs_away_leaves_codes_and_entropy_right(s2, backend):
    leaves = inputs(200, 16, 8, dtype=torch.float32, s2=s2)
    (_, entropy, codes), gradients = with_gradients(quantize, leaves, 1.0, 5)
    assert torch.equal(codes, nearest(*leaves[:2]))
    torch.testing.assert_close(entropy, torch.full((200,), math.log(16)))
    assert all(gradient.isfinite().all() for gradient in gradients)


@backends(NUMBA, TORCH_SINGLE, TRITON)
@pytest.mark.parametrize("log_s2", [-1e4, -200.0, -88.0, 88.0, 200.0, 1e4])
def test_a_variance_beyond_float32_gives_no_nan_and_no_gradient(log_s2, backend):
    z, codebook, _ = inputs(50, 7, 3, dtype=torch.float32)
    scale = torch.tensor(log_s2, requires_grad=True)
    values, gradients = with_gradients(quantize, (z, codebook, scale), 0.7, 5)
    assert all(t.isfinite().all() for t in [*values, *gradients])
    assert gradients[2] == 0
    assert torch.equal(values[2], nearest(z, codebook))
    entropy = assign(z, codebook, scale)[1]
    expected = torch.full((50,), 0.0 if log_s2 < 0 else math.log(7))
    torch.testing.assert_close(entropy, expected, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def run_blocked(verb, z, codebook, log_s2, seed):
    hashes = operators._hashes(z, codebook, seed, 0)
    if verb == "quantize":
        arguments = (z, codebook, log_s2, torch.tensor(1.0), hashes)
        out, stats = blocked.forward(*arguments)
        blocked.backward((out, stats.entropy), *arguments, (out, stats))
    elif verb == "sample":
        blocked.sample(z, codebook, log_s2, hashes)
    elif verb == "assign":
        blocked.assign(z, codebook, log_s2)
    else:
        blocked.nearest(z, codebook)


@backends(*BLOCKED)
@pytest.mark.parametrize("verb", ["quantize", "assign", "sample", "nearest"])
def test_memory_does_not_grow_with_rows_times_codes(verb, backend, monkeypatch):
    set_rows_per_block(monkeypatch, 64)
    leaves = [leaf.detach() for leaf in inputs(2048, 64, 3, dtype=backend.dtype)]
    seed = torch.tensor(5)
    with Largest() as largest:
        run_blocked(verb, *leaves, seed)
    assert 64 * 64 <= largest.elements <= max(2 * 64 * 64, 2048 * 3) < 2048 * 64
    with Largest() as largest:
        reference.quantize(*leaves, 1.0, seed)
    assert largest.elements >= 2048 * 64  # the textbook is caught


@backends(*BLOCKED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("verb", ["quantize", "assign", "nearest", "sample"])
def test_values_that_are_not_finite_are_refused_and_named(bad, verb, backend):
    call = {
        "quantize": lambda *leaves: quantize(*leaves, 1.0, 5),
        "assign": assign,
        "nearest": lambda z, codebook, _: nearest(z, codebook),
        "sample": lambda *leaves: sample(*leaves, 5),
    }[verb]
    cases = [(0, [3, 20], "z has 2 of 50 rows"), (1, [3], "the codebook has 1 of 7 rows")]
    for which, rows, message in cases:
        leaves = [leaf.detach().clone() for leaf in inputs(50, 7, 3, dtype=backend.dtype)]
        leaves[which][rows, 1] = bad
        with pytest.raises(NonFiniteError, match=message):
            call(*leaves)


@backends(NUMBA, TORCH_SINGLE)
def test_distances_that_overflow_are_named(backend):
    z, codebook, log_s2 = inputs(50, 7, 3, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match="overflow float32"):
        quantize(z * 1e30, codebook * 1e30, log_s2, 1.0, 5)
    with pytest.raises(NonFiniteError, match="overflow float32"):
        nearest(z * 1e30, codebook)


@pytest.mark.parametrize("shapes", [((5, 3), (7, 4)), ((5, 2, 3), (7, 3)), ((5,), (7, 3))], ids=str)
def test_dimensions_that_differ_are_both_named(shapes):
    z, codebook = (torch.zeros(shape) for shape in shapes)
    log_s2 = torch.tensor(0.0)
    for verb, rest in ((nearest, ()), (assign, (log_s2,)), (quantize, (log_s2, 1.0, 5))):
        with pytest.raises(ValueError) as error:
            verb(z, codebook, *rest)
        assert str(list(shapes[0])) in str(error.value)
        assert str(list(shapes[1])) in str(error.value)


@backends(NUMBA, TORCH_SINGLE, TRITON)
def test_operators_keep_torchs_rules(backend):
    """Fakes, gradients and schemas agree with what the operators do: torch.compile needs it."""
    z, codebook, log_s2 = inputs(20, 5, 3, dtype=torch.float32)
    temperature = torch.tensor(0.7, dtype=torch.float64)
    seed = torch.tensor(5)
    torch.library.opcheck(operators.quantize, (z, codebook, log_s2, temperature, seed, 0))
    z, codebook, log_s2 = (leaf.detach() for leaf in (z, codebook, log_s2))
    torch.library.opcheck(operators.nearest, (z, codebook))
    torch.library.opcheck(operators.assign, (z, codebook, log_s2))
    torch.library.opcheck(operators.sample, (z, codebook, log_s2, seed, 0))
    centres = [codebook.mean(0), codebook.mean(0)]
    torch.library.opcheck(operators.beam_search, (z, [codebook, codebook], centres, 2))
