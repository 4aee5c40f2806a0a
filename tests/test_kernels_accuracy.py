"""Single precision against float64 where products cancel: far from zero, and at small variances."""

import pytest
import torch
from kernel_backends import NUMBA, TORCH_SINGLE, TRITON, backends, inputs, textbook

from hqvae.quantize import Codebook, kernels
from hqvae.quantize.kernels import blocked, reference

FAR = 1000.0  # spreads of the features
SEED = torch.tensor(5)
single = backends(NUMBA, TORCH_SINGLE, TRITON)
implementation = pytest.mark.parametrize(
    ("ours", "backend"),
    [(kernels, NUMBA), (kernels, TORCH_SINGLE), (kernels, TRITON), (reference, TORCH_SINGLE)],
    indirect=["backend"],
    ids=["numba", "torch", "triton", "reference"],
)


def far_leaves(rows=300, s2=0.7):
    z, codebook, log_s2 = (leaf.detach() for leaf in inputs(rows, 37, 8, torch.float32, s2=s2))
    return z + FAR, codebook + FAR, log_s2


def exact_nearest(z, codebook):
    return (z.double().unsqueeze(1) - codebook.double()).square().sum(2).argmin(1)


def gradients(function, leaves, of, temperature=1.0):
    """(values, gradients) of the sum of the entropies, or of a weighting of the samples."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out, entropy, codes = function(*leaves, temperature, SEED)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
    loss = entropy.double().sum() if of == "entropy" else (out.double() * weights).sum()
    return (out.detach(), entropy.detach(), codes), torch.autograd.grad(loss, leaves)


def relative_error(ours, theirs):
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


@implementation
def test_far_from_zero_every_function_chooses_as_float64_does(ours, backend):
    z, codebook, log_s2 = far_leaves()
    expected = exact_nearest(z, codebook)
    assert torch.equal(ours.nearest(z, codebook), expected)
    codes, entropy = ours.assign(z, codebook, log_s2)
    assert torch.equal(codes, expected)
    exact = reference.assign(z.double(), codebook.double(), log_s2.double())[1]
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.quantize(z, codebook, log_s2, 1.0, SEED)[2], expected)
    drawn = reference.sample(z.double(), codebook.double(), log_s2.double(), SEED)
    assert torch.equal(ours.sample(z, codebook, log_s2, SEED), drawn)


@implementation
@pytest.mark.parametrize("of", ["entropy", "sample"])
def test_far_from_zero_gradients_are_those_of_float64(of, ours, backend):
    leaves = far_leaves()
    values, grads = gradients(ours.quantize, leaves, of)
    exact, exact_grads = gradients(textbook, leaves, of)
    torch.testing.assert_close(values[0].double(), exact[0], rtol=2e-7, atol=0)
    for our, their in zip(grads, exact_grads, strict=True):
        assert relative_error(our, their) < 2e-5


@single
def test_at_small_variances_gradients_are_as_exact_as_the_textbooks(backend):
    """The backward pass computes the scores again as the forward pass rounded them."""
    leaves = inputs(300 if backend == TRITON else 2000, 37, 8, torch.float32, s2=1e-3)
    exact = gradients(textbook, leaves, "entropy")[1]
    grads = gradients(kernels.quantize, leaves, "entropy")[1]
    textbooks = gradients(reference.quantize, leaves, "entropy")[1]
    for our, textbooks_own, their in zip(grads[:2], textbooks, exact):
        assert relative_error(our, their) < 2.5 * relative_error(textbooks_own, their)


@backends(NUMBA, TORCH_SINGLE)
def test_a_row_by_itself_has_the_gradient_that_it_has_in_company(backend):
    """Libraries round the product of a single row in a way of their own."""
    z, codebook, log_s2 = inputs(20, 37, 300, torch.float32, s2=1e-2)
    together = gradients(kernels.quantize, (z, codebook, log_s2), "entropy")[1][0]
    singles = [(row, codebook, log_s2) for row in z.split(1)]
    alone = torch.cat([gradients(kernels.quantize, one, "entropy")[1][0] for one in singles])
    assert relative_error(alone, together) < 1e-5
    bias = blocked._bias(codebook)
    scores = (blocked._linear(z, codebook) + bias).detach()
    assert relative_error(blocked._linear(z[:1], codebook, bias).detach(), scores[:1]) < 1e-6


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_beam_far_from_zero_is_that_of_float64(beam_size):
    generator = torch.Generator().manual_seed(0)
    codebooks = [
        torch.randn(20, 8, generator=generator) / 2**layer + shift
        for layer, shift in enumerate((FAR, 0.0, -FAR / 3, FAR))
    ]
    z = torch.randn(300, 8, generator=generator) + FAR * 5 / 3
    codes = kernels.beam_search(z, codebooks, beam_size)
    exact = kernels.beam_search(z.double(), [c.double() for c in codebooks], beam_size)
    # Of two sums as near as that even residuals in float32 cannot tell which is nearer.
    assert (codes == exact).all(1).float().mean() > 0.98


def test_a_codebook_far_from_zero_finds_its_nearest_codes():
    z, vectors, _ = far_leaves(2000)
    codebook = Codebook(8, 37)
    codebook.vectors.data.copy_(vectors)
    assert torch.equal(codebook.nearest(z), exact_nearest(z, vectors))
