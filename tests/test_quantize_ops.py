"""Blocked quantization against the textbook: full N x K distances, softmax, entropy and Gumbel-softmax in float64."""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hqvae.quantize import blocked, ops, processor, reference

TIGHT, SINGLE = {"rtol": 1e-9, "atol": 1e-9}, {"rtol": 2e-4, "atol": 2e-5}
SIZES = [(50, 2, 1), (50, 7, 1), (50, 2, 3), (37, 64, 8), (200, 33, 5)]  # N, K, D
ROWS_PER_BLOCK = [16, 25, 10**6]  # many blocks with a ragged last one, few, one


def blocks_of(monkeypatch, rows):
    """Blocks of that many rows, whatever the number of codes."""
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(blocked, "FEWEST_ROWS", rows)


def textbook(z, codebook, log_s2, temperature, seed, first_row=0):
    """The reference in float64, whatever is given."""
    return reference.quantize(z.double(), codebook.double(), log_s2.double(), temperature, torch.as_tensor(seed), first_row)


@pytest.fixture(params=["compiled", "plain", "kernels"], autouse=True)
def implementation(request, monkeypatch):
    """Every test runs with the passes that Numba compiles, with those in plain torch, and with Triton's kernels in its interpreter."""
    if request.param == "plain":
        monkeypatch.setattr(blocked, "_compiled", lambda: None)
    elif request.param == "kernels":
        kernels = pytest.importorskip("hqvae.quantize.kernels", reason="Triton is not installed", exc_type=ImportError)
        if request.node.get_closest_marker("not_kernels"):
            pytest.skip("a fact about the CPU's implementation, or too large for the interpreter")
        monkeypatch.setattr(ops, "_on", lambda z: kernels if z.dtype == torch.float32 and z.shape[1] <= kernels.WIDEST else blocked)
    elif blocked._compiled() is None:
        pytest.skip("Numba is not installed")
    return request.param


def inputs(rows, codes, dim, dtype=torch.float64, s2=0.7, seed=0):
    """z, codebook and log_s2, leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    codebook = torch.randn(codes, dim, generator=generator, dtype=torch.float64)
    return tuple(t.to(dtype).requires_grad_() for t in (z, codebook, torch.tensor(math.log(s2), dtype=torch.float64)))


def with_gradients(function, leaves, *rest):
    """The three results, and the gradients of a fixed weighting of z and entropy."""
    out, entropy, codes = function(*leaves, *rest)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (out, entropy)]
    loss = (out.double() * weights[0]).sum() + (entropy.double() * weights[1]).sum()
    return [out.detach(), entropy.detach(), codes], torch.autograd.grad(loss, leaves)


@pytest.fixture(params=ROWS_PER_BLOCK)
def rows_per_block(request):
    return request.param


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TIGHT), (torch.float32, SINGLE)], ids=["double", "single"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_the_textbooks(size, temperature, dtype, tolerance, rows_per_block, monkeypatch):
    blocks_of(monkeypatch, rows_per_block)
    leaves = inputs(*size, dtype=dtype)
    values, gradients = with_gradients(ops.quantize, leaves, temperature, 5, 3)
    expected, expected_gradients = with_gradients(textbook, leaves, temperature, 5, 3)
    assert torch.equal(values[2], expected[2])
    for ours, theirs in zip([*values[:2], *gradients], [*expected[:2], *expected_gradients]):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs.to(dtype), **tolerance)


@pytest.mark.not_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("size", [(20, 3, 2), (18, 2, 1)], ids=str)
def test_gradients_are_the_numerical_ones(size, temperature, monkeypatch):
    blocks_of(monkeypatch, 16)
    assert torch.autograd.gradcheck(lambda *leaves: ops.quantize(*leaves, temperature, 5)[:2], inputs(*size))


@pytest.mark.parametrize("function", [ops.quantize, textbook], ids=["blocked", "reference"])
def test_codes_carry_no_gradient_and_unused_results_need_none(function):
    leaves = inputs(20, 4, 2)
    out, entropy, codes = function(*leaves, 1.0, 5)
    assert not codes.requires_grad and codes.dtype == torch.long
    for result in (out, entropy):
        gradients = torch.autograd.grad(result.sum(), leaves, retain_graph=True)
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_block_size_changes_nothing(monkeypatch):
    leaves, results = inputs(100, 9, 3), []
    for rows in ROWS_PER_BLOCK:
        blocks_of(monkeypatch, rows)
        values, gradients = with_gradients(ops.quantize, leaves, 0.6, 5)
        results.append([*values, *gradients, *ops.assign(*leaves), ops.sample(*leaves, 5), ops.nearest(*leaves[:2])])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("before", [1, 16, 37])
def test_rows_of_a_batch_are_numbered_from_first_row(before, rows_per_block, monkeypatch):
    blocks_of(monkeypatch, rows_per_block)
    z, codebook, log_s2 = inputs(60, 9, 3)
    whole = ops.quantize(z, codebook, log_s2, 0.6, 5)
    tail = ops.quantize(z[before:], codebook, log_s2, 0.6, 5, before)
    for a, b in zip(whole, tail):
        torch.testing.assert_close(a[before:], b, **TIGHT)
    assert torch.equal(ops.sample(z, codebook, log_s2, 5)[before:], ops.sample(z[before:], codebook, log_s2, 5, before))
    elsewhere = ops.quantize(z[before:], codebook, log_s2, 0.6, 5)
    assert not torch.allclose(whole[0][before:], elsewhere[0])


def test_the_relaxed_sample_at_zero_temperature_is_the_hard_draw():
    z, codebook, log_s2 = inputs(300, 9, 3)
    cold = ops.quantize(z, codebook, log_s2, 1e-5, 5)[0]
    torch.testing.assert_close(cold, codebook[ops.sample(z, codebook, log_s2, 5)], **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_inside_autocast(dtype):
    leaves = inputs(50, 7, 3, dtype=torch.float32)
    z = leaves[0].detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values, gradients = with_gradients(ops.quantize, (z, *leaves[1:]), 1.0, 5)
        assigned = [*ops.assign(z, *leaves[1:]), ops.sample(z, *leaves[1:], 5)]
    rounded = z.detach().float().requires_grad_()
    expected, expected_gradients = with_gradients(ops.quantize, (rounded, *leaves[1:]), 1.0, 5)
    assert values[0].dtype == values[1].dtype == assigned[1].dtype == torch.float32 and gradients[0].dtype == dtype
    for ours, theirs in zip(values, expected):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(gradients, expected_gradients):
        assert torch.equal(ours, theirs.to(ours.dtype))
    for ours, theirs in zip(assigned, [*ops.assign(rounded, *leaves[1:]), ops.sample(rounded, *leaves[1:], 5)]):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(500, 2, 1), (500, 100, 2), (500, 300, 32)], ids=str)
def test_nearest_is_the_argmin_of_all_distances(size, dtype, rows_per_block, monkeypatch):
    blocks_of(monkeypatch, rows_per_block)
    z, codebook, _ = inputs(*size)
    expected = torch.cdist(z, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(ops.nearest(z.to(dtype), codebook.to(dtype)), expected)


@pytest.mark.not_kernels
def test_codes_of_training_are_the_nearest_even_where_codes_crowd():
    z, codebook, log_s2 = inputs(20000, 512, 1, dtype=torch.float32)
    codes = ops.quantize(z, codebook, log_s2, 1.0, 5)[2]
    assert torch.equal(codes, ops.nearest(z, codebook)) and torch.equal(codes, ops.assign(z, codebook, log_s2)[0])


def layers_of_codes(count=3, codes=6, dim=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(codes + layer, dim, generator=generator, dtype=dtype) / (layer + 1) for layer in range(count)]


def missed(z, codebooks, codes):
    return (z - sum(book[code] for book, code in zip(codebooks, codes.unbind(1)))).square().sum(1)


@pytest.mark.not_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_beam_as_wide_as_all_sums_finds_the_nearest_sum(dtype):
    z, codebooks = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=dtype), layers_of_codes(dtype=dtype)
    every = torch.cartesian_prod(*(torch.arange(len(book)) for book in codebooks))
    sums = sum(book[every[:, layer]] for layer, book in enumerate(codebooks))
    assert torch.equal(ops.nearest_sum(z, codebooks, 42), every[torch.cdist(z, sums).argmin(1)])


@pytest.mark.not_kernels
def test_a_beam_of_one_takes_the_nearest_code_layer_by_layer():
    z, codebooks, rest = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), layers_of_codes(), []
    left = z
    for book in codebooks:
        rest.append(ops.nearest(left, book))
        left = left - book[rest[-1]]
    assert torch.equal(ops.nearest_sum(z, codebooks, 1), torch.stack(rest, 1))


@pytest.mark.not_kernels
def test_a_wider_beam_misses_less():
    z, codebooks = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)), layers_of_codes(4, 32)
    errors = [float(missed(z, codebooks, ops.nearest_sum(z, codebooks, width)).mean()) for width in (1, 2, 4, 8, 16)]
    assert all(wider < narrower for narrower, wider in pairwise(errors))


@pytest.mark.not_kernels
def test_the_beam_of_a_row_is_its_own(rows_per_block, monkeypatch):
    z, codebooks = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), layers_of_codes(4, 32)
    whole = ops.nearest_sum(z, codebooks, 4)
    assert torch.equal(torch.cat([ops.nearest_sum(part, codebooks, 4) for part in z.split(7)]), whole)
    blocks_of(monkeypatch, rows_per_block)
    assert torch.equal(ops.nearest_sum(z, codebooks, 4), whole)
    assert ops.nearest_sum(z[:0], codebooks, 4).shape == (0, 4)


@pytest.mark.not_kernels
def test_a_beam_of_none_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        ops.nearest_sum(torch.zeros(2, 4), layers_of_codes(), 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TIGHT), (torch.float32, SINGLE)], ids=["double", "single"])
@pytest.mark.parametrize("s2", [0.1, 1.0, 20.0])
def test_assign_gives_the_nearest_code_and_the_exact_entropy(s2, dtype, tolerance, rows_per_block, monkeypatch):
    blocks_of(monkeypatch, rows_per_block)
    leaves = inputs(100, 33, 5, dtype=dtype, s2=s2)
    codes, entropy = ops.assign(*leaves)
    expected = textbook(*leaves, 1.0, 0)
    assert torch.equal(codes, expected[2]) and not entropy.requires_grad
    torch.testing.assert_close(entropy, expected[1].detach().to(dtype), **tolerance)


@pytest.mark.parametrize("dim", [8, pytest.param(64, marks=pytest.mark.not_kernels)])
@pytest.mark.parametrize(
    "s2", [1.0, pytest.param(0.1, marks=pytest.mark.not_kernels), pytest.param(0.01, marks=pytest.mark.not_kernels), 1e-3, 1e-4]
)
def test_entropy_lies_between_zero_and_log_k_in_single_precision(dim, s2):
    leaves = inputs(2000, 512, dim, dtype=torch.float32, s2=s2)
    for entropy in (ops.quantize(*leaves, 1.0, 5)[1], ops.assign(*leaves)[1]):
        assert entropy.min() >= 0 and entropy.max() <= math.log(512) * (1 + 1e-6)


@pytest.mark.parametrize("s2", [1e20, 1e38])
def test_a_variance_that_runs_away_leaves_codes_and_entropy_right(s2):
    leaves = inputs(200, 16, 8, dtype=torch.float32, s2=s2)
    (_, entropy, codes), gradients = with_gradients(ops.quantize, leaves, 1.0, 5)
    assert torch.equal(codes, ops.nearest(*leaves[:2]))
    torch.testing.assert_close(entropy, torch.full((200,), math.log(16)))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("s2", [0.3, 2.0, 50.0])
def test_frequencies_of_draws_follow_the_posterior(s2, rows_per_block, monkeypatch):
    blocks_of(monkeypatch, max(1000, rows_per_block))
    z, codebook, log_s2 = inputs(1, 8, 2, s2=s2)
    p = torch.softmax(-(z - codebook).square().sum(1) / (2 * s2), 0).detach()
    drawn = torch.bincount(ops.sample(z.expand(20000, 2), codebook, log_s2, 5), minlength=8)
    often = 20000 * p > 5
    chi_square = ((drawn - 20000 * p).square() / (20000 * p))[often].sum()
    assert chi_square < 24.3  # 0.999 quantile for 7 degrees of freedom
    assert drawn[~often].sum() <= 3 * 20000 * p[~often].sum() + 5


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.not_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("verb", ["quantize", "assign", "sample", "nearest"])
def test_memory_does_not_grow_with_rows_times_codes(verb, dtype, monkeypatch):
    blocks_of(monkeypatch, 64)
    z, codebook, log_s2 = (leaf.detach() for leaf in inputs(2048, 64, 3, dtype=dtype))
    seed = torch.tensor(5)
    with Largest() as largest:
        if verb == "quantize":
            arguments = z, codebook, log_s2, torch.tensor(1.0), ops._bits(z, codebook, seed, 0)
            out, known = blocked.forward(*arguments)
            blocked.backward((out, known.entropy), *arguments, (out, known))
        elif verb == "sample":
            blocked.sample(z, codebook, log_s2, ops._bits(z, codebook, seed, 0))
        else:
            getattr(blocked, verb)(z, codebook, *([log_s2] if verb == "assign" else []))
    assert 64 * 64 <= largest.elements <= max(2 * 64 * 64, 2048 * 3) < 2048 * 64
    with Largest() as largest:
        reference.quantize(z, codebook, log_s2, 1.0, seed)
    assert largest.elements >= 2048 * 64  # the textbook is caught


@pytest.mark.not_kernels
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_rows_and_change_nothing(threads, monkeypatch):
    blocks_of(monkeypatch, 16)
    leaves = inputs(333, 33, 5, dtype=torch.float32)
    alone = with_gradients(ops.quantize, leaves, 0.6, 5)
    parts = []
    monkeypatch.setattr(processor, "in_parallel", lambda work, count: [work(part) for part in range(count)])
    torch.set_num_threads(threads)
    try:
        parts = blocked._shares(leaves[0])
        shared = with_gradients(ops.quantize, leaves, 0.6, 5)
    finally:
        torch.set_num_threads(1)
    assert len(parts) == (threads if processor._parallel() else 1) and [parts[0].start, parts[-1].stop] == [0, 333]
    for ours, theirs in zip([*shared[0], *shared[1]], [*alone[0], *alone[1]]):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.not_kernels
@pytest.mark.skipif(processor._parallel() is None, reason="torch's OpenMP library offers no parallel region here")
def test_an_error_in_a_thread_comes_out_and_every_part_runs_once():
    done = []
    processor.in_parallel(done.append, 7)
    assert sorted(done) == list(range(7))

    def fail(part):
        if part == 3:
            raise KeyError(part)
        done.append(part)

    with pytest.raises(KeyError, match="3"):
        processor.in_parallel(fail, 7)


@pytest.mark.not_kernels
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("verb", ["quantize", "assign", "nearest", "sample"])
def test_values_that_are_not_finite_are_refused_and_named(bad, verb):
    call = {
        "quantize": lambda *leaves: ops.quantize(*leaves, 1.0, 5), "assign": ops.assign,
        "nearest": lambda z, codebook, _: ops.nearest(z, codebook), "sample": lambda *leaves: ops.sample(*leaves, 5),
    }[verb]  # fmt: skip
    for which, message in enumerate(["z has 2 of 50 rows", "the codebook has 1 of 7 rows"]):
        leaves = [leaf.detach().clone() for leaf in inputs(50, 7, 3, dtype=torch.float32)]
        leaves[which][[3, 20] if which == 0 else [3], 1] = bad
        with pytest.raises(ValueError, match=message):
            call(*leaves)


@pytest.mark.not_kernels
def test_distances_that_overflow_are_named():
    z, codebook, log_s2 = inputs(50, 7, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="overflow float32"):
        ops.quantize(z * 1e30, codebook * 1e30, log_s2, 1.0, 5)
    with pytest.raises(ValueError, match="overflow float32"):
        ops.nearest(z * 1e30, codebook)


@pytest.mark.parametrize("shapes", [((5, 3), (7, 4)), ((5, 2, 3), (7, 3)), ((5,), (7, 3))], ids=str)
def test_dimensions_that_differ_are_both_named(shapes):
    z, codebook = (torch.zeros(shape) for shape in shapes)
    for verb, rest in ((ops.nearest, ()), (ops.assign, (torch.tensor(0.0),)), (ops.quantize, (torch.tensor(0.0), 1.0, 5))):
        with pytest.raises(ValueError) as error:
            verb(z, codebook, *rest)
        assert str(list(shapes[0])) in str(error.value) and str(list(shapes[1])) in str(error.value)


@pytest.mark.parametrize("log_s2", [-1e4, -200.0, -88.0, 88.0, 200.0, 1e4])
def test_a_variance_beyond_float32_gives_no_nan_and_no_gradient(log_s2):
    z, codebook, _ = inputs(50, 7, 3, dtype=torch.float32)
    scale = torch.tensor(log_s2, requires_grad=True)
    values, gradients = with_gradients(ops.quantize, (z, codebook, scale), 0.7, 5)
    assert all(t.isfinite().all() for t in [*values, *gradients]) and gradients[2] == 0
    assert torch.equal(values[2], ops.nearest(z, codebook))
    entropy = ops.assign(z, codebook, scale)[1]
    torch.testing.assert_close(entropy, torch.full((50,), 0.0 if log_s2 < 0 else math.log(7)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "size", [pytest.param((3, 65536, 2), marks=pytest.mark.not_kernels), (70, 2, 1), (40, 5, 512), (1, 300, 7)], ids=str
)
def test_extreme_sizes_are_the_textbooks(size):
    leaves = inputs(*size, dtype=torch.float32, s2=float(size[2]))
    values, gradients = with_gradients(ops.quantize, leaves, 0.8, 5)
    expected, expected_gradients = with_gradients(textbook, leaves, 0.8, 5)
    assert (values[2] == expected[2]).all()
    for ours, theirs in zip([*values[:2], *gradients], [*expected[:2], *expected_gradients]):
        torch.testing.assert_close(ours, theirs.float(), rtol=5e-4, atol=5e-5)


def test_operators_keep_torchs_rules():
    """Fakes, gradients and schemas agree with what the operators do: what torch.compile relies on."""
    z, codebook, log_s2 = inputs(20, 5, 3, dtype=torch.float32)
    stream = torch.tensor(0.7, dtype=torch.float64), torch.tensor(5), 0
    torch.library.opcheck(ops._quantize, (z, codebook, log_s2, *stream))
    torch.library.opcheck(ops._nearest, (z.detach(), codebook.detach()))
    torch.library.opcheck(ops._assign, (z.detach(), codebook.detach(), log_s2.detach()))
    torch.library.opcheck(ops._sample, (z.detach(), codebook.detach(), log_s2.detach(), *stream[1:]))


def test_no_rows_give_no_rows():
    leaves = inputs(0, 7, 3)
    values, gradients = with_gradients(ops.quantize, leaves, 1.0, 5)
    assert [tuple(v.shape) for v in values] == [(0, 3), (0,), (0,)] and values[2].dtype == torch.long
    assert all(torch.equal(g, torch.zeros_like(leaf)) for g, leaf in zip(gradients, leaves))
    for result in (*ops.assign(*leaves), ops.sample(*leaves, 5), ops.nearest(*leaves[:2])):
        assert result.shape == (0,)


def test_memory_order_of_the_inputs_does_not_matter():
    z, codebook, log_s2 = inputs(50, 7, 3)
    strided = tuple(t.detach().T.contiguous().T.requires_grad_() for t in (z, codebook))
    assert not any(t.is_contiguous() for t in strided)
    values, gradients = with_gradients(ops.quantize, (*strided, log_s2), 0.6, 5)
    expected, expected_gradients = with_gradients(ops.quantize, (z, codebook, log_s2), 0.6, 5)
    for ours, theirs in zip([*values, *gradients], [*expected, *expected_gradients]):
        torch.testing.assert_close(ours, theirs, **TIGHT)
