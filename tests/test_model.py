"""Facts about the family: every test goes over all of it, a new system is tested by adding its levels to the list."""

import copy
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import FAMILY, LEVELS, SMALL, build, signals
from pydantic import TypeAdapter

from hqvae.likelihood import FittedGaussian
from hqvae.model import HQVAE, HQVAEConfig, Level
from hqvae.quantize import EMAConfig, Noise, StochasticConfig, StochasticQuantizer
from hqvae.topdown import Injected, State


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


def test_forward_changes_no_state(member):
    before = copy.deepcopy(member.state_dict())
    for mode in (True, False):
        member.train(mode)(signals(), noise=Noise(3))
    assert all(torch.equal(before[name], value) for name, value in member.state_dict().items())
    generator = torch.get_rng_state()
    member.eval()(signals())
    assert torch.equal(generator, torch.get_rng_state())


def test_same_noise_same_objective_other_noise_another(member):
    x = signals()
    one, again, other = (member.train()(x, 0.7, Noise(seed)).loss for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (member.config.quantizer.kind == "ema")


def test_every_parameter_receives_a_finite_gradient(member):
    member.train()(signals(), noise=Noise(1)).loss.backward()
    for name, parameter in member.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0 or "encoder" in name, name


def test_rate_lies_between_zero_and_the_capacity(member):
    out = member.eval()(signals())
    for index, layer in enumerate(member.layers):
        limit = out.codes[index][0].numel() * math.log(layer.quantizer.codebook_size)
        assert (out.entropy[:, index] >= 0).all() and (out.entropy[:, index] <= limit * (1 + 1e-6)).all()


def test_the_objective_is_the_sum_of_its_terms(member):
    """Fit and entropy recomputed here from what was quantized, one quadratic term per level, sums over positions."""
    if member.config.quantizer.kind == "ema":
        pytest.skip("another objective")
    x = signals()
    out = member.train()(x, 1.0, Noise(4))
    distortion = (x - out.reconstruction).square().sum((1, 2, 3))
    assert torch.allclose(out.distortion, distortion, rtol=1e-5)
    expected = x[0].numel() / 2 * torch.log(distortion.mean() / x[0].numel())
    for r in range(len(member.config.levels)):
        mine = [i for i, layer in enumerate(member.layers) if layer.level == r]
        zs = []
        for i in mine:
            quantizer = member.layers[i].quantizer.train()
            zs.append(quantizer(out.z_e[i], 1.0, Noise(4).fold(i)))
            p = torch.softmax(-torch.cdist(out.z_e[i].movedim(1, -1).flatten(1, -2), quantizer.codebook).square() / 2 / out.variance[i], -1)
            entropy = -(p * p.clamp(min=1e-30).log()).sum((1, 2))
            assert torch.allclose(out.entropy[:, i], entropy, rtol=1e-3, atol=1e-3)
            expected = expected - entropy.mean()
        missed = out.z_e[mine[0]] - sum(q.z for q in zs)
        fit = missed.square().sum((1, 2, 3)) / (2 * sum(out.variance[i] for i in mine))
        assert torch.allclose(out.fit[:, r], fit, rtol=1e-4)
        expected = expected + fit.mean()
    assert torch.allclose(out.loss, expected, rtol=1e-4)


def test_residual_layers_quantize_what_is_missed(member):
    out = member.eval()(signals())
    for index, layer in enumerate(member.layers):
        if index and member.layers[index - 1].level == layer.level:
            missed = out.z_e[index - 1] - member.layers[index - 1].quantizer.lookup(out.codes[index - 1])
            assert torch.allclose(out.z_e[index], missed, atol=1e-5)


@pytest.mark.parametrize("levels", ["residual", "hybrid"])
@pytest.mark.parametrize("quantizer", ["stochastic", "ema"])
def test_codes_of_a_level_can_be_the_nearest_together(quantizer, levels):
    """A beam changes what codes are, in every mode and company the same, and nothing of training."""
    alone, x = build(quantizer, levels), signals(16, seed=7)  # others than codebooks started from
    together = build(quantizer, levels, search=8)
    assert torch.equal(alone.train()(x, noise=Noise(1)).loss, together.train()(x, noise=Noise(1)).loss)
    codes, out = together.encode(x), together.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(codes, out.codes))
    assert all(torch.equal(a, b) for a, b in zip(codes, together.encode(x)))
    assert torch.equal(together.decode(codes), out.reconstruction)
    assert all(torch.equal(a[1:2], b) for a, b in zip(codes, together.encode(x[1:2])))

    def missed(model):
        out = model.eval()(x)
        coarse = [i for i, layer in enumerate(model.layers) if layer.level == 0]  # finer levels are asked for other things then
        return (out.z_e[0] - sum(model.layers[i].quantizer.lookup(out.codes[i]) for i in coarse)).square().sum()

    assert missed(together) < missed(alone)


def test_the_bound_of_a_hardened_model_is_of_the_codes_that_are_nearest_together():
    model, x = build("stochastic", "residual", search=8), signals()
    model.harden()
    model.eval()
    assert torch.equal(model.bound(x, Noise(3)).distortion, model(x).distortion)


def test_one_level_one_layer_is_sq_vae():
    """MATHS fact 2: the same numbers as the quantizer put between encoder and decoder by hand."""
    model = build("stochastic", "one").train()
    x, layer = signals(), model.layers[0]
    z_e = layer.to_code(model.encoder(x)[0])
    quantized = layer.quantizer(z_e, 0.5, Noise(9).fold(0))
    x_hat = model.decoder(model.settle.draw(quantized.z))
    distortion = (x - x_hat).square().flatten(1).sum(1)
    fit = (z_e - quantized.z).square().flatten(1).sum(1) / (2 * layer.quantizer.variance)
    loss = FittedGaussian()(distortion, x[0].numel()) + (fit - quantized.entropy).mean()
    assert torch.allclose(model(x, 0.5, Noise(9)).loss, loss, rtol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_permuting_codebooks_changes_nothing_but_the_names(levels):
    """MATHS fact 3, in evaluation mode, where no noise is tied to code numbers."""
    model, x = build("stochastic", levels).eval(), signals()
    before = model(x)
    with torch.no_grad():
        for codebook in {id(layer.quantizer.codebook): layer.quantizer.codebook for layer in model.layers}.values():
            codebook.copy_(codebook[torch.randperm(len(codebook), generator=torch.Generator().manual_seed(1))])
    after = model(x)
    assert torch.allclose(before.loss, after.loss, rtol=1e-5)
    assert torch.allclose(before.reconstruction, after.reconstruction, atol=1e-6)


def test_a_prefix_of_the_layers_ignores_the_rest(member):
    codes = member.eval().encode(signals())
    for count in range(1, len(codes) + 1):
        changed = [*codes[:count], *(torch.zeros_like(c) for c in codes[count:])]
        assert torch.equal(member.decode(codes, count), member.decode(changed, count))
        assert torch.equal(member.decode(codes, count), member.decode(codes[:count], count))


@pytest.mark.parametrize("wrong", [0, 9])
def test_a_wrong_number_of_layers_is_named(wrong):
    model = build("ema", "hybrid").eval()
    with pytest.raises(ValueError, match=f"{wrong} layers"):
        model.decode(model.encode(signals()), wrong)


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"\[4, 1, 16, 16\].*\[B, 3, H, W\]"):
        build("ema", "one")(torch.zeros(4, 1, 16, 16))


@pytest.mark.parametrize("pair", FAMILY, ids="-".join)
def test_one_axis_works_as_two(pair):
    model, x = build(*pair, axes=1), signals(axes=1, size=40)
    out = model.train()(x, noise=Noise(1))
    out.loss.backward()
    model.update(out.z_e, out.codes, Noise(2))
    model.eval()
    assert torch.equal(model.decode(model.encode(x)), model(x).reconstruction)


def test_progressive_objective_adds_a_coarser_reconstruction(member):
    if len(member.layers) == 1:
        pytest.skip("one layer has no prefix")
    x = signals()
    plain = member.train()(x, noise=Noise(3))
    weighed = build_like(member, progressive=0.5).train()(x, noise=Noise(3))
    assert len(plain.sigma2) == 1 and len(weighed.sigma2) == 2
    assert torch.equal(plain.sigma2[0], weighed.sigma2[0])
    size, error = x[0].numel(), weighed.sigma2[1]
    cost = size / 2 * error.log() if member.config.quantizer.kind == "stochastic" else plain.sigma2[0]  # error · σ²/error
    assert torch.allclose(weighed.loss, plain.loss + 0.5 * cost, rtol=1e-4)


def test_what_is_expected_from_above_is_not_asked_for_again():
    """Latents that pass as they are stay what they are, whatever was expected; at first nothing is."""
    torch.manual_seed(0)
    model, x = HQVAE(HQVAEConfig(levels=LEVELS["two"], net=SMALL)), signals()
    injected = model.layers[1]
    assert isinstance(injected, Injected) and injected.expect is not None
    features, above = model.features(x), State(chosen=torch.randn(4, 6, 2, 2))
    assert torch.equal(injected.query(injected.enter(above), features), injected.to_code(features[1]))
    before = model(x, quantized=False).reconstruction
    torch.nn.init.normal_(injected.expect[-1].weight)
    state = injected.enter(above)
    asked = injected.query(state, features)
    assert not torch.allclose(asked, injected.to_code(features[1]), atol=0.1)
    torch.testing.assert_close(injected.absorb(state, asked, asked).latent, injected.to_code(features[1]))
    torch.testing.assert_close(model(x, quantized=False).reconstruction, before)


def build_like(model: HQVAE, **config) -> HQVAE:
    other = HQVAE(HQVAEConfig(**{**model.config.__dict__, **config}))
    other.load_state_dict(model.state_dict())
    return other


def test_saved_and_loaded_is_the_same(member, tmp_path):
    member.save_pretrained(tmp_path)
    loaded, x = HQVAE.from_pretrained(tmp_path), signals()
    assert loaded.config == member.config and not loaded.training
    assert torch.equal(loaded(x).reconstruction, member.eval()(x).reconstruction)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("beta", [0.025, 0.25])
@pytest.mark.parametrize("levels", LEVELS)
def test_a_hardened_model_is_the_deterministic_system_over_the_same_codebooks(levels, beta, tmp_path):
    soft, x = build("stochastic", levels), signals()
    model = build_like(soft, quantizer=replace(soft.config.quantizer, beta=beta))
    began, before, codes = model.config, model.eval()(x).reconstruction, model.encode(x)
    books = len({id(layer.quantizer.codebook) for layer in model.layers})
    model.harden([2.0 + index for index in range(len(model.layers))])
    assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(x))) and torch.equal(before, model(x).reconstruction)
    assert len({id(layer.quantizer) for layer in model.layers}) == books
    assert float(model.layers[0].quantizer.counts.unique()) == 2.0
    assert not model(x).variance.any() and torch.equal(model.bound(x, Noise(1)).distortion, model(x).distortion)

    twin = build_like(model, quantizer=EMAConfig(beta=beta, restart=True))
    ours, theirs = model.train()(x), twin.train()(x)
    assert torch.equal(ours.loss, theirs.loss) and ours.loss.requires_grad
    assert model.update(ours.z_e, ours.codes, Noise(3)) == twin.update(theirs.z_e, theirs.codes, Noise(3))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))

    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": TypeAdapter(HQVAEConfig).dump_python(began, mode="json")}))  # as of a run
    loaded = HQVAE.from_pretrained(tmp_path)
    assert loaded.config == model.config and torch.equal(loaded(x).reconstruction, model.eval()(x).reconstruction)


@pytest.mark.parametrize("levels", LEVELS)
def test_hardened_codebooks_go_to_what_they_are_nearest_to(levels):
    """Layer by layer, on what the layers before leave; a codebook that layers share stays, for it would go to the first one's features."""
    model, x = build("stochastic", levels), signals(32)
    model.scale_from(x)
    model.start_from(x, Noise(1))
    with torch.no_grad():  # no k-means any more, as after some training
        for index, layer in enumerate(model.layers):
            layer.quantizer.codebook.mul_(1.2 + 0.1 * index)
    model.harden()
    model.eval()
    books = [layer.quantizer.codebook for layer in model.layers]
    before, missed = [book.clone() for book in books], model(x).fit.sum()
    model.start_from(x, Noise(1), steps=2)
    for book, old in zip(books, before):
        assert torch.equal(book, old) == (sum(book is other for other in books) > 1)
    if levels != "shared":
        assert model(x).fit.sum() < 0.99 * missed


def test_from_pretrained_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder here, and not to be had from the hub"):
        HQVAE.from_pretrained("runs/nobody-has-this")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        HQVAE.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        HQVAE.from_pretrained(tmp_path)


def test_shared_codebook_is_one_and_variances_are_many():
    model = build("stochastic", "shared")
    assert len({id(layer.quantizer.codebook) for layer in model.layers}) == 1
    assert len({id(layer.quantizer.log_s2) for layer in model.layers}) == 3
    assert len({id(layer.quantizer) for layer in build("restart", "shared").layers}) == 1


def test_start_from_data_gives_unit_features_and_soft_posteriors(member):
    """Every level's features start with variance one, and a stochastic posterior neither one-hot nor uniform."""
    out = member.train()(signals(), noise=Noise(5))
    for index, layer in enumerate(member.layers):
        if index == 0:
            assert torch.allclose(out.z_e[0].var((0, 2, 3), correction=0), torch.ones(layer.quantizer.dim), atol=1e-3)
        if member.config.quantizer.kind == "stochastic":
            share = out.entropy[:, index].mean() / (out.codes[index][0].numel() * math.log(layer.quantizer.codebook_size))
            assert 0.01 < share < 0.99


def toy(levels: tuple[Level, ...]) -> HQVAE:
    torch.manual_seed(3)
    return HQVAE(HQVAEConfig(levels=levels, quantizer=StochasticConfig(), net=SMALL, axes=1, channels=1)).eval()


def taught(model: HQVAE, batch: torch.Tensor, steps: int = 30) -> None:
    """A few steps of training: until then the bound is loose, and says little."""
    model.scale_from(batch)
    model.start_from(batch, Noise(1))
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model(batch, 0.5, Noise(step)).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize(
    "levels", [(Level(4, 1, 3, 2),), (Level(4, 2, 3, 2),), (Level(8, 1, 3, 2), Level(4, 1, 2, 2))], ids=["one", "residual", "injected"]
)
def test_the_bound_is_above_the_exact_negative_log_likelihood(levels):
    """MATHS fact 7: all codes of a toy are summed; the mean of −ELBO over true draws is above, and not absurdly so."""
    model = toy(levels)
    x = torch.linspace(-0.5, 0.5, 8).reshape(1, 1, 8)
    taught(model, torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(0)))
    shapes = [c.shape[1:] for c in model.encode(x)]
    spaces = [itertools.product(range(layer.quantizer.codebook_size), repeat=s.numel()) for layer, s in zip(model.layers, shapes)]
    choices = list(itertools.product(*[list(space) for space in spaces]))
    codes = [torch.tensor([choice[i] for choice in choices]).reshape(-1, *shapes[i]) for i in range(len(shapes))]
    sigma2, size = 0.3, 8
    squares = (x - model.decode(codes)).square().sum((1, 2))
    exact = -torch.logsumexp(-squares / (2 * sigma2) - size / 2 * math.log(2 * math.pi * sigma2), 0) + math.log(len(choices))
    draws = torch.cat([model.bound(x.expand(256, -1, -1), Noise(seed)).nats(sigma2, size) for seed in range(8)])
    error = draws.std() / len(draws) ** 0.5
    assert draws.mean() > exact + 3 * error
    assert draws.mean() < exact + 8


def test_the_bound_of_a_deterministic_model_is_its_rate_and_its_gaussian():
    model, x = build("ema", "hybrid").eval(), signals()
    bound = model.bound(x, Noise(1))
    rate = sum(c[0].numel() * math.log(layer.quantizer.codebook_size) for layer, c in zip(model.layers, model.encode(x)))
    assert torch.allclose(bound.latent, torch.full((4,), rate))
    assert torch.allclose(bound.distortion, (x - model(x).reconstruction).square().flatten(1).sum(1))


def test_summed_not_averaged_over_positions():
    """Failure mode 1: twice the area doubles fit, entropy and distortion; a mean over positions would leave them."""
    model = build("stochastic", "one").eval()
    x = signals(size=16)
    one, four = model(x), model(torch.cat([torch.cat([x, x], 2)] * 2, 3))
    assert 3 < (four.entropy.sum() / one.entropy.sum()).item() < 5
    assert 3 < (four.distortion.sum() / one.distortion.sum()).item() < 5


def test_a_standalone_quantizer_is_the_models_own():
    quantizer = StochasticQuantizer(6, 16).eval()
    model = build("stochastic", "one").eval()
    quantizer.load_state_dict(model.layers[0].quantizer.state_dict())
    out = model(signals())
    assert torch.equal(quantizer(out.z_e[0]).codes, out.codes[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_that_is_cast_as_a_whole_trains(member, dtype):
    model, x = member.to(dtype).train(), signals().to(dtype)
    out = model(x, 0.7, Noise(1))
    out.loss.backward()
    model.update(out.z_e, out.codes, Noise(2))
    assert out.loss.isfinite() and out.reconstruction.dtype == dtype
    assert model.eval()(x).reconstruction.dtype == dtype
