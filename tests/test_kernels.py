"""Every backend against the textbook: all N x K distances, softmax, entropy and Gumbel-softmax."""

import math

import pytest
import torch
from kernel_backends import (
    BLOCKED,
    NUMBA,
    ROWS_PER_BLOCK,
    TIGHT,
    TORCH,
    TORCH_SINGLE,
    TRITON,
    backends,
    blockwise,
    inputs,
    set_rows_per_block,
    textbook,
    with_gradients,
)

from hqvae.quantize.kernels import assign, nearest, quantize, sample

SIZES = [(50, 2, 1), (50, 7, 1), (50, 2, 3), (37, 64, 8), (200, 33, 5)]  # N, K, D


def assert_equals_textbook(leaves, temperature, first_row, **tolerance):
    values, gradients = with_gradients(quantize, leaves, temperature, 5, first_row)
    expected, expected_gradients = with_gradients(textbook, leaves, temperature, 5, first_row)
    assert torch.equal(values[2], expected[2])
    ours = [*values[:2], *gradients]
    theirs = [*expected[:2], *expected_gradients]
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == leaves[0].dtype
        torch.testing.assert_close(our, their.to(our.dtype), **tolerance)


@blockwise
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_the_textbooks(size, temperature, backend, rows_per_block):
    leaves = inputs(*size, dtype=backend.dtype)
    assert_equals_textbook(leaves, temperature, 3, **backend.tolerance)


@pytest.mark.parametrize("size", [(70, 2, 1), (40, 5, 512), (1, 300, 7)], ids=str)
def test_extreme_sizes_are_the_textbooks(size, backend):
    leaves = inputs(*size, dtype=backend.dtype, s2=float(size[2]))
    assert_equals_textbook(leaves, 0.8, 0, rtol=5e-4, atol=5e-5)


@backends(*BLOCKED)
def test_a_codebook_larger_than_a_block_is_the_textbooks(backend):
    leaves = inputs(3, 65536, 2, dtype=backend.dtype, s2=2.0)
    assert_equals_textbook(leaves, 0.8, 0, rtol=5e-4, atol=5e-5)


@backends(TORCH)
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("size", [(20, 3, 2), (18, 2, 1)], ids=str)
def test_gradients_are_the_numerical_ones(size, temperature, backend, monkeypatch):
    set_rows_per_block(monkeypatch, 16)
    assert torch.autograd.gradcheck(
        lambda *leaves: quantize(*leaves, temperature, 5)[:2], inputs(*size)
    )


@pytest.mark.parametrize("function", [quantize, textbook], ids=["quantize", "reference"])
def test_codes_carry_no_gradient_and_unused_results_need_none(function, backend):
    leaves = inputs(20, 4, 2, dtype=backend.dtype)
    out, entropy, codes = function(*leaves, 1.0, 5)
    assert not codes.requires_grad
    assert codes.dtype == torch.long
    for result in (out, entropy):
        gradients = torch.autograd.grad(result.sum(), leaves, retain_graph=True)
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@backends(*BLOCKED)
def test_block_size_changes_nothing(backend, monkeypatch):
    leaves = inputs(100, 9, 3, dtype=backend.dtype)
    results = []
    for rows in ROWS_PER_BLOCK:
        set_rows_per_block(monkeypatch, rows)
        values, gradients = with_gradients(quantize, leaves, 0.6, 5)
        codes = [sample(*leaves, 5), nearest(*leaves[:2])]
        results.append([*values, *gradients, *assign(*leaves), *codes])
    tolerance = 1e-11 if backend.dtype == torch.float64 else 1e-5
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@blockwise
@pytest.mark.parametrize("before", [1, 16, 37])
def test_rows_of_a_batch_are_numbered_from_first_row(before, backend, rows_per_block):
    z, codebook, log_s2 = inputs(60, 9, 3, dtype=backend.dtype)
    whole = quantize(z, codebook, log_s2, 0.6, 5)
    tail = quantize(z[before:], codebook, log_s2, 0.6, 5, before)
    for ours, theirs in zip(whole, tail, strict=True):
        torch.testing.assert_close(ours[before:], theirs, **backend.tolerance)
    codes = sample(z, codebook, log_s2, 5)
    assert torch.equal(codes[before:], sample(z[before:], codebook, log_s2, 5, before))
    elsewhere = quantize(z[before:], codebook, log_s2, 0.6, 5)
    assert not torch.allclose(whole[0][before:], elsewhere[0])


def test_the_relaxed_sample_at_zero_temperature_is_the_hard_sample(backend):
    z, codebook, log_s2 = inputs(300, 9, 3, dtype=backend.dtype)
    cold = quantize(z, codebook, log_s2, 1e-5, 5)[0]
    hard = codebook[sample(z, codebook, log_s2, 5)]
    torch.testing.assert_close(cold, hard, **backend.tolerance)


@blockwise
@pytest.mark.parametrize("size", [(500, 2, 1), (500, 100, 2), (500, 300, 32)], ids=str)
def test_nearest_is_the_argmin_of_all_distances(size, backend, rows_per_block):
    z, codebook, _ = inputs(*size)
    distances = torch.cdist(z, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    codes = nearest(z.to(backend.dtype), codebook.to(backend.dtype))
    assert torch.equal(codes, distances.argmin(1))


@backends(NUMBA, TORCH_SINGLE)
def test_codes_of_training_are_the_nearest_even_where_codes_crowd(backend):
    z, codebook, log_s2 = inputs(20000, 512, 1, dtype=backend.dtype)
    codes = quantize(z, codebook, log_s2, 1.0, 5)[2]
    assert torch.equal(codes, nearest(z, codebook))
    assert torch.equal(codes, assign(z, codebook, log_s2)[0])


@blockwise
@pytest.mark.parametrize("s2", [0.1, 1.0, 20.0])
def test_assign_gives_the_nearest_code_and_the_exact_entropy(s2, backend, rows_per_block):
    leaves = inputs(100, 33, 5, dtype=backend.dtype, s2=s2)
    codes, entropy = assign(*leaves)
    _, expected_entropy, expected_codes = textbook(*leaves, 1.0, 0)
    assert torch.equal(codes, expected_codes)
    assert not entropy.requires_grad
    expected_entropy = expected_entropy.detach().to(backend.dtype)
    torch.testing.assert_close(entropy, expected_entropy, **backend.tolerance)


@backends(NUMBA, TORCH_SINGLE, TRITON)
@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("s2", [1.0, 0.1, 0.01, 1e-3, 1e-4])
def test_entropy_lies_between_zero_and_log_k_in_single_precision(dim, s2, backend):
    rows = 128 if backend == TRITON else 2000
    leaves = inputs(rows, 512, dim, dtype=backend.dtype, s2=s2)
    for entropy in (quantize(*leaves, 1.0, 5)[1], assign(*leaves)[1]):
        assert entropy.min() >= 0
        assert entropy.max() <= math.log(512) * (1 + 1e-6)


@pytest.mark.parametrize("rows_per_block", [1000, 10**6], indirect=True)
@pytest.mark.parametrize("s2", [0.3, 2.0, 50.0])
def test_frequencies_of_samples_follow_the_posterior(s2, backend, rows_per_block):
    z, codebook, log_s2 = inputs(1, 8, 2, dtype=backend.dtype, s2=s2)
    p = torch.softmax(-(z - codebook).square().sum(1) / (2 * s2), 0).detach()
    rows = 4000 if backend == TRITON else 20000
    counts = torch.bincount(sample(z.expand(rows, 2), codebook, log_s2, 5), minlength=8)
    often = rows * p > 5
    chi_square = ((counts - rows * p).square() / (rows * p))[often].sum()
    assert chi_square < 24.3  # 0.999 quantile for 7 degrees of freedom
    assert counts[~often].sum() <= 3 * rows * p[~often].sum() + 5


def test_no_rows_give_no_rows(backend):
    leaves = inputs(0, 7, 3, dtype=backend.dtype)
    values, gradients = with_gradients(quantize, leaves, 1.0, 5)
    assert [tuple(value.shape) for value in values] == [(0, 3), (0,), (0,)]
    assert values[2].dtype == torch.long
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))
    for result in (*assign(*leaves), sample(*leaves, 5), nearest(*leaves[:2])):
        assert result.shape == (0,)


def test_memory_order_of_the_inputs_does_not_matter(backend):
    z, codebook, log_s2 = inputs(50, 7, 3, dtype=backend.dtype)
    strided = tuple(t.detach().T.contiguous().T.requires_grad_() for t in (z, codebook))
    assert not any(t.is_contiguous() for t in strided)
    values, gradients = with_gradients(quantize, (*strided, log_s2), 0.6, 5)
    expected, expected_gradients = with_gradients(quantize, (z, codebook, log_s2), 0.6, 5)
    ours = [*values, *gradients]
    for our, their in zip(ours, [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(our, their, **TIGHT)
