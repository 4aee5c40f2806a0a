"""Facts about the family of quantizers, used alone: every test goes over all of them, or over those that share the fact."""

import copy
import math

import pytest
import torch

from hqvae.quantize import (
    QUANTIZERS,
    AsTriple,
    DataStart,
    EMAConfig,
    EMAQuantizer,
    Noise,
    NormalStart,
    OwnStart,
    Quantized,
    StochasticConfig,
    StochasticQuantizer,
    grid_of,
    rows_and_codes,
    rows_of,
)  # fmt: skip

STOCHASTIC = {"normal": StochasticConfig(start=NormalStart()), "data": StochasticConfig(start=DataStart())}
DETERMINISTIC = {
    "ema": EMAConfig(), "ema-data": EMAConfig(start=DataStart()), "restart": EMAConfig(restart=True, start=DataStart()),
}  # fmt: skip
FAMILY = {**STOCHASTIC, **DETERMINISTIC}
SHAPES = [(6, 5), (4, 5, 7), (3, 5, 4, 6)]  # none, one and two axes
DIM, K = 5, 8


def build(kind: str, dim: int = DIM, codebook_size: int = K):
    """A small member of the family, started from a batch."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[FAMILY[kind].kind](dim, codebook_size, FAMILY[kind])
    quantizer.start_from(features((16, dim, 4)), Noise(5))
    return quantizer


def features(shape, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    assert out.codes.shape == (shape[0], *shape[2:]) and out.codes.dtype == torch.long
    assert out.entropy.shape == (shape[0],) and out.variance.shape == ()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_draw_is_lookup_of_the_codes_in_either_mode(quantizer, shape):
    drawn = [quantizer.train(mode).draw(features(shape), Noise(3)) for mode in (True, False)]
    assert torch.equal(drawn[0].codes, drawn[1].codes)
    assert torch.equal(drawn[0].z, quantizer.lookup(drawn[0].codes)) and drawn[0].z.shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_depend_on_the_position_alone(quantizer, shape):
    """Not on mode, temperature, noise, batch mates or neighbours."""
    z_e = features(shape)
    codes = quantizer.nearest(z_e)
    for mode in (True, False):
        quantizer.train(mode)
        for temperature, noise in ((1.0, None), (0.1, Noise(1)), (3.0, Noise(2))):
            assert torch.equal(quantizer(z_e, temperature, noise).codes, codes)
        assert torch.equal(torch.cat([quantizer(one).codes for one in z_e.split(1)]), codes)
    assert torch.equal(quantizer.nearest(rows_of(z_e)), codes.flatten())
    assert len(codes.unique()) > 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_come_second_and_positions_keep_their_place(quantizer, shape):
    z_e = features(shape)
    out = quantizer.eval()(z_e)
    for place in [(0,) * (len(shape) - 1), tuple(size - 1 for size in (shape[0], *shape[2:]))]:
        vector, code = z_e.movedim(1, -1)[place], out.codes[place]
        assert code == (vector - quantizer.codebook).square().sum(1).argmin()
        assert torch.equal(out.z.movedim(1, -1)[place], quantizer.codebook[code])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_grid_are_inverses(shape):
    z = features(shape)
    rows = rows_of(z)
    assert torch.equal(grid_of(rows, z), z) and torch.equal(rows[0], z.movedim(1, -1).reshape(-1, DIM)[0])
    assert torch.equal(rows_of(z[:1]), rows[: len(rows) // shape[0]])  # positions of one sample stay together


@pytest.mark.parametrize("shape", [(K,), (2, K), (2, 4, K)], ids=str)
def test_nearest_of_lookup_is_the_code(quantizer, shape):
    codes = torch.arange(K).expand(shape)
    assert torch.equal(quantizer.nearest(quantizer.lookup(codes)), codes)
    assert quantizer.lookup(codes).shape == (shape[0], DIM, *shape[1:])


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_draw_change_no_state(quantizer, training):
    quantizer.train(training)
    before, attributes = copy.deepcopy(quantizer.state_dict()), set(vars(quantizer))
    quantizer(features((4, DIM, 7)), 0.5, Noise(3))
    quantizer.draw(features((4, DIM, 7)), Noise(3))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    assert set(vars(quantizer)) == attributes


@pytest.mark.parametrize("wrong", [-1, K])
def test_lookup_names_the_code_out_of_range(quantizer, wrong):
    with pytest.raises(ValueError, match=rf"{wrong}.*0 to {K - 1}"):
        quantizer.lookup(torch.tensor([[0, wrong]]))


@pytest.mark.parametrize("verb", ["forward", "nearest", "draw"])
def test_a_wrong_width_is_named_with_the_right_one(quantizer, verb):
    with pytest.raises(ValueError, match=rf"\[2, 4, 3\].*\[B, {DIM}, \*S\]"):
        getattr(quantizer, verb)(torch.zeros(2, 4, 3), *([Noise(0)] if verb == "draw" else []))


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize(
    ("dim", "codebook_size", "message"), [(4, 1, "codebook_size is 1"), (4, 0, "codebook_size is 0"), (0, 4, "dim is 0")]
)
def test_too_few_codes_or_dimensions_are_named(kind, dim, codebook_size, message):
    with pytest.raises(ValueError, match=message):
        QUANTIZERS[kind](dim, codebook_size)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, DIM), (0, DIM, 3), (2, DIM, 0)], ids=str)
def test_an_empty_batch_gives_an_empty_result(quantizer, training, shape):
    out = quantizer.train(training)(torch.zeros(shape))
    assert out.z.shape == shape and out.codes.shape == (shape[0], *shape[2:])
    assert torch.equal(out.entropy, torch.zeros(shape[0]))


def test_same_noise_same_sample_and_samples_are_numbered(stochastic):
    z_e = features((6, DIM, 7))
    whole = stochastic(z_e, 0.7, Noise(3))
    torch.testing.assert_close(stochastic(z_e, 0.7, Noise(3)).z, whole.z, rtol=0, atol=0)
    torch.testing.assert_close(stochastic(z_e[2:], 0.7, Noise(3, samples=2)).z, whole.z[2:])
    torch.testing.assert_close(stochastic.draw(z_e[2:], Noise(3, samples=2)).z, stochastic.draw(z_e, Noise(3)).z[2:])
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
    low, high = (bound.values.view(1, -1, *[1] * (len(shape) - 2)) for bound in (stochastic.codebook.min(0), stochastic.codebook.max(0)))
    assert out.z.shape == shape and (out.z >= low - 1e-5).all() and (out.z <= high + 1e-5).all()
    assert not torch.allclose(out.z, stochastic.lookup(out.codes))


@pytest.mark.parametrize("training", [True, False])
def test_infinite_variance_makes_every_code_equally_likely(stochastic, training):
    stochastic.train(training).log_s2.data.fill_(40.0)
    out = stochastic(features((4, DIM, 7)))
    torch.testing.assert_close(out.entropy, torch.full((4,), 7 * math.log(K)))
    drawn = torch.bincount(stochastic.draw(features((1000, DIM, 8)), Noise(3)).codes.flatten(), minlength=K)
    assert (drawn - 1000).square().sum() / 1000 < 24.3  # chi-square, 0.999 quantile for K − 1 = 7 degrees of freedom


@pytest.mark.parametrize("training", [True, False])
def test_no_variance_is_the_nearest_code(stochastic, training):
    stochastic.train(training).log_s2.data.fill_(-30.0)
    z_e = features((4, DIM, 7))
    out, drawn = stochastic(z_e, 1.0, Noise(3)), stochastic.draw(z_e, Noise(3))
    torch.testing.assert_close(out.z, stochastic.lookup(stochastic.nearest(z_e)))
    assert torch.equal(drawn.codes, out.codes) and torch.equal(out.entropy, torch.zeros(4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("s2", [1e-4, 1e-2, 1.0, 1e2])
def test_rate_lies_between_zero_and_the_capacity(stochastic, s2, training):
    stochastic.train(training).log_s2.data.fill_(math.log(s2))
    entropy = stochastic(features((64, DIM, 7))).entropy
    assert (entropy >= 0).all() and (entropy <= 7 * math.log(K) * (1 + 1e-6)).all()


def test_entropy_is_summed_over_the_positions_of_each_sample(stochastic):
    z_e = features((4, DIM, 2, 3))
    parts = stochastic(rows_of(z_e)).entropy
    for training in (True, False):
        torch.testing.assert_close(stochastic.train(training)(z_e).entropy, parts.reshape(4, 6).sum(1))


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_codebook_changes_the_names_alone(stochastic, training):
    z_e, order = features((4, DIM, 7)), torch.randperm(K, generator=torch.Generator().manual_seed(2))
    other = copy.deepcopy(stochastic)
    other.codebook.data.copy_(stochastic.codebook[order])
    before, after = (q.train(training)(z_e, 1e6 if training else 1.0, Noise(3)) for q in (stochastic, other))
    torch.testing.assert_close(after.entropy, before.entropy)
    assert torch.equal(order[after.codes], before.codes)
    if not training:  # in training the noise belongs to the names
        torch.testing.assert_close(other.fit(z_e, [after]), stochastic.fit(z_e, [before]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_scaling_features_codes_and_deviation_together_changes_nothing(stochastic, scale, training):
    z_e, other = features((4, DIM, 7)), copy.deepcopy(stochastic)
    other.codebook.data.mul_(scale)
    other.log_s2.data.add_(2 * math.log(scale))
    before = stochastic.train(training)(z_e, 0.7, Noise(3))
    after = other.train(training)(scale * z_e, 0.7, Noise(3))
    assert torch.equal(after.codes, before.codes)
    torch.testing.assert_close(after.entropy, before.entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.z, scale * before.z, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(other.fit(scale * z_e, [after]), stochastic.fit(z_e, [before]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["z", "entropy", "fit"])
def test_every_parameter_receives_a_finite_gradient(stochastic, of):
    z_e = features((4, DIM, 7)).requires_grad_()
    out = stochastic(z_e, 0.7, Noise(3))
    value = {"z": out.z.square().sum(), "entropy": out.entropy.sum(), "fit": stochastic.fit(z_e, [out]).sum()}[of]
    for gradient in torch.autograd.grad(value, (z_e, stochastic.codebook, stochastic.log_s2)):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_fit_is_one_quadratic_term_with_the_sum_of_variances():
    target = torch.tensor([[[3.0, 1.0]]])  # B = D = 1, two positions
    layers = [_layer([2.0, 1.0], 0.5), _layer([0.5, 2.0], 1.5)]
    quantizer = StochasticQuantizer(1, 2)
    torch.testing.assert_close(quantizer.fit(target, layers), torch.tensor([(0.5**2 + 2.0**2) / (2 * 2.0)]))
    torch.testing.assert_close(quantizer.surplus(target, layers), torch.tensor([4.25 / 4 - 1]))


def _layer(z: list[float], variance: float = 0.0) -> Quantized:
    """A quantization of one sample with one channel."""
    return Quantized(torch.tensor([[z]]), torch.zeros(1, len(z), dtype=torch.long), torch.zeros(1), torch.tensor(variance))


def test_commitment_is_paid_on_every_partial_sum():
    target = torch.tensor([[[3.0, 1.0]]], requires_grad=True)
    layers = [_layer([2.0, 1.0]), _layer([0.5, 2.0])]
    for layer in layers:
        layer.z.requires_grad_()
    quantizer = EMAQuantizer(1, 2, EMAConfig(beta=0.25))
    fit = quantizer.fit(target, layers)
    # first layer misses (1, 0), both together (0.5, −2); means over the two positions and the two layers
    torch.testing.assert_close(fit, torch.tensor([0.25 / 2 * (1.0 / 2 + 4.25 / 2)]))
    fit.sum().backward()
    torch.testing.assert_close(target.grad, torch.tensor([[[0.25 / 2 * (1.0 + 0.5), 0.25 / 2 * (0.0 - 2.0)]]]))
    assert all(layer.z.grad is None for layer in layers)
    assert torch.equal(quantizer.surplus(target, layers), torch.zeros(1))


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_the_gradient_of_a_deterministic_quantizer_is_passed_straight_through(kind):
    quantizer, z_e, weight = build(kind), features((4, DIM, 7)).requires_grad_(), features((4, DIM, 7), seed=2)
    out = quantizer(z_e)
    (gradient,) = torch.autograd.grad((out.z * weight).sum(), z_e)
    assert torch.equal(gradient, weight)
    torch.testing.assert_close(out.z, quantizer.lookup(out.codes))
    assert not out.entropy.any() and out.variance == 0 and not list(quantizer.parameters())


def scalar_ema(restart: bool, decay: float) -> EMAQuantizer:
    """Three codes on a line: 0, 1 and −4."""
    quantizer = EMAQuantizer(1, 3, EMAConfig(decay=decay, restart=restart))
    for values in (quantizer.codebook, quantizer.sums):
        values.copy_(torch.tensor([[0.0], [1.0], [-4.0]]))
    return quantizer


def test_update_is_the_moving_average_computed_by_hand():
    quantizer = scalar_ema(restart=False, decay=0.5)
    counts, sums = [1.0, 1.0, 1.0], [0.0, 1.0, -4.0]
    for rows, codes in [([0.2, 0.4, 1.4], [0, 0, 1]), ([0.1, -3.0, 0.9], [0, 2, 1])]:
        z = torch.tensor(rows).unsqueeze(1)
        assert quantizer.nearest(z).tolist() == codes
        assert quantizer.update(z, torch.tensor(codes), Noise(1)) == 0
        for k in range(3):
            mine = [row for row, code in zip(rows, codes) if code == k]
            counts[k] = 0.5 * counts[k] + 0.5 * len(mine)
            sums[k] = 0.5 * sums[k] + 0.5 * sum(mine)
        smoothed = [(count + 1e-5) / (sum(counts) + 3e-5) * sum(counts) for count in counts]
        torch.testing.assert_close(quantizer.counts, torch.tensor(counts))
        torch.testing.assert_close(quantizer.sums.squeeze(1), torch.tensor(sums))
        torch.testing.assert_close(quantizer.codebook.squeeze(1), torch.tensor([m / n for m, n in zip(sums, smoothed)]))
    # and as numbers: N = (1.25, 1, 0.75), m = (0.2, 1.05, −2.5), but for the smoothing
    torch.testing.assert_close(quantizer.codebook.squeeze(1), torch.tensor([0.2 / 1.25, 1.05, -2.5 / 0.75]), rtol=1e-4, atol=1e-4)


def test_the_same_batch_again_and_again_leads_to_its_means():
    quantizer = scalar_ema(restart=False, decay=0.5)
    z, codes = torch.tensor([[0.2], [0.4], [1.4]]), torch.tensor([0, 0, 1])
    for _ in range(30):
        quantizer.update(z, codes, Noise(1))
    torch.testing.assert_close(quantizer.codebook[:2], torch.tensor([[0.3], [1.4]]), rtol=1e-4, atol=1e-4)
    assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_a_restarted_code_is_a_row_of_the_batch_and_stays_so(seed):
    """Vector, sum and count are set after the averages, which would otherwise overwrite them in the same step."""
    z, codes = torch.tensor([[0.2], [0.4], [1.4], [1.6]] * 6), torch.tensor([0, 0, 1, 1] * 6)
    quantizer, without = scalar_ema(restart=True, decay=0.5), scalar_ema(restart=False, decay=0.5)
    assert (quantizer.update(z, codes, Noise(seed)), without.update(z, codes, Noise(seed))) == (1, 0)
    assert quantizer.codebook[2] in z and quantizer.sums[2] == quantizer.codebook[2] and quantizer.counts[2] == 1
    for name in ("codebook", "sums", "counts"):  # codes with a count of 1 or more keep their averages
        assert torch.equal(getattr(quantizer, name)[:2], getattr(without, name)[:2])
    assert without.counts[2] == 0.5 and without.codebook[2] not in z


def test_in_small_batches_an_eighth_of_the_even_share_is_enough_to_stay():
    """By the threshold of 1, two features a step for each code would put most of a large codebook back at every step."""
    z, codes = torch.tensor([[0.2], [0.4], [1.4]]), torch.tensor([0, 0, 1])  # an even share of 1
    quantizer = scalar_ema(restart=True, decay=0.5)
    assert [quantizer.update(z, codes, Noise(seed)) for seed in range(4)] == [0, 0, 0, 1]  # N_3 = 1/2, 1/4, 1/8, 1/16
    assert quantizer.counts[2] == 1 and quantizer.codebook[2] in z


def test_restarts_differ_between_noises_and_repeat_with_one():
    z, codes, placed = features((64, 1)), torch.zeros(64, dtype=torch.long), []
    for seed in (1, 1, 2):
        quantizer = scalar_ema(restart=True, decay=0.5)
        assert quantizer.update(z, codes, Noise(seed)) == 2
        placed.append(quantizer.codebook[1:].clone())
    assert torch.equal(placed[0], placed[1]) and not torch.equal(placed[0], placed[2])


def test_averages_move_in_place():
    quantizer = scalar_ema(restart=True, decay=0.5)
    places = {name: buffer.data_ptr() for name, buffer in quantizer.named_buffers()}
    quantizer.update(torch.tensor([[0.2]]), torch.tensor([0]), Noise(1))
    quantizer.start_from(features((16, 1, 4)), Noise(1))
    assert {name: buffer.data_ptr() for name, buffer in quantizer.named_buffers()} == places


def test_rows_and_codes_pool_layers_sample_by_sample():
    z = [features((2, DIM, 3, 2)).requires_grad_(), features((2, DIM, 3, 2), seed=2)]
    codes = [torch.arange(12).reshape(2, 3, 2), torch.arange(12, 24).reshape(2, 3, 2)]
    rows, flat = rows_and_codes(z, codes)
    assert flat.tolist() == [*range(6), *range(12, 18), *range(6, 12), *range(18, 24)]
    assert rows.shape == (24, DIM) and not rows.requires_grad
    assert torch.equal(rows[7], z[1][0, :, 0, 1]) and torch.equal(rows[13], z[0][1, :, 0, 1])


@pytest.mark.parametrize("kind", ["data", "restart", "ema-data"])
def test_start_from_data_puts_codes_on_features(kind):
    quantizer, z_e = build(kind), features((2, DIM, 4), seed=3)
    quantizer.config = type(quantizer.config)(start=DataStart(jitter=0.0, kmeans=0))
    quantizer.start_from(z_e, Noise(1))
    at = torch.cdist(quantizer.codebook, rows_of(z_e)).argmin(1)
    assert torch.equal(quantizer.codebook, rows_of(z_e)[at]) and len(at.unique()) == K  # as many rows as codes: each once
    if kind != "data":
        assert torch.equal(quantizer.counts, torch.ones(K)) and torch.equal(quantizer.sums, quantizer.codebook)


def test_started_from_fewer_rows_than_codes_every_row_is_a_code():
    quantizer = EMAQuantizer(DIM, 7, EMAConfig(start=DataStart(jitter=0.0, kmeans=0)))
    rows = features((3, DIM))
    quantizer.start_from(rows, Noise(1))
    used = torch.bincount(torch.cdist(quantizer.codebook, rows).argmin(1), minlength=3)
    assert sorted(used.tolist()) == [2, 2, 3]


def test_a_start_from_data_is_the_k_means_of_the_features():
    """Every code is the mean of the features nearest to it, none is left without, and they are nearer than the features it began at."""
    z_e = features((64, DIM, 8), seed=3)
    begun, done = (StochasticQuantizer(DIM, K, StochasticConfig(start=DataStart(jitter=0.0, kmeans=rounds))) for rounds in (0, 100))
    begun.start_from(z_e, Noise(1))
    done.start_from(z_e, Noise(1))
    rows, nearest = rows_of(z_e), done.nearest(z_e).flatten()
    for code in range(K):
        torch.testing.assert_close(done.codebook[code], rows[nearest == code].mean(0))
    missed = [torch.cdist(rows, quantizer.codebook).amin(1).square().mean() for quantizer in (begun, done)]
    assert missed[1] < 0.9 * missed[0]


def test_a_start_from_the_own_codes_goes_on_from_them():
    """One round moves every code to the mean of what was nearest to it, an idle one to a feature; counts are of one step of the three."""
    z_e = features((60, DIM, 8), seed=3)
    quantizer = EMAQuantizer(DIM, K, EMAConfig(start=OwnStart(kmeans=1)))
    quantizer.codebook[0] = 1000.0
    rows, before = rows_of(z_e), quantizer.nearest(z_e).flatten()
    quantizer.start_from(z_e, Noise(1), steps=3)
    for code in before.unique():
        torch.testing.assert_close(quantizer.codebook[code], rows[before == code].mean(0))
    assert 0 not in before and (rows == quantizer.codebook[0]).all(1).any()
    counts = torch.bincount(quantizer.nearest(z_e).flatten(), minlength=K)
    torch.testing.assert_close(quantizer.counts, (counts / 3).clamp(min=1))
    torch.testing.assert_close(quantizer.sums / quantizer.counts[:, None], quantizer.codebook)


def test_k_means_leaves_no_code_on_a_heavy_background():
    """Nearly all features are one: codes that nothing is nearest to go where features are missed, not onto the heap again."""
    torch.manual_seed(0)
    z_e = torch.cat([torch.zeros(19_000, DIM), torch.randn(1000, DIM)])
    quantizer = EMAQuantizer(DIM, 100, EMAConfig(start=DataStart()))
    quantizer.start_from(z_e, Noise(1))
    assert len(quantizer.nearest(z_e).unique()) > 95
    assert quantizer.counts.max() > 18_000 and quantizer.counts.min() >= 1  # so that no restart undoes the start
    torch.testing.assert_close(quantizer.sums / quantizer.counts[:, None], quantizer.codebook)


def test_k_means_does_not_put_codes_on_every_feature_there_is():
    """Few features, often repeated: residual layers need something left to start from."""
    z_e = features((3, DIM)).repeat(50, 1)
    quantizer = EMAQuantizer(DIM, 7, EMAConfig(start=DataStart(jitter=0.1)))
    quantizer.start_from(z_e, Noise(1))
    assert torch.cdist(z_e, quantizer.codebook).amin() > 1e-4


@pytest.mark.parametrize("sharpness", [1.0, 50.0])
@pytest.mark.parametrize("keep_codes", [False, True])
def test_start_from_data_sets_the_variance_by_the_mean_distance(keep_codes, sharpness):
    """s² = mean ‖z̃ − b‖² / (2 · sharpness), over all pairs of a feature and a code."""
    quantizer, z_e = StochasticQuantizer(DIM, K, StochasticConfig(start=DataStart(sharpness=sharpness))), 3 * features((4, DIM, 7)) + 1
    before = quantizer.codebook.detach().clone()
    quantizer.start_from(z_e, Noise(1), keep_codes)
    square = torch.cdist(rows_of(z_e), quantizer.codebook).square().mean()
    torch.testing.assert_close(quantizer.variance, square / (2 * sharpness), rtol=1e-4, atol=0)
    assert torch.equal(quantizer.codebook, before) == keep_codes


@pytest.mark.parametrize("kind", ["normal", "ema"])
def test_a_normal_start_looks_at_no_data(kind):
    quantizer = build(kind)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.start_from(100 * features((4, DIM, 7)), Noise(1))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_a_normal_start_has_the_variance_of_its_config():
    torch.testing.assert_close(StochasticQuantizer(4, 8, StochasticConfig(start=NormalStart(s2=21.0))).variance, torch.tensor(21.0))


@pytest.mark.parametrize("kind", ["data", "restart"])
@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_nothing_starts_from_constant_or_broken_features(kind, value):
    with pytest.raises(ValueError, match="constant or not finite"):
        build(kind).start_from(torch.full((4, DIM, 7), value), Noise(1))


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_siblings_share_codes_and_not_the_variance(kind):
    quantizer = build(kind)
    other = quantizer.sibling()
    assert other.codebook is quantizer.codebook and other.log_s2 is not quantizer.log_s2


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_deterministic_siblings_share_everything(kind):
    quantizer = build(kind)
    assert quantizer.sibling() is quantizer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, DIM), (2, 9, DIM), (2, 3, 4, DIM)], ids=str)
def test_as_triple_takes_channels_last(quantizer, shape, training):
    z = features(shape).requires_grad_()
    quantizer.train(training)
    torch.manual_seed(3)
    quantized, indices, loss = AsTriple(quantizer)(z, 0.5)
    torch.manual_seed(3)
    out = quantizer(z.movedim(-1, 1), 0.5)
    assert quantized.shape == shape and indices.shape == shape[:-1] and loss.shape == ()
    assert torch.equal(quantized, out.z.movedim(1, -1)) and torch.equal(indices, out.codes)
    missed = (z - quantized).square().sum() / shape[0]
    if isinstance(quantizer, EMAQuantizer):
        missed = (z - quantizer.codebook[indices]).square().mean()
        torch.testing.assert_close(loss, 0.25 * missed)
    else:
        torch.testing.assert_close(loss, missed / (2 * quantizer.variance) - out.entropy.mean())
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("shape", [(40, DIM), (2, 5, 4, DIM)], ids=str)
def test_as_triple_moves_a_codebook_of_averages(shape):
    z, quantizer = features(shape), EMAQuantizer(DIM, 4, EMAConfig(decay=0.5))
    quantize = AsTriple(quantizer)
    before, (_, indices, _) = quantizer.codebook.clone(), quantize(z)
    assert quantize.update(z, indices) == 0 and not torch.equal(quantizer.codebook, before)
    twin = EMAQuantizer(DIM, 4, EMAConfig(decay=0.5))
    for name, values in twin.state_dict().items():
        values.copy_(before if name != "counts" else torch.ones(4))
    twin.update(z.reshape(-1, DIM), indices.reshape(-1), Noise(1))
    assert torch.equal(twin.codebook, quantizer.codebook)
    stochastic = StochasticQuantizer(DIM, 4)
    before = stochastic.codebook.clone()
    assert AsTriple(stochastic).update(z, indices) == 0 and torch.equal(stochastic.codebook, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["module too", "input only"])
def test_as_triple_gives_back_the_dtype_it_got(quantizer, whole, training):
    quantize, z = AsTriple(quantizer).train(training), features((2, 9, DIM)).bfloat16()
    quantized, _, loss = (quantize.bfloat16() if whole else quantize)(z)
    assert quantized.dtype == torch.bfloat16 and loss.isfinite()


@pytest.mark.parametrize("log_s2", [-300.0, 300.0])
def test_a_variance_that_left_float32_leaves_every_term_finite(log_s2):
    torch.manual_seed(0)
    quantizer = StochasticQuantizer(4, 8)
    quantizer.log_s2.data.fill_(log_s2)
    z = torch.randn(3, 4, 5, requires_grad=True)
    quantized = quantizer(z, 0.7)
    loss = (quantizer.fit(z, [quantized]) - quantized.entropy + quantized.z.sum((1, 2))).sum()
    loss.backward()
    assert all(t.isfinite().all() for t in (loss, quantizer.variance, z.grad, quantizer.codebook.grad))
    assert quantizer.log_s2.grad == 0
