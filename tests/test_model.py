"""Facts about the family: every test goes over all of it, a new system is added to a list."""

import copy
import math

import numpy as np
import pytest
import torch
from training import same

from conftest import FAMILY, LEVELS, STOCHASTIC, build, signals
from hqvae.likelihood import FittedGaussian
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.quantize import GumbelSoftmaxConfig, NearestCodeConfig, Noise, ResidualQuantizer
from hqvae.topdown import PredictionLevel


def is_stochastic(model: HQVAE) -> bool:
    return isinstance(model.config.quantizer, GumbelSoftmaxConfig)


def build_like(model: HQVAE, **config) -> HQVAE:
    other = HQVAE(HQVAEConfig(**{**model.config.__dict__, **config}))
    other.load_state_dict(model.state_dict())
    return other


# ----------------------------------------------------------------------------------- codes


def test_decoded_codes_are_the_reconstruction(member):
    x = signals()
    member.eval()
    assert torch.equal(member.decode(member.encode(x)), member(x).reconstruction)


def test_codes_do_not_depend_on_mode(member):
    x = signals()
    in_training = member.train().encode(x)
    in_evaluation = member.eval().encode(x)
    of_forward = member(x).codes
    for a, b, c in zip(in_training, in_evaluation, of_forward):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_codes_do_not_depend_on_batch_mates(member):
    x = signals(count=6)
    together = member.encode(x)
    alone = [member.encode(x[i : i + 1]) for i in range(6)]
    for layer, codes in enumerate(together):
        assert torch.equal(codes, torch.cat([one[layer] for one in alone]))


@pytest.mark.parametrize(("height", "width"), [(13, 16), (16, 9), (5, 5), (1, 1)])
def test_odd_sizes_are_padded_and_cut_back(member, height, width):
    x = signals(size=32)[..., :height, :width]
    out = member.eval()(x)
    codes = member.encode(x)
    assert out.reconstruction.shape == x.shape
    assert torch.equal(member.decode(codes, size=(height, width)), out.reconstruction)
    padded = torch.nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    if member.stride == 8:
        assert all(torch.equal(a, b) for a, b in zip(codes, member.encode(padded)))


def test_a_prefix_of_the_layers_ignores_the_rest(member):
    codes = member.eval().encode(signals())
    for count in range(1, len(codes) + 1):
        changed = [*codes[:count], *(torch.zeros_like(layer) for layer in codes[count:])]
        of_prefix = member.decode(codes[:count], count)
        assert torch.equal(member.decode(codes, count), member.decode(changed, count))
        assert torch.equal(member.decode(codes, count), of_prefix)


@pytest.mark.parametrize("wrong", [0, 9, -1, True])
def test_a_wrong_number_of_layers_is_named(wrong):
    model = build("ema", "hybrid").eval()
    with pytest.raises(ValueError, match=f"layers={wrong!r}: expected .* 1 to 5"):
        model.decode(model.encode(signals()), wrong)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_codes_of_any_integer_type_are_decoded(dtype, as_numpy):
    model = build("ema", "hybrid").eval()
    codes = model.encode(signals())
    given = [layer.to(dtype) for layer in codes]
    given = [layer.numpy() for layer in given] if as_numpy else given
    assert torch.equal(model.decode(given), model.decode(codes))
    level = model.levels[0].quantizer
    assert torch.equal(level.lookup(codes[0][:, None].to(dtype)), level.lookup(codes[0][:, None]))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_codes_of_numpy_are_decoded(dtype):
    model = build("ema", "hybrid").eval()
    codes = model.encode(signals())
    given = [layer.numpy().astype(dtype) for layer in codes]
    assert torch.equal(model.decode(given), model.decode(codes))


# What is done to the codes [4, 2, 2] × 2 and [4, 4, 4] × 3 of a hybrid, and what is said of it.
WRONG_CODES = {
    "flat": (lambda c: [layer.flatten(1) for layer in c], r"layer 0 .*\[4, 4\].*\[B, H, W\]"),
    "another batch": (lambda c: [c[0], c[1][:1], *c[2:]], r"layer 1 .*\[1, 2, 2\].*\[4, 2, 2\]"),
    "another space": (lambda c: [*c[:3], c[3][:, :1], c[4]], r"layer 3 .*\[4, 1, 4\].*\[4, 4, 4\]"),
    "space of one": (
        lambda c: [*c[:3], c[3][:, :1, :1], c[4]],
        r"layer 3 .*\[4, 1, 1\].*\[4, 4, 4\]",
    ),
    "levels swapped": (lambda c: c[::-1], r"layer 2 .*\[4, 4, 4\].*\[4, 8, 8\]"),
    "floats": (lambda c: [layer.float() for layer in c], "layer 0 .*float32.*integers"),
    "numpy floats": (lambda c: [layer.float().numpy() for layer in c], "float32.*integers"),
    "truth values": (lambda c: [layer > 0 for layer in c], "bool.*integers"),
    "lists": (lambda c: [layer.tolist() for layer in c], "list.*integers"),
    "no space": (lambda c: [layer[:, :0] for layer in c], r"\[4, 0, 2\].*no side of them 0"),
    "one array": (lambda c: torch.stack(c[:2], 1), r"one array of shape \[4, 2, 2, 2\].*list of 5"),
    "too few": (lambda c: c[:3], "codes of 3 layers; expected 5"),
    "too many": (lambda c: [*c, c[0]], "codes of 6 layers; expected 5"),
    "outside the codebook": (lambda c: [layer + 1000 for layer in c], "codes range from 1"),
    "below it": (lambda c: [layer - 1000 for layer in c], "codes range from -"),
}


@pytest.mark.parametrize("wrong", WRONG_CODES)
def test_codes_that_fit_no_signal_are_refused_with_both_shapes(wrong):
    model = build("ema", "hybrid").eval()
    change, says = WRONG_CODES[wrong]
    with pytest.raises(ValueError, match=says):
        model.decode(change(model.encode(signals())))


@pytest.mark.parametrize("size", [(17, 16), (0, 16), (-1, 16), (16,), (16, 16, 16), (True, 16)])
def test_a_size_that_the_codes_cannot_have_is_refused(size):
    model = build("ema", "hybrid").eval()
    codes = model.encode(signals())
    with pytest.raises(ValueError, match=r"size=.*2 whole number\(s\).*\[16, 16\]"):
        model.decode(codes, size=size)
    assert model.decode(codes, size=(9, 16)).shape[2:] == (9, 16)
    numbers = np.array([9, 16])
    assert model.decode(codes, np.int64(2), tuple(numbers)).shape[2:] == (9, 16)


@pytest.mark.parametrize(("axes", "space"), [(2, r"H, W"), (1, "T")])
def test_wrong_channels_are_named(axes, space):
    shape = [4, 1, *[16] * axes]
    with pytest.raises(ValueError, match=rf"\[4, 1, 16.*\[B, 3, {space}\]"):
        build("ema", "one", axes=axes)(torch.zeros(shape))


@pytest.mark.parametrize("levels", ["residual", "hybrid"])
@pytest.mark.parametrize("quantizer", ["stochastic", "ema"])
def test_codes_of_a_level_can_be_searched_together(quantizer, levels):
    """A beam changes what codes are, the same in every mode, and nothing of training."""
    x = signals(16, seed=7)  # others than codebooks started from
    alone, together = build(quantizer, levels), build(quantizer, levels, beam_size=8)
    losses = [model.train()(x, noise=Noise(1)).loss for model in (alone, together)]
    assert torch.equal(*losses)
    codes, out = together.encode(x), together.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(codes, out.codes))
    assert torch.equal(together.decode(codes), out.reconstruction)
    assert all(torch.equal(a[1:2], b) for a, b in zip(codes, together.encode(x[1:2])))
    first = [model.eval()(x).latent_loss[:, 0].sum() for model in (alone, together)]
    if quantizer == "stochastic":  # the commitment of partial sums may grow
        assert first[1] < first[0]


# ------------------------------------------------------------------------------- objective


def test_forward_changes_no_state(member):
    before = copy.deepcopy(member.state_dict())
    for mode in (True, False):
        member.train(mode)(signals(), noise=Noise(3))
    after = member.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    generator = torch.get_rng_state()
    member.eval()(signals())
    assert torch.equal(generator, torch.get_rng_state())


def test_same_noise_same_objective_other_noise_another(member):
    x = signals()
    one, again, other = (member.train()(x, 0.7, Noise(seed)).loss for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, other) != is_stochastic(member)


def test_every_parameter_receives_a_finite_gradient(member):
    member.train()(signals(), noise=Noise(1)).loss.backward()
    for name, parameter in member.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith("vectors") and not is_stochastic(member)
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0 or "encoder" in name, name


def test_rate_lies_between_zero_and_the_capacity(member):
    out = member.eval()(signals())
    for index, place in enumerate(member.config.layers):
        limit = out.codes[index][0].numel() * math.log(place.codebook_size)
        entropy = out.entropy[:, index]
        assert (entropy >= 0).all() and (entropy <= limit * (1 + 1e-6)).all()


def test_the_objective_is_the_sum_of_its_terms(member):
    """Recomputed here from what was quantized: one quadratic term per level, sums of positions."""
    if not is_stochastic(member):
        pytest.skip("another objective")
    x = signals()
    out = member.train()(x, 1.0, Noise(4))
    distortion = (x - out.reconstruction).square().sum((1, 2, 3))
    torch.testing.assert_close(out.distortion, distortion)
    size = x[0].numel()
    expected = size / 2 * torch.log(distortion.mean() / size)
    layer = 0
    for r, level in enumerate(member.levels):
        quantized = level.quantizer(out.z_e[r], 1.0, Noise(4).fold(r))
        residual, s2 = out.z_e[r], level.quantizer.posterior.variance
        for codebook, z, variance in zip(level.quantizer.codebooks, quantized.layers, s2):
            rows = residual.movedim(1, -1).flatten(1, -2)
            square = torch.cdist(rows, codebook.vectors.expand(len(rows), -1, -1)).square()
            p = torch.softmax(-square / 2 / variance, -1)
            entropy = -(p * p.clamp(min=1e-30).log()).sum((1, 2))
            assert torch.allclose(out.entropy[:, layer], entropy, rtol=1e-3, atol=1e-3)
            expected = expected - entropy.mean()
            residual = residual - z
            layer += 1
        latent_loss = residual.square().sum((1, 2, 3)) / (2 * s2.sum())
        assert torch.allclose(out.latent_loss[:, r], latent_loss, rtol=1e-4)
        expected = expected + latent_loss.mean()
    assert torch.allclose(out.loss, expected, rtol=1e-4)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradients_of_a_deterministic_system_are_those_of_its_paper_times_a_scalar(levels):
    """Gaussian with fitted σ²: (D/2σ²) · ∇[mean squared error + commitment], σ² held."""
    ours, x = build("ema", levels), signals()
    paper = build_like(ours, likelihood="mse")
    gradients = []
    for model in (ours, paper):
        out = model.train()(x)
        out.loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    scale = x[0].numel() / (2 * out.sigma2[0, 0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, scale * other, rtol=1e-3, atol=1e-4 * float(scale))


@pytest.mark.parametrize("quantizer", ["ema", "stochastic"])
def test_a_running_mean_of_the_variance_weighs_the_gradient_of_a_batch(quantizer):
    """∇‖x − x̂‖²/2σ̄² for ∇‖x − x̂‖²/2σ²: a third of it where σ̄² is 3σ², and the same loss.

    A commitment goes with the reconstruction; latent terms in nats stay.
    """
    model, x = build(quantizer, "hybrid", progressive=0.5).train(), signals()

    def gradients(mean_sigma2):
        model.zero_grad()
        out = model(x, 0.5, Noise(9), mean_sigma2=mean_sigma2)
        out.loss.backward()
        return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, own = gradients(None)
    unknown, none_yet = gradients(torch.zeros(()))
    weighed, third = gradients(3 * plain.sigma2[0, 0])
    assert unknown.loss == plain.loss == weighed.loss and same(own, none_yet)
    assert torch.equal(plain.sigma2, weighed.sigma2)
    decoder = [name for name in own if name.startswith("decoder") or quantizer == "ema"]
    for name in decoder:
        torch.testing.assert_close(third[name], own[name] / 3, rtol=1e-3, atol=1e-4)
    if quantizer == "stochastic":
        scalars = [name for name in own if name.endswith("theta")]
        assert scalars and not any(torch.allclose(third[n], own[n] / 3) for n in scalars)


def test_one_level_one_layer_is_sq_vae():
    """MATHS fact 2: the same numbers as the quantizer put between encoder and decoder by hand."""
    model = build("stochastic", "one").train()
    x, level = signals(), model.levels[0]
    z_e = level.project(model.encoder(x)[0])
    quantized = level.quantizer(z_e, 0.5, Noise(9).fold(0))
    x_hat = model.decoder(quantized.z)
    distortion = (x - x_hat).square().flatten(1).sum(1)
    square = (z_e - quantized.z).square().flatten(1).sum(1)
    latent_loss = square / (2 * level.quantizer.posterior.variance[0])
    size = x[0].numel()
    cost = FittedGaussian().cost(distortion, size, distortion.detach().mean() / size)
    loss = cost + (latent_loss - quantized.entropy[:, 0]).mean()
    assert torch.allclose(model(x, 0.5, Noise(9)).loss, loss, rtol=1e-6)


@pytest.mark.parametrize("quantizer", STOCHASTIC)
@pytest.mark.parametrize("levels", LEVELS)
def test_permuting_codebooks_changes_nothing_but_the_names(quantizer, levels):
    """MATHS fact 3, in evaluation mode, where no noise is tied to code numbers."""
    model, x = build(quantizer, levels).eval(), signals()
    before = model(x)
    with torch.no_grad():
        for level in model.levels:
            for codebook in set(level.quantizer.codebooks):
                order = torch.randperm(codebook.codebook_size)
                codebook.vectors.copy_(codebook.vectors[order])
    after = model(x)
    assert torch.allclose(before.loss, after.loss, rtol=1e-5)
    assert torch.allclose(before.reconstruction, after.reconstruction, atol=1e-6)


@pytest.mark.parametrize("pair", FAMILY, ids="-".join)
def test_one_axis_works_as_two(pair):
    model, x = build(*pair, axes=1), signals(axes=1, size=40)
    out = model.train()(x, noise=Noise(1))
    out.loss.backward()
    model.update_codebooks(out.z_e, out.codes, Noise(2))
    model.eval()
    assert torch.equal(model.decode(model.encode(x)), model(x).reconstruction)


@pytest.mark.parametrize("prefixes", ["random", "all"])
def test_the_progressive_term_adds_coarser_reconstructions(member, prefixes):
    layers = len(member.config.layers)
    if layers == 1:
        pytest.skip("one layer has no prefix")
    x = signals()
    plain = member.train()(x, noise=Noise(3))
    weighed = build_like(member, progressive=0.5, prefixes=prefixes).train()(x, noise=Noise(3))
    count = 1 if prefixes == "random" else layers - 1
    assert plain.sigma2.shape == (1, 1) and weighed.sigma2.shape == (1 + count, 1)
    assert torch.equal(plain.sigma2[0], weighed.sigma2[0])
    cost = (x[0].numel() / 2 * weighed.sigma2[1:, 0].log()).sum()
    assert torch.allclose(weighed.loss, plain.loss + 0.5 * cost, rtol=1e-4)


def test_all_prefixes_are_the_decodings_of_the_first_layers():
    """By nearest codes they are what `decode` gives from 1, 2 … L − 1 layers."""
    model, x = build("ema", "hybrid", progressive=1.0, prefixes="all"), signals()
    out = model.train()(x)
    codes = model.encode(x)
    for count in range(1, len(codes)):
        error = (x - model.decode(codes, count)).square().mean()
        torch.testing.assert_close(out.sigma2[count, 0], error, rtol=1e-4, atol=1e-6)


def test_without_quantization_the_finest_level_passes_as_it_is():
    """Whatever the levels above predict, for the latent is prediction and error together."""
    model, x = build("stochastic", "two"), signals()
    before = model(x, quantize=False)
    assert not before.latent_loss.any() and not before.entropy.any()
    level = model.levels[1]
    assert isinstance(level, PredictionLevel)
    torch.nn.init.normal_(level.top_down.last.weight, std=1.0)
    after = model(x, quantize=False)
    torch.testing.assert_close(after.reconstruction, before.reconstruction, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after.z_e[1], before.z_e[1], atol=0.1)


# ------------------------------------------------------------------------ phases, on disk


def test_saved_and_loaded_is_the_same(member, tmp_path):
    member.save_pretrained(tmp_path)
    loaded, x = HQVAE.from_pretrained(tmp_path), signals()
    assert loaded.config == member.config and not loaded.training
    assert torch.equal(loaded(x).reconstruction, member.eval()(x).reconstruction)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("quantizer", STOCHASTIC)
@pytest.mark.parametrize("levels", LEVELS)
def test_nearest_codes_replace_the_posterior_and_nothing_else(quantizer, levels, tmp_path):
    model, x = build(quantizer, levels), signals()
    config, before, codes = model.config, model.eval()(x).reconstruction, model.encode(x)
    decoder = id(model.decoder)
    model.use_nearest()
    assert model.config is config and id(model.decoder) == decoder
    assert model.posterior == "nearest_code"
    assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(x)))
    assert torch.equal(before, model(x).reconstruction) and not model(x).variance.any()
    sample = model.elbo_sample(x, Noise(1))
    assert torch.equal(sample.distortion, model(x).distortion)

    beta = 0.25 if levels == "one" else 0.025
    twin = build_like(model, quantizer=NearestCodeConfig(beta=beta, restart=True))
    ours, theirs = model.train()(x), twin.train()(x)
    assert torch.equal(ours.loss, theirs.loss) and ours.loss.requires_grad
    restarts = [m.update_codebooks(ours.z_e, ours.codes, Noise(3)) for m in (model, twin)]
    assert restarts[0] == restarts[1]
    pairs = zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    model.save_pretrained(tmp_path)
    loaded = HQVAE.from_pretrained(tmp_path)
    assert loaded.config == config and loaded.posterior == "nearest_code"
    assert torch.equal(loaded(x).reconstruction, model.eval()(x).reconstruction)


def test_from_pretrained_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder here, and not to be had from"):
        HQVAE.from_pretrained("runs/nobody-has-this")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        HQVAE.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        HQVAE.from_pretrained(tmp_path)


def test_kmeans_init_gives_unit_features_and_soft_posteriors(member):
    """The first level's features have variance one; a posterior is neither one-hot nor uniform."""
    out = member.train()(signals(), noise=Noise(5))
    variance = out.z_e[0].var((0, 2, 3), correction=0)
    assert torch.allclose(variance, torch.ones(len(variance)), atol=1e-3)
    if member.config.quantizer == GumbelSoftmaxConfig():
        for index, place in enumerate(member.config.layers):
            limit = out.codes[index][0].numel() * math.log(place.codebook_size)
            assert 0.01 < out.entropy[:, index].mean() / limit < 0.99


def test_summed_not_averaged_over_positions():
    """Failure mode 1: twice the area doubles latent loss, entropy and distortion."""
    model = build("stochastic", "one").eval()
    x = signals(size=16)
    one, four = model(x), model(torch.cat([torch.cat([x, x], 2)] * 2, 3))
    for name in ("entropy", "distortion", "latent_loss"):
        ratio = getattr(four, name).sum() / getattr(one, name).sum()
        assert 3 < ratio.item() < 7  # 4, but for what the seams change


def test_a_standalone_quantizer_is_the_models_own():
    quantizer = ResidualQuantizer(6, 16, layers=3).eval()
    model = build("stochastic", "residual").eval()
    quantizer.load_state_dict(model.levels[0].quantizer.state_dict())
    out = model(signals())
    codes = quantizer(out.z_e[0]).codes
    assert all(torch.equal(codes[:, layer], out.codes[layer]) for layer in range(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_that_is_cast_as_a_whole_trains(member, dtype):
    model, x = member.to(dtype).train(), signals().to(dtype)
    out = model(x, 0.7, Noise(1))
    out.loss.backward()
    model.update_codebooks(out.z_e, out.codes, Noise(2))
    assert out.loss.isfinite() and out.reconstruction.dtype == dtype
    assert model.eval()(x).reconstruction.dtype == dtype
