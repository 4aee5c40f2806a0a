"""Facts about stacks of layers: the recursion, sharing, the beam, init, refine, update, phases."""

import copy

import pytest
import torch

from hqvae.quantize import (
    Codebook,
    GumbelSoftmaxConfig,
    KMeansInit,
    NearestCodeConfig,
    Noise,
    RandomInit,
    ResidualQuantizer,
    flatten_positions,
    pool_layers,
)

DIM, K, L = 5, 8, 3
CONFIGS = {
    "stochastic": GumbelSoftmaxConfig(),
    "paper": GumbelSoftmaxConfig(init=RandomInit(s2=3.0), variance="one_plus_exp"),
    "ema": NearestCodeConfig(init=KMeansInit()),
    "restart": NearestCodeConfig(restart=True, init=KMeansInit()),
}
NEAREST = NearestCodeConfig(beta=0.025, restart=True)


def features(shape, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(kind: str, shared: bool = False, beam_size: int = 1, layers: int = L):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(DIM, K, layers, CONFIGS[kind], shared, beam_size)
    quantizer.init(features((32, DIM, 4)), Noise(5))
    return quantizer


def state(quantizer) -> dict[str, torch.Tensor]:
    return copy.deepcopy(quantizer.state_dict())


def same(before, after) -> bool:
    return all(torch.equal(before[name], value) for name, value in after.items())


@pytest.fixture(params=[(kind, shared) for kind in CONFIGS for shared in (False, True)], ids=str)
def quantizer(request):
    return build(*request.param)


# --------------------------------------------------------------------------- the recursion


def test_each_layer_quantizes_what_those_before_left(quantizer):
    z_e = features((4, DIM, 7))
    out = quantizer.eval()(z_e)
    residual = z_e
    for layer, codebook in enumerate(quantizer.codebooks):
        assert torch.equal(codebook.nearest(residual), out.codes[:, layer])
        torch.testing.assert_close(out.layers[layer], codebook.lookup(out.codes[:, layer]))
        residual = residual - out.layers[layer]


def test_relaxed_residuals_carry_gradients():
    """No stop-gradient: the second layer's entropy reaches the first one's codebook."""
    quantizer = build("stochastic")
    out = quantizer(features((4, DIM, 7)), 0.7, Noise(1))
    quantizer.zero_grad()
    out.entropy[:, 1].sum().backward()
    assert quantizer.codebooks[0].vectors.grad.abs().sum() > 0
    assert not quantizer.codebooks[2].vectors.grad.any()


def test_evaluation_is_lookup_of_the_codes_to_the_last_bit(quantizer):
    z_e = features((4, DIM, 7))
    out = quantizer.eval()(z_e)
    assert torch.equal(out.z, quantizer.lookup(out.codes))
    assert torch.equal(out.codes, quantizer.encode(z_e))
    assert torch.equal(quantizer.train().encode(z_e), out.codes)
    torch.testing.assert_close(out.z, sum(out.layers))
    drawn = quantizer.sample(z_e, Noise(2))
    assert torch.equal(drawn.z, quantizer.lookup(drawn.codes))


def test_a_prefix_of_the_layers_is_the_sum_of_its_codes(quantizer):
    out = quantizer.eval()(features((4, DIM, 7)))
    for count in range(1, L + 1):
        torch.testing.assert_close(quantizer.lookup(out.codes[:, :count]), sum(out.layers[:count]))


@pytest.mark.parametrize("shape", [(4, DIM), (4, DIM, 7), (2, DIM, 2, 3)])
def test_candidates_stand_where_codes_do(quantizer, shape):
    z_e = features(shape)
    codes, errors = quantizer.candidates(z_e, 6)
    assert codes.shape == (shape[0], 6, L, *shape[2:])
    assert errors.shape == (shape[0], 6, *shape[2:])
    for number in range(6):
        error = (z_e - quantizer.lookup(codes[:, number])).square().sum(1)
        torch.testing.assert_close(errors[:, number], error)
    quantizer.beam_size = 6
    assert torch.equal(quantizer.candidates(z_e, 1)[0], codes[:, :1])
    if not quantizer.shared_codebook:  # whose codes give the same sum in any order
        assert torch.equal(quantizer.encode(z_e), codes[:, 0])


def test_there_are_no_more_candidates_than_sums():
    quantizer = build("ema", layers=1)
    codes, _ = quantizer.candidates(features((4, DIM)), 1000)
    assert [of_row.flatten().sort().values.tolist() for of_row in codes] == [list(range(K))] * 4


@pytest.mark.parametrize("count", [0, L + 1])
def test_a_wrong_number_of_layers_is_named(count):
    with pytest.raises(ValueError, match=rf"\[2, {count}, 4\].*B, 1 to {L}, "):
        build("ema").lookup(torch.zeros(2, count, 4, dtype=torch.long))


@pytest.mark.parametrize(("name", "value"), [("layers", 0), ("beam_size", 0)])
def test_too_few_layers_or_beams_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ResidualQuantizer(DIM, K, **{name: value})


def test_one_layer_of_a_stack_is_the_quantizer_by_itself():
    stack = build("stochastic", layers=1)
    z_e = features((4, DIM, 7))
    out = stack(z_e, 0.6, Noise(3))
    choice = stack.posterior.relax(0, z_e, stack.codebooks[0], 0.6, Noise(3).fold(0))
    assert torch.equal(out.z, choice.z) and torch.equal(out.entropy[:, 0], choice.entropy)


# --------------------------------------------------------------------------------- sharing


def test_a_shared_codebook_is_one_object_and_variances_are_many():
    shared = build("stochastic", shared=True)
    assert len({id(codebook) for codebook in shared.codebooks}) == 1
    assert len(shared.posterior.variance.unique()) == L
    assert len({id(codebook) for codebook in build("stochastic").codebooks}) == L


def test_a_shared_codebook_starts_from_what_the_first_layer_is_given():
    z_e = features((32, DIM, 4), seed=9)
    one, shared = build("stochastic", layers=1), build("stochastic", shared=True)
    for quantizer in (one, shared):
        quantizer.init(z_e, Noise(7))
    assert torch.equal(one.codebooks[0].vectors, shared.codebooks[0].vectors)
    assert one.posterior.variance[0] == shared.posterior.variance[0]


# ------------------------------------------------------------------------------------ beam


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_beam_finds_nearer_sums_the_same_in_every_mode_and_company(kind):
    z_e = features((16, DIM, 7), seed=4)
    alone, together = build(kind), build(kind, beam_size=8)
    assert torch.equal(alone.train()(z_e, 0.7, Noise(1)).z, together.train()(z_e, 0.7, Noise(1)).z)
    codes = together.encode(z_e)
    assert torch.equal(together.eval()(z_e).codes, codes)
    assert torch.equal(together.encode(z_e[3:4]), codes[3:4])
    assert torch.equal(alone.encode(z_e, beam_size=8), codes)

    def error(quantizer):
        return (z_e - quantizer.lookup(quantizer.encode(z_e))).square().sum()

    assert error(together) < error(alone)


def test_the_entropy_of_evaluation_is_that_of_the_residuals_of_the_beam():
    quantizer, z_e = build("stochastic", beam_size=4).eval(), features((4, DIM, 7))
    out = quantizer(z_e)
    residual = z_e
    for layer, codebook in enumerate(quantizer.codebooks):
        entropy = quantizer.posterior.nearest(layer, residual, codebook).entropy
        torch.testing.assert_close(out.entropy[:, layer], entropy)
        residual = residual - out.layers[layer]


# -------------------------------------------------------------------------- init and refine


def test_init_uses_every_layer(quantizer):
    if isinstance(getattr(quantizer.config, "init", None), RandomInit):
        pytest.skip("starts from no data")
    codes = quantizer.encode(features((32, DIM, 4)))
    used = [len(codes[:, layer].unique()) for layer in range(L)]
    assert used[0] == K
    assert quantizer.shared_codebook or min(used) > K // 2


def test_deterministic_counts_begin_as_those_of_one_step():
    quantizer, z_e = build("ema", layers=1), features((60, DIM, 8), seed=3)
    quantizer.init(z_e, Noise(1), steps=3)
    counts = torch.bincount(quantizer.encode(z_e).flatten(), minlength=K)
    torch.testing.assert_close(quantizer.codebooks[0].counts, (counts / 3).clamp(min=1))


@pytest.mark.parametrize("shared", [False, True])
def test_refined_codebooks_go_to_what_they_are_nearest_to(shared):
    """Layer by layer. A shared one keeps its vectors: it would fit the first layer's residuals."""
    quantizer, z_e = build("stochastic", shared), features((32, DIM, 4))
    for codebook in quantizer.codebooks:
        codebook.vectors.data.mul_(1.1)
    quantizer.use_nearest()
    before, error = state(quantizer), quantizer.eval()(z_e).latent_loss.sum()
    quantizer.refine(z_e, Noise(1), steps=2)
    for name, values in quantizer.state_dict().items():
        if name.endswith("vectors"):
            assert torch.equal(values, before[name]) == shared
    if not shared:
        assert quantizer(z_e).latent_loss.sum() < 0.99 * error
    codes = quantizer.encode(z_e)
    chosen = torch.bincount((codes if shared else codes[:, 0]).flatten(), minlength=K)
    torch.testing.assert_close(quantizer.codebooks[0].counts, (chosen / 2).clamp(min=1))


# ---------------------------------------------------------------------------------- update


def test_update_moves_each_codebook_with_its_own_residuals():
    quantizer = build("ema")
    z_e = features((16, DIM, 4), seed=6)
    twins = [copy.deepcopy(codebook) for codebook in quantizer.codebooks]
    codes = quantizer.train()(z_e).codes
    residual = z_e
    assert quantizer.update(z_e, codes, Noise(1)) == 0
    for layer, twin in enumerate(twins):
        before = twin.lookup(codes[:, layer])
        rows, own = flatten_positions(residual), codes[:, layer].flatten()
        twin.update(rows, own, 0.99, False, Noise(1).fold(layer))
        torch.testing.assert_close(quantizer.codebooks[layer].vectors, twin.vectors)
        residual = residual - before


def test_update_of_a_shared_codebook_pools_all_layers():
    quantizer, z_e = build("ema", shared=True), features((16, DIM, 4), seed=6)
    twin: Codebook = copy.deepcopy(quantizer.codebooks[0])
    out = quantizer.eval()(z_e)
    residuals = [z_e, z_e - out.layers[0], z_e - out.layers[0] - out.layers[1]]
    quantizer.update(z_e, out.codes, Noise(1))
    twin.update(*pool_layers(residuals, out.codes.unbind(1)), 0.99, False, Noise(1))
    torch.testing.assert_close(quantizer.codebooks[0].vectors, twin.vectors)


def test_codebooks_that_learn_by_gradient_are_not_updated():
    quantizer, z_e = build("stochastic"), features((4, DIM, 7))
    before = state(quantizer)
    assert quantizer.update(z_e, quantizer.encode(z_e), Noise(1)) == 0
    assert same(before, quantizer.state_dict())


def test_pooled_layers_go_sample_by_sample():
    z = [features((2, DIM, 3, 2)).requires_grad_(), features((2, DIM, 3, 2), seed=2)]
    codes = (torch.arange(12).reshape(2, 3, 2), torch.arange(12, 24).reshape(2, 3, 2))
    rows, flat = pool_layers(z, codes)
    assert flat.tolist() == [*range(6), *range(12, 18), *range(6, 12), *range(18, 24)]
    assert rows.shape == (24, DIM) and not rows.requires_grad
    assert torch.equal(rows[7], z[1][0, :, 0, 1]) and torch.equal(rows[13], z[0][1, :, 0, 1])


def test_pooled_layers_may_have_no_positions():
    z, codes = [features((4, DIM)), features((4, DIM), seed=2)], (torch.arange(4), torch.arange(4))
    rows, flat = pool_layers(z, codes)
    assert torch.equal(rows, torch.stack(z, 1).flatten(0, 1))
    assert flat.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# ---------------------------------------------------------------------------------- phases


@pytest.mark.parametrize("shared", [False, True])
def test_the_nearest_code_phase_is_the_deterministic_system_over_the_same_codebooks(shared):
    quantizer, z_e = build("stochastic", shared), features((16, DIM, 7))
    codebooks = [id(codebook) for codebook in quantizer.codebooks]
    codes, z = quantizer.encode(z_e), quantizer.eval()(z_e).z
    quantizer.train().use_nearest()
    assert [id(codebook) for codebook in quantizer.codebooks] == codebooks
    assert torch.equal(quantizer.encode(z_e), codes) and quantizer.posterior.training
    assert torch.equal(quantizer.eval()(z_e).z, z)

    twin = ResidualQuantizer(DIM, K, L, NEAREST, shared)
    twin.load_state_dict(quantizer.state_dict())
    ours, theirs = quantizer.train()(z_e), twin.train()(z_e)
    assert torch.equal(ours.z, theirs.z) and torch.equal(ours.latent_loss, theirs.latent_loss)
    restarted = [q.update(z_e, ours.codes, Noise(3)) for q in (quantizer, twin)]
    assert restarted[0] == restarted[1]
    assert same(quantizer.state_dict(), twin.state_dict())
