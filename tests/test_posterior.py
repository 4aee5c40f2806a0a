"""Facts about posteriors over one codebook: limits, invariances, gradients, costs by hand."""

import copy
import math

import pytest
import torch

from hqvae.quantize import (
    GumbelSoftmax,
    GumbelSoftmaxConfig,
    KMeansInit,
    NearestCode,
    NearestCodeConfig,
    Noise,
    RandomInit,
    ResidualQuantizer,
    flatten_positions,
)
from hqvae.quantize.posterior import Choice

STOCHASTIC = {
    "random": GumbelSoftmaxConfig(init=RandomInit()),
    "kmeans": GumbelSoftmaxConfig(init=KMeansInit()),
    "paper": GumbelSoftmaxConfig(init=RandomInit(s2=3.0), variance="one_plus_exp"),
}
DETERMINISTIC = {
    "ema": NearestCodeConfig(),
    "ema-kmeans": NearestCodeConfig(init=KMeansInit()),
    "restart": NearestCodeConfig(restart=True, init=KMeansInit()),
}
FAMILY = {**STOCHASTIC, **DETERMINISTIC}
SHAPES = [(6, 5), (4, 5, 7), (3, 5, 4, 6)]  # none, one and two axes
DIM, K = 5, 8


def build(kind: str, dim: int = DIM, codebook_size: int = K) -> ResidualQuantizer:
    """One layer of the family, started from a batch."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(dim, codebook_size, config=FAMILY[kind])
    quantizer.init(features((16, dim, 4)), Noise(5))
    return quantizer


def features(shape, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors(quantizer: ResidualQuantizer) -> torch.Tensor:
    return quantizer.codebooks[0].vectors


def set_s2(quantizer: ResidualQuantizer, log_s2: float) -> None:
    """s² = exp(log_s2), in either parametrisation (1 + exp θ has a floor of 1)."""
    quantizer.posterior.theta.data.fill_(log_s2)


@pytest.fixture(params=FAMILY)
def quantizer(request):
    return build(request.param)


@pytest.fixture(params=STOCHASTIC)
def stochastic(request):
    return build(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_is_lookup_of_the_codes(quantizer, shape):
    out = quantizer.eval()(features(shape))
    assert torch.equal(out.z, quantizer.lookup(out.codes)) and out.z.shape == shape
    assert out.codes.shape == (shape[0], 1, *shape[2:]) and out.codes.dtype == torch.long
    assert out.entropy.shape == (shape[0], 1) and quantizer.posterior.variance.shape == (1,)


def test_straight_through_samples_are_codes_with_the_gradients_of_relaxed_ones():
    found = {}
    for straight_through in (False, True):
        torch.manual_seed(0)
        config = GumbelSoftmaxConfig(straight_through=straight_through)
        quantizer = ResidualQuantizer(DIM, K, config=config).train()
        z_e = features((4, DIM, 9)).requires_grad_()
        z = quantizer(z_e, 0.5, Noise(3)).z
        wanted = [z_e, quantizer.posterior.theta, vectors(quantizer)]
        found[straight_through] = z, torch.autograd.grad((z * features(z.shape, 2)).sum(), wanted)
    (relaxed, expected), (hard, gradients) = found[False], found[True]
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(gradients, expected))
    rows = flatten_positions(hard)
    assert torch.allclose(
        torch.cdist(rows, vectors(quantizer)).amin(1), torch.tensor(0.0), atol=1e-3
    )
    nearest = torch.cdist(flatten_positions(relaxed), vectors(quantizer)).argmin(1)
    same = torch.cdist(rows, vectors(quantizer)).argmin(1) == nearest
    assert same.float().mean() > 0.8 and not torch.allclose(relaxed, hard)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_draw_is_lookup_of_the_codes_in_either_mode(quantizer, shape):
    drawn = [quantizer.train(mode).sample(features(shape), Noise(3)) for mode in (True, False)]
    assert torch.equal(drawn[0].codes, drawn[1].codes)
    assert torch.equal(drawn[0].z, quantizer.lookup(drawn[0].codes))
    assert drawn[0].z.shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_depend_on_the_position_alone(quantizer, shape):
    """Not on mode, temperature, noise, batch mates or neighbours."""
    z_e = features(shape)
    codes = quantizer.encode(z_e)
    for mode in (True, False):
        quantizer.train(mode)
        for temperature, noise in ((1.0, None), (0.1, Noise(1)), (3.0, Noise(2))):
            assert torch.equal(quantizer(z_e, temperature, noise).codes, codes)
        alone = [quantizer(one).codes for one in z_e.split(1)]
        assert torch.equal(torch.cat(alone), codes)
    assert torch.equal(quantizer.encode(flatten_positions(z_e)).flatten(), codes.flatten())
    assert len(codes.unique()) > 1


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_sample_change_no_state(quantizer, training):
    quantizer.train(training)
    before, attributes = copy.deepcopy(quantizer.state_dict()), set(vars(quantizer))
    quantizer(features((4, DIM, 7)), 0.5, Noise(3))
    quantizer.sample(features((4, DIM, 7)), Noise(3))
    after = quantizer.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert set(vars(quantizer)) == attributes


@pytest.mark.parametrize("verb", ["forward", "encode", "sample", "init", "refine"])
def test_a_wrong_width_is_named_with_the_right_one(quantizer, verb):
    arguments = [] if verb in ("forward", "encode") else [Noise(0)]
    with pytest.raises(ValueError, match=rf"\[2, 4, 3\].*\[B, {DIM}, \*S\]"):
        getattr(quantizer, verb)(torch.zeros(2, 4, 3), *arguments)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, DIM), (0, DIM, 3), (2, DIM, 0)], ids=str)
def test_an_empty_batch_gives_an_empty_result(quantizer, training, shape):
    out = quantizer.train(training)(torch.zeros(shape))
    assert out.z.shape == shape and out.codes.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(out.entropy, torch.zeros(shape[0], 1))


# ------------------------------------------------------------------------------ stochastic


def test_same_noise_same_sample_and_samples_are_numbered(stochastic):
    z_e = features((6, DIM, 7))
    whole = stochastic(z_e, 0.7, Noise(3))
    assert torch.equal(stochastic(z_e, 0.7, Noise(3)).z, whole.z)
    part = Noise(3, samples=2)
    torch.testing.assert_close(stochastic(z_e[2:], 0.7, part).z, whole.z[2:])
    drawn = stochastic.sample(z_e, Noise(3)).z
    torch.testing.assert_close(stochastic.sample(z_e[2:], part).z, drawn[2:])
    assert not torch.allclose(stochastic(z_e, 0.7, Noise(4)).z, whole.z)


def test_without_noise_torchs_seed_fixes_the_sample(stochastic):
    z_e, draws = features((6, DIM, 7)), []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append(stochastic(z_e).z)
    assert torch.equal(*draws) and not torch.equal(stochastic(z_e).z, draws[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_relaxed_sample_lies_between_the_codes(stochastic, shape):
    out = stochastic(features(shape), 0.7, Noise(3))
    view = (1, -1, *[1] * (len(shape) - 2))
    low = vectors(stochastic).min(0).values.view(view)
    high = vectors(stochastic).max(0).values.view(view)
    assert out.z.shape == shape and (out.z >= low - 1e-5).all() and (out.z <= high + 1e-5).all()
    assert not torch.allclose(out.z, stochastic.lookup(out.codes))


@pytest.mark.parametrize("training", [True, False])
def test_infinite_variance_makes_every_code_equally_likely(stochastic, training):
    set_s2(stochastic.train(training), 40.0)
    out = stochastic(features((4, DIM, 7)))
    torch.testing.assert_close(out.entropy, torch.full((4, 1), 7 * math.log(K)))
    codes = stochastic.posterior.sample(
        0, features((1000, DIM, 8)), stochastic.codebooks[0], Noise(3)
    ).codes
    drawn = torch.bincount(codes.flatten(), minlength=K)
    # chi-square, 0.999 quantile for K − 1 = 7 degrees of freedom
    assert (drawn - 1000).square().sum() / 1000 < 24.3


@pytest.mark.parametrize("kind", ["random", "kmeans"])
@pytest.mark.parametrize("training", [True, False])
def test_no_variance_is_the_nearest_code(kind, training):
    quantizer = build(kind).train(training)
    set_s2(quantizer, -30.0)
    z_e = features((4, DIM, 7))
    out, drawn = quantizer(z_e, 1.0, Noise(3)), quantizer.sample(z_e, Noise(3))
    torch.testing.assert_close(out.z, quantizer.lookup(quantizer.encode(z_e)))
    assert torch.equal(drawn.codes, out.codes) and torch.equal(out.entropy, torch.zeros(4, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("s2", [1e-4, 1e-2, 1.0, 1e2])
def test_rate_lies_between_zero_and_the_capacity(stochastic, s2, training):
    set_s2(stochastic.train(training), math.log(s2))
    entropy = stochastic(features((64, DIM, 7))).entropy
    assert (entropy >= 0).all() and (entropy <= 7 * math.log(K) * (1 + 1e-6)).all()


def test_entropy_is_summed_over_the_positions_of_each_sample(stochastic):
    z_e = features((4, DIM, 2, 3))
    parts = stochastic(flatten_positions(z_e)).entropy
    for training in (True, False):
        whole = stochastic.train(training)(z_e).entropy
        torch.testing.assert_close(whole[:, 0], parts.reshape(4, 6).sum(1))


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_codebook_changes_the_names_alone(stochastic, training):
    z_e = features((4, DIM, 7))
    order = torch.randperm(K, generator=torch.Generator().manual_seed(2))
    other = copy.deepcopy(stochastic)
    vectors(other).data.copy_(vectors(stochastic)[order])
    temperature = 1e6 if training else 1.0
    before, after = (q.train(training)(z_e, temperature, Noise(3)) for q in (stochastic, other))
    torch.testing.assert_close(after.entropy, before.entropy)
    assert torch.equal(order[after.codes], before.codes)
    if not training:  # in training the noise belongs to the names
        torch.testing.assert_close(after.latent_loss, before.latent_loss)


@pytest.mark.parametrize("kind", ["random", "kmeans"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_scaling_features_codes_and_deviation_together_changes_nothing(kind, scale, training):
    quantizer, z_e = build(kind), features((4, DIM, 7))
    other = copy.deepcopy(quantizer)
    vectors(other).data.mul_(scale)
    other.posterior.theta.data.add_(2 * math.log(scale))
    before = quantizer.train(training)(z_e, 0.7, Noise(3))
    after = other.train(training)(scale * z_e, 0.7, Noise(3))
    assert torch.equal(after.codes, before.codes)
    for name in ("entropy", "latent_loss"):
        ours, theirs = getattr(after, name), getattr(before, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.z, scale * before.z, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("of", ["z", "entropy", "latent_loss"])
def test_every_parameter_receives_a_finite_gradient(stochastic, of):
    z_e = features((4, DIM, 7)).requires_grad_()
    out = stochastic(z_e, 0.7, Noise(3))
    value = out.z.square().sum() if of == "z" else getattr(out, of).sum()
    given = (z_e, vectors(stochastic), stochastic.posterior.theta)
    for gradient in torch.autograd.grad(value, given):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("log_s2", [-300.0, 300.0])
def test_a_variance_that_left_float32_leaves_every_term_finite(log_s2):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 8)
    set_s2(quantizer, log_s2)
    z = torch.randn(3, 4, 5, requires_grad=True)
    out = quantizer(z, 0.7)
    loss = (out.latent_loss - out.entropy.sum(1) + out.z.sum((1, 2))).sum()
    loss.backward()
    theta = quantizer.posterior.theta
    terms = (loss, quantizer.posterior.variance, z.grad, vectors(quantizer).grad)
    assert all(term.isfinite().all() for term in terms)
    assert torch.equal(theta.grad, torch.zeros(1))


def choice(z: list[float]) -> Choice:
    """Of one sample with one channel."""
    codes = torch.zeros(1, len(z), dtype=torch.long)
    return Choice(torch.tensor([[z]]), codes, torch.zeros(1))


def test_the_latent_loss_is_one_quadratic_term_with_the_sum_of_variances():
    z_e = torch.tensor([[[3.0, 1.0]]])  # B = D = 1, two positions
    posterior = GumbelSoftmax(1, 2)
    posterior.theta.data.copy_(torch.tensor([0.5, 1.5]).log())
    choices = [choice([2.0, 1.0]), choice([0.5, 2.0])]
    expected = torch.tensor([(0.5**2 + 2.0**2) / (2 * 2.0)])
    torch.testing.assert_close(posterior.latent_loss(z_e, choices), expected)
    torch.testing.assert_close(posterior.kl_continuous(z_e, choices), expected - 1)


def test_s2_is_one_plus_exp_theta_where_the_config_says_so():
    """Started at 21 as the official code is: θ = log 20, never below 1."""
    config = GumbelSoftmaxConfig(init=RandomInit(), variance="one_plus_exp")
    posterior = GumbelSoftmax(4, 3, config)
    torch.testing.assert_close(posterior.theta, torch.full((3,), 20.0).log())
    torch.testing.assert_close(posterior.variance, torch.full((3,), 21.0))
    posterior.theta.data.fill_(-50.0)
    torch.testing.assert_close(posterior.variance, torch.ones(3))
    torch.testing.assert_close(
        GumbelSoftmax(4, 1, GumbelSoftmaxConfig(init=RandomInit(s2=7.0))).variance,
        torch.tensor([7.0]),
    )


@pytest.mark.parametrize("sharpness", [1.0, 50.0])
def test_init_sets_the_variance_by_the_mean_distance(sharpness):
    """s² = mean ‖z̃ − b‖² / (2 · sharpness), over all pairs of a feature and a code."""
    config = GumbelSoftmaxConfig(init=KMeansInit(sharpness=sharpness))
    quantizer, z_e = ResidualQuantizer(DIM, K, config=config), 3 * features((4, DIM, 7)) + 1
    quantizer.init(z_e, Noise(1))
    square = torch.cdist(flatten_positions(z_e), vectors(quantizer)).square().mean()
    expected = (square / (2 * sharpness)).reshape(1)
    torch.testing.assert_close(quantizer.posterior.variance, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["random", "paper", "ema"])
def test_a_random_init_looks_at_no_data(kind):
    quantizer = build(kind)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.init(100 * features((4, DIM, 7)), Noise(1))
    after = quantizer.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


# --------------------------------------------------------------------------- deterministic


def test_commitment_is_paid_on_every_partial_sum():
    z_e = torch.tensor([[[3.0, 1.0]]], requires_grad=True)
    choices = [choice([2.0, 1.0]), choice([0.5, 2.0])]
    for one in choices:
        one.z.requires_grad_()
    posterior = NearestCode(2, NearestCodeConfig(beta=0.25))
    loss = posterior.latent_loss(z_e, choices)
    # the first layer misses (1, 0), both together (0.5, −2); means over positions and layers
    torch.testing.assert_close(loss, torch.tensor([0.25 / 2 * (1.0 / 2 + 4.25 / 2)]))
    loss.sum().backward()
    expected = torch.tensor([[[0.25 / 2 * (1.0 + 0.5), 0.25 / 2 * (0.0 - 2.0)]]])
    torch.testing.assert_close(z_e.grad, expected)
    assert all(one.z.grad is None for one in choices)
    assert torch.equal(posterior.kl_continuous(z_e, choices), torch.zeros(1))


@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradient_of_a_deterministic_quantizer_is_passed_straight_through(kind, layers):
    quantizer = ResidualQuantizer(DIM, K, layers, FAMILY[kind])
    z_e, weight = features((4, DIM, 7)).requires_grad_(), features((4, DIM, 7), seed=2)
    out = quantizer(z_e)
    (gradient,) = torch.autograd.grad((out.z * weight).sum(), z_e)
    assert torch.equal(gradient, weight)
    torch.testing.assert_close(out.z, quantizer.lookup(out.codes))
    assert not out.entropy.any() and not quantizer.posterior.variance.any()
    assert not [p for p in quantizer.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("layers", "beta", "expected"),
    [
        ([1], None, 0.25),
        ([2], None, 0.25),
        ([3], None, 0.025),
        ([1, 1], None, 0.025),
        ([1], 0.1, 0.1),
        ([2, 2], 0.1, 0.1),
    ],
)
def test_the_commitment_of_nearest_codes_goes_by_the_depth(layers, beta, expected):
    nearest = GumbelSoftmaxConfig(beta=beta).nearest(layers)
    assert nearest.beta == expected and nearest.restart
