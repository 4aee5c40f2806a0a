"""Facts about levels, the walk over them, its sources, and the start of scales and codebooks."""

import pytest
import torch
from torch import nn

from conftest import FAMILY, LEVELS, SMALL, build, signals
from hqvae.errors import DegenerateFeatures
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.quantize import ExternalConfig, Noise, ResidualQuantizer, Stream
from hqvae.topdown import (
    ConcatLevel,
    Continuous,
    FirstLayers,
    GivenCodes,
    Level,
    NearestCodes,
    PosteriorSample,
    PredictionLevel,
    RelaxedSample,
    init_codebooks,
    init_scale,
    walk,
)

WIDTH, ABOVE, DIM, K = 7, 5, 3, 8  # of features, of the latent above, of codes
LOWER_LEVELS = {"prediction": (PredictionLevel, WIDTH), "concat": (ConcatLevel, WIDTH + DIM)}


def features(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_level(layers: int = 2) -> Level:
    torch.manual_seed(0)
    return Level(ResidualQuantizer(ABOVE, K, layers), nn.Conv1d(WIDTH, ABOVE, 1))


def lower_level(injection: str, layers: int = 2) -> PredictionLevel:
    """Below `first_level`, of twice its resolution; E is not zero."""
    torch.manual_seed(1)
    kind, channels = LOWER_LEVELS[injection]
    top_down = nn.ConvTranspose1d(ABOVE, DIM, 2, stride=2)
    return kind(ResidualQuantizer(DIM, K, layers), nn.Conv1d(channels, DIM, 1), top_down)


@pytest.fixture(params=LOWER_LEVELS)
def levels(request) -> list[Level]:
    return [first_level(), lower_level(request.param)]


H = (features(4, WIDTH, 6), features(4, WIDTH, 12, seed=2))  # of two levels
SOURCES = {
    "relaxed": lambda h: RelaxedSample(h, Noise(3), 0.7),
    "posterior": lambda h: PosteriorSample(h, Noise(3)),
    "nearest": lambda h: NearestCodes(h),
    "continuous": lambda h: Continuous(h),
}


# ---------------------------------------------------------------------------------- levels


def test_the_coarsest_level_has_no_prediction_and_projects_its_features():
    level = first_level()
    assert level.predict(None) is None
    torch.testing.assert_close(level.project_in(H[0], None), level.project(H[0]))
    z = features(4, ABOVE, 6)
    assert torch.equal(level.latent(None, z), z)


def test_a_prediction_level_codes_the_error_of_its_prediction():
    """Z̃ = W h − E(state), and E(state) is put back: what Z̃ says, the latent has."""
    level, above = lower_level("prediction"), features(4, ABOVE, 6)
    prediction = level.predict(above)
    torch.testing.assert_close(prediction, level.top_down(above))
    z_e = level.project_in(H[1], prediction)
    torch.testing.assert_close(z_e, level.project(H[1]) - prediction)
    torch.testing.assert_close(level.latent(prediction, z_e), level.project(H[1]))


def test_a_concat_level_sees_state_and_features():
    level, above = lower_level("concat"), features(4, ABOVE, 6).requires_grad_()
    prediction = level.predict(above)
    z_e = level.project_in(H[1], prediction)
    expected = level.project(torch.cat([H[1], prediction], 1))
    torch.testing.assert_close(z_e, expected)
    (seen,) = torch.autograd.grad(z_e.square().sum(), above)
    assert seen.any()
    other = level.project_in(H[1], level.predict(2 * above.detach()))
    assert not torch.allclose(other, z_e)
    torch.testing.assert_close(level.latent(prediction, z_e), prediction + z_e)


def test_a_level_that_is_left_out_passes_its_prediction(levels):
    prediction = levels[1].predict(features(4, ABOVE, 6))
    assert torch.equal(levels[1].latent(prediction, None), prediction)


@pytest.mark.parametrize(("name", "detached"), [("fsq", True), (None, False)])
def test_an_external_quantizer_takes_the_prediction_as_a_constant(name, detached):
    """As the library's residual stacks take the codes before a layer."""
    level = lower_level("prediction")
    if name is not None:
        pytest.importorskip("vector_quantize_pytorch", reason="comes with the extra compare")
        level.quantizer = ResidualQuantizer(DIM, K, 2, ExternalConfig(name=name))
    above = features(4, ABOVE, 6).requires_grad_()
    z_e = level.project_in(H[1], level.predict(above))
    (seen,) = torch.autograd.grad(z_e.sum() + 0 * above.sum(), above)
    assert bool(seen.any()) != detached


@pytest.mark.parametrize("levels", ["two", "three", "hybrid"])
@pytest.mark.parametrize("axes", [1, 2])
def test_the_prediction_of_a_new_model_is_zero(levels, axes):
    """E starts at zero; the upsampled state of a concat level does not, or it would say nothing."""
    space = [4] * axes
    for injection in LOWER_LEVELS:
        config = HQVAEConfig(levels=LEVELS[levels], net=SMALL, axes=axes, injection=injection)
        model = HQVAE(config)
        for above, level in zip(model.levels, model.levels[1:]):
            latent = features(2, above.quantizer.dim, *space)
            assert bool(level.predict(latent).any()) == (injection == "concat")


# ------------------------------------------------------------------------------------ walk


def test_the_walk_carries_one_latent_from_level_to_level(levels):
    """Each level is asked once, coarse to fine, with its prediction from the latent so far."""
    calls, latents = [], []
    source = RelaxedSample(H, Noise(3), 0.7)

    def recorded(index, level, prediction):
        output = source(index, level, prediction)
        latents.append(level.latent(prediction, output.quantized.z))
        calls.append((index, level, prediction))
        return output

    latent, outputs = walk(levels, recorded)
    assert [call[:2] for call in calls] == list(enumerate(levels))
    assert calls[0][2] is None
    torch.testing.assert_close(calls[1][2], levels[1].top_down(latents[0]))
    assert torch.equal(latent, latents[1]) and len(outputs) == 2


@pytest.mark.parametrize("name", SOURCES)
def test_the_latent_is_prediction_and_layers_together(levels, name):
    source = SOURCES[name](H)
    latent, outputs = walk(levels, source)
    coarse, fine = (output.quantized for output in outputs)
    torch.testing.assert_close(coarse.z, sum(coarse.layers))
    prediction = levels[1].top_down(coarse.z)
    torch.testing.assert_close(latent, prediction + sum(fine.layers))
    z_e = levels[1].project_in(H[1], prediction)
    torch.testing.assert_close(outputs[1].z_e, z_e)


def test_a_level_for_which_the_source_has_nothing_is_left_out(levels):
    def coarse_only(index, level, prediction):
        return source(index, level, prediction) if index == 0 else None

    source = NearestCodes(H)
    latent, outputs = walk(levels, coarse_only)
    assert len(outputs) == 1
    assert torch.equal(latent, levels[1].predict(outputs[0].quantized.z))


# --------------------------------------------------------------------------------- sources


def test_levels_draw_from_streams_of_their_own():
    """Two levels with the same features and codebooks take other samples."""
    twins = [first_level(), first_level()]
    drawn = []
    for index, level in enumerate(twins):
        output = RelaxedSample((H[0], H[0]), Noise(3), 0.7)(index, level, None)
        drawn.append(output.quantized.z)
        again = RelaxedSample((H[0], H[0]), Noise(3), 0.7)(index, level, None)
        assert torch.equal(again.quantized.z, output.quantized.z)
    assert not torch.equal(*drawn)


def test_relaxed_samples_are_the_quantizers_own_in_training_and_nearest_codes_in_evaluation(levels):
    level = levels[0]
    output = RelaxedSample(H, Noise(3), 0.7)(0, level, None)
    own = level.quantizer(level.project_in(H[0], None), 0.7, Noise(3).fold(0))
    assert torch.equal(output.quantized.z, own.z)
    for level in levels:
        level.eval()
    relaxed, nearest = (walk(levels, source(H)) for source in (SOURCES["relaxed"], NearestCodes))
    assert torch.equal(relaxed[0], nearest[0])


def test_nearest_codes_are_the_same_in_either_mode(levels):
    in_training, outputs = walk(levels, NearestCodes(H))
    for level in levels:
        level.eval()
    in_evaluation, others = walk(levels, NearestCodes(H))
    assert torch.equal(in_training, in_evaluation)
    for one, other in zip(outputs, others):
        assert torch.equal(one.quantized.codes, other.quantized.codes)


def test_posterior_samples_are_codes(levels):
    latent, outputs = walk(levels, PosteriorSample(H, Noise(3)))
    again, _ = walk(levels, GivenCodes([output.quantized.codes for output in outputs]))
    torch.testing.assert_close(again, latent)


@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_given_codes_of_a_prefix_are_the_mask_over_first_layers(family):
    """In evaluation: both ways to a coarser decode are one."""
    model = build(*family).eval()
    h = model.features(signals())
    latent, outputs = walk(model.levels, RelaxedSample(h, Noise(1)))
    codes = [output.quantized.codes for output in outputs]
    layers = len(model.config.layers)
    for count in range(1, layers + 1):
        kept = (torch.arange(layers) < count).float()
        masked, _ = walk(model.levels, FirstLayers(outputs, kept))
        left, given = count, []
        for of_level in codes:
            if left > 0:
                given.append(of_level[:, :left])
                left -= len(given[-1][0])
        prefix, _ = walk(model.levels, GivenCodes(given))
        torch.testing.assert_close(masked, prefix)
    torch.testing.assert_close(masked, latent)


def test_a_mask_keeps_the_gradients_of_what_it_keeps():
    levels = [first_level(3)]
    h = H[0].clone().requires_grad_()
    _, outputs = walk(levels, RelaxedSample([h], Noise(3), 0.7))
    masked, _ = walk(levels, FirstLayers(outputs, torch.tensor([1.0, 0.0, 0.0])))
    masked.square().sum().backward()
    first, second, _ = levels[0].quantizer.codebooks
    assert h.grad.any() and first.vectors.grad.any()
    assert second.vectors.grad is None or not second.vectors.grad.any()


@pytest.mark.parametrize("wrong", [-1, K])
def test_a_given_code_that_does_not_exist_is_named(levels, wrong):
    with pytest.raises(ValueError, match=f"codes range from {wrong}"):
        walk(levels, GivenCodes([torch.full((2, 1, 6), wrong)]))


def test_continuous_passes_features_and_leaves_residual_layers_nothing(levels):
    latent, outputs = walk(levels, Continuous(H))
    for output in outputs:
        quantized = output.quantized
        assert torch.equal(quantized.z, output.z_e)
        assert torch.equal(quantized.layers[0], output.z_e) and not quantized.layers[1].any()
        assert not quantized.codes.any() and quantized.codes.shape[1] == 2
        assert not quantized.entropy.any() and not quantized.latent_loss.any()
    if isinstance(levels[1], ConcatLevel):
        return
    # Prediction and its error together are the features.
    torch.testing.assert_close(latent, levels[1].project(H[1]))


# ----------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("injection", LOWER_LEVELS)
@pytest.mark.parametrize("names", ["one", "three", "hybrid"])
def test_init_scale_gives_every_levels_features_mean_0_and_variance_1(names, injection, axes):
    config = HQVAEConfig(levels=LEVELS[names], net=SMALL, axes=axes, injection=injection)
    model, x = HQVAE(config), signals(axes=axes)
    model.init_scale(x)
    _, outputs = walk(model.levels, Continuous(model.features(x)))
    for output in outputs:
        positions = [0, *range(2, output.z_e.ndim)]
        mean = output.z_e.mean(positions)
        variance = output.z_e.var(positions, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["first", *LOWER_LEVELS])
def test_features_that_no_scale_fits_are_refused(kind, value):
    level = first_level() if kind == "first" else lower_level(kind)
    before = {name: weight.clone() for name, weight in level.state_dict().items()}
    z_e = torch.full((4, level.quantizer.dim, 6), value)
    with pytest.raises(DegenerateFeatures, match="features of the first batch are constant or not"):
        level.init_scale(z_e)
    assert all(torch.equal(before[name], weight) for name, weight in level.state_dict().items())


def test_no_scale_fits_a_model_that_sees_one_signal_only():
    model = HQVAE(HQVAEConfig(levels=LEVELS["two"], net=SMALL))
    nn.init.zeros_(model.levels[0].project.weight)
    with pytest.raises(DegenerateFeatures, match="constant or not finite"):
        init_scale(model.levels, model.features(signals()))


@pytest.mark.parametrize("injection", LOWER_LEVELS)
@pytest.mark.parametrize("refine", [False, True])
def test_codebooks_start_level_by_level_from_what_is_above(injection, refine):
    """As by hand: a lower level starts on what the started ones above leave it."""
    levels, by_hand = ([first_level(), lower_level(injection)] for _ in range(2))
    h = (features(64, WIDTH, 6), features(64, WIDTH, 12, seed=2))
    init_codebooks(levels, h, Noise(5), refine=refine)
    latent = None
    for index, level in enumerate(by_hand):
        prediction = level.predict(latent)
        z_e = level.project_in(h[index], prediction)
        verb = level.quantizer.refine if refine else level.quantizer.init
        z = verb(z_e, Noise(5).fold(Stream.INIT).fold(index))
        latent = level.latent(prediction, z)
        for one, other in zip(levels[index].quantizer.codebooks, level.quantizer.codebooks):
            assert torch.equal(one.vectors, other.vectors)
