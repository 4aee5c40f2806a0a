"""What a squared error costs: values, gradients, and that parts of a batch add up to the whole."""

import math

import pytest
import torch

from hqvae.likelihood import FittedGaussian, MeanSquare

SIZE = 12


def errors(rows: int = 6) -> torch.Tensor:
    """x − x̂ of a few signals of SIZE elements."""
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize(
    ("mean_square", "nats"), [(1.0, 0.0), (math.e, 6.0), (math.exp(-3), -18.0)]
)
def test_fitted_gaussian_is_half_the_size_times_log_variance(mean_square, nats):
    distortion = SIZE * mean_square * torch.tensor([0.5, 1.5])  # their mean counts
    assert float(FittedGaussian.variance(distortion, SIZE)) == pytest.approx(mean_square, rel=1e-6)
    assert float(FittedGaussian()(distortion, SIZE)) == pytest.approx(nats, abs=1e-5)


def test_gradient_is_that_of_the_logarithm_of_the_mean():
    x = errors()
    distortion = x.square().sum(1)
    (ours,) = torch.autograd.grad(FittedGaussian()(distortion, SIZE), x, retain_graph=True)
    (expected,) = torch.autograd.grad(SIZE / 2 * (distortion.mean() / SIZE).log(), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("likelihood", [FittedGaussian(), MeanSquare()], ids=["fitted", "mean"])
def test_halves_with_a_shared_variance_give_the_gradient_of_the_whole(likelihood):
    x = errors()
    (whole,) = torch.autograd.grad(likelihood(x.square().sum(1), SIZE), x)
    sigma2 = FittedGaussian.variance(x.square().sum(1), SIZE)
    halves = [likelihood(half.square().sum(1), SIZE, sigma2) / 2 for half in x.split(3)]
    (accumulated,) = torch.autograd.grad(sum(halves), x)
    torch.testing.assert_close(accumulated, whole)
    torch.testing.assert_close(sum(halves), likelihood(x.square().sum(1), SIZE))


def test_halves_with_variances_of_their_own_do_not():
    x = errors()
    (whole,) = torch.autograd.grad(FittedGaussian()(x.square().sum(1), SIZE), x)
    (apart,) = torch.autograd.grad(
        sum(FittedGaussian()(half.square().sum(1), SIZE) / 2 for half in x.split(3)), x
    )
    assert not torch.allclose(apart, whole, rtol=1e-3)


def test_the_variance_carries_no_gradient_and_a_perfect_reconstruction_no_infinity():
    assert not FittedGaussian.variance(errors().square().sum(1), SIZE).requires_grad
    x = torch.zeros(2, SIZE, requires_grad=True)
    loss = FittedGaussian()(x.square().sum(1), SIZE)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("sigma2", [None, torch.tensor(7.0)])
def test_mean_square_is_the_mean_over_elements_whatever_the_variance(sigma2):
    x = errors()
    torch.testing.assert_close(MeanSquare()(x.square().sum(1), SIZE, sigma2), x.square().mean())


def test_two_reconstructions_pull_as_hard_in_either_unit():
    """MeanSquare, weighed by its share, has the gradient of ½D(log σ² + log σ'²) times 2σ²/D."""
    fine, coarse = errors(), 3 * errors().detach().flip(0)
    coarse.requires_grad_()
    first, second = (e.square().sum(1) for e in (fine, coarse))
    sigma2, other = (FittedGaussian.variance(d, SIZE) for d in (first, second))
    fitted, mean = FittedGaussian(), MeanSquare()
    nats = torch.autograd.grad(
        fitted(first, SIZE) + fitted.share(sigma2, other) * fitted(second, SIZE),
        (fine, coarse),
        retain_graph=True,
    )
    square = torch.autograd.grad(
        mean(first, SIZE) + mean.share(sigma2, other) * mean(second, SIZE), (fine, coarse)
    )
    for ours, theirs in zip(square, nats):
        torch.testing.assert_close(ours, theirs * 2 * sigma2 / SIZE)
