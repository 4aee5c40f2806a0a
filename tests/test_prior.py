"""A learned prior: Bayes' rule, what it costs, and what codes pay for their bits."""

import copy
import itertools
import json
import math

import pytest
import torch
from training import tiny, trained

from conftest import build, signals
from hqvae.cli import main
from hqvae.data import open_data, sequential_batches
from hqvae.errors import InputError
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig, fit_prior, learned_priors
from hqvae.overrides import override
from hqvae.quantize import (
    RATE_WEIGHTS,
    ExternalConfig,
    LearnedPrior,
    NearestCodeConfig,
    Noise,
    ResidualQuantizer,
    flatten_positions,
)
from hqvae.tokenizer import Tokenizer
from hqvae.tokens import TokenDataset

DIM, SIZE, LAYERS = 4, 6, 3


def uneven(weight: float = 1.0, layers: int = LAYERS) -> LearnedPrior:
    prior = LearnedPrior(layers, SIZE, weight)
    logits = torch.empty_like(prior.counts)
    prior.counts = 100 * logits.normal_(std=2, generator=torch.Generator().manual_seed(1)).exp()
    return prior


def stack(prior: LearnedPrior | None, beam_size: int = 1, layers: int = LAYERS):
    torch.manual_seed(0)
    return ResidualQuantizer(DIM, SIZE, layers, beam_size=beam_size, prior=prior)


def latents(count: int = 5) -> torch.Tensor:
    return torch.randn(2, DIM, count, generator=torch.Generator().manual_seed(2))


def posterior_of(quantizer, z, weight):
    """P̂(b_k | z̃) of the first layer, as the formula reads."""
    rows, vectors = flatten_positions(z), quantizer.codebooks[0].vectors
    squares = (rows[:, None] - vectors).square().sum(2)
    s2 = quantizer.posterior.variance[0]
    nats = quantizer.posterior.prior.nats(0)
    return (-squares / (2 * s2) - weight * nats).softmax(1).view(2, -1, SIZE)


# ------------------------------------------------------------------------- samples


def test_a_uniform_prior_is_the_special_case():
    z, noise = latents(), Noise(4)
    ours = stack(LearnedPrior(LAYERS, SIZE))(z, 0.5, noise)
    without = stack(None)(z, 0.5, noise)
    assert torch.allclose(ours.z, without.z, atol=1e-5)
    assert torch.equal(ours.codes, without.codes) and without.rate is None
    assert torch.allclose(ours.entropy, without.entropy, atol=1e-5)
    uniform = torch.full_like(ours.rate, 5 * math.log(SIZE))
    assert torch.allclose(ours.rate, uniform, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_the_posterior_is_bayes_rule(weight):
    quantizer, z = stack(uneven(weight)), latents()
    exact = posterior_of(quantizer, z, weight)
    entropy = -(exact * exact.log()).sum((1, 2))
    assert torch.allclose(quantizer(z).entropy[:, 0], entropy, rtol=1e-4)
    assert torch.equal(quantizer(z).codes[:, 0], exact.argmax(2))
    posterior, codebook = quantizer.posterior, quantizer.codebooks[0]
    draws = posterior.sample(0, z.repeat(2000, 1, 1), codebook, Noise(1)).codes.view(2000, 2, -1)
    shares = torch.stack([(draws == k).float().mean(0) for k in range(SIZE)], 2)
    assert torch.allclose(shares, exact, atol=0.05)


def test_the_rate_of_relaxed_samples_has_the_posteriors_mean():
    quantizer, z = stack(uneven()), latents()
    exact = (posterior_of(quantizer, z, 1) * quantizer.posterior.prior.nats(0)).sum((1, 2))
    draws = quantizer(z.repeat(1500, 1, 1), 0.05, Noise(1)).rate[:, 0].view(1500, 2).detach()
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()


def test_gradients_are_those_of_the_formula():
    """Of H(P̂) in z̃, s² and codes; the two dimensions that are added have no other say."""
    quantizer, z = stack(uneven(layers=1), layers=1), latents().requires_grad_()
    wanted = [z, quantizer.posterior.theta, quantizer.codebooks[0].vectors]
    exact = posterior_of(quantizer, z, 1)
    expected = torch.autograd.grad(-(exact * exact.log()).sum(), wanted)
    found = torch.autograd.grad(quantizer(z).entropy.sum(), wanted)
    for name, ours, theirs in zip(["z", "s2", "codes", "prior"], found, expected):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), name


# -------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_codes_pay_for_their_bits(weight):
    """A wide beam finds the least ‖z̃ − ΣZ‖² + 2s² w Σ(−log p) of all sums."""
    quantizer, z = stack(uneven(), beam_size=SIZE**LAYERS), latents()
    quantizer.use_nearest()
    quantizer.posterior.prior.s2.fill_(0.4)
    prior = quantizer.posterior.prior
    sums = list(itertools.product(range(SIZE), repeat=LAYERS))
    vectors = torch.stack([c.vectors for c in quantizer.codebooks])
    total = torch.stack([sum(vectors[i][k] for i, k in enumerate(codes)) for codes in sums])
    nats = torch.stack([sum(prior.nats(i)[k] for i, k in enumerate(codes)) for codes in sums])
    cost = (flatten_positions(z)[:, None] - total).square().sum(2) + 2 * 0.4 * weight * nats
    best = torch.tensor(sums)[cost.argmin(1)].view(2, -1, LAYERS).movedim(2, 1)
    assert torch.equal(quantizer.encode(z, rate_weight=weight), best)


def test_layer_by_layer_they_pay_too():
    prior = uneven(layers=1)
    quantizer, z = stack(prior, layers=1), latents(50)
    s2 = float(quantizer.posterior.variance.detach().sum())
    squares = (flatten_positions(z)[:, None] - quantizer.codebooks[0].vectors).square().sum(2)
    best = (squares + 2 * s2 * prior.nats(0)).argmin(1).view(2, 1, -1)
    assert torch.equal(quantizer.encode(z), best)
    free = squares.argmin(1).view(2, 1, -1)
    assert torch.equal(quantizer.encode(z, rate_weight=0.0), free) and not torch.equal(free, best)


@pytest.mark.parametrize("kind", ["stochastic", "ema"])
def test_the_more_bits_cost_the_fewer_there_are(kind):
    model = build(kind, "hybrid", prior="learned", rate_weight=1.0, beam_size=4).eval()
    x = signals(count=16)
    model.init_codebooks(x, Noise(1))
    model.use_nearest()
    paid = []
    for weight in (0.0, 1.0, 100.0, 1e4):
        codes = model.encode(x, rate_weight=weight)
        layers = iter(codes)
        priors = [(level.quantizer.posterior.prior, level) for level in model.levels]
        pairs = [(p, i, next(layers)) for p, level in priors for i in range(len(p.counts))]
        paid.append(sum(float(p.rate(i, own).detach().sum()) for p, i, own in pairs))
    assert paid[0] > paid[1] > paid[2] >= paid[3]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("phase", ["samples", "nearest codes"])
def test_evaluation_takes_the_codes_of_encode(beam_size, phase):
    model = build(
        "stochastic", "hybrid", prior="learned", rate_weight=1.0, beam_size=beam_size
    ).eval()
    if phase == "nearest codes":
        model.use_nearest()
    x = signals()
    losses = model(x)
    assert all(map(torch.equal, losses.codes, model.encode(x)))
    assert torch.equal(losses.reconstruction, model.decode(losses.codes))
    assert losses.rate.shape == losses.entropy.shape


def test_candidates_pay_as_codes_do():
    quantizer, z = stack(uneven(), beam_size=8), latents(20)
    codes, errors = quantizer.candidates(z, 8)
    assert torch.equal(codes[:, 0], quantizer.encode(z))
    assert (errors.diff(dim=1) >= 0).all()


# --------------------------------------------------------------------------- learning


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("phase", ["samples", "nearest codes"])
def test_it_moves_to_how_often_codes_are_drawn_whatever_it_weighs(phase, weight):
    """A hundredth of the way at every step; the first layer's P̂ is that of the exact formula."""
    quantizer, z = stack(uneven(weight)).train(), latents(500)
    if phase == "nearest codes":
        quantizer.use_nearest()
    prior = quantizer.posterior.prior
    before = prior.counts.clone()
    codes = quantizer(z, 0.5, Noise(3)).codes
    expected = prior.count(codes)[0]
    if phase == "samples":
        expected = posterior_of(quantizer, z, weight).sum((0, 1))
    quantizer.update(z, codes, Noise(5))
    moved = (prior.counts - 0.99 * before)[0] * 100
    assert float(moved.sum()) == pytest.approx(1000, rel=1e-3)
    assert torch.allclose(moved, expected, atol=0 if phase == "samples" else 0.1, rtol=0.3)


def test_features_feel_it_where_codes_pay():
    rates = {}
    for weight in (0.0, 1.0):
        z = latents().requires_grad_()
        rates[weight] = stack(uneven(weight))(z, 0.5, Noise(1)).rate[:, 0].sum()
    assert not rates[0.0].requires_grad and torch.autograd.grad(rates[1.0], z)[0].any()


@pytest.mark.parametrize("kind", ["stochastic", "ema"])
def test_one_that_nothing_pays_leaves_training_as_it_is(kind):
    """Bit by bit: the same gradients, codes and codebooks as with a uniform prior."""
    found = []
    for settings in ({}, {"prior": "learned"}):
        model = build(kind, "residual", **settings).train()
        losses = model(signals(), 0.5, Noise(3))
        losses.loss.backward()
        model.update_codebooks(losses.z_e, losses.codes, Noise(4))
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([*losses.codes, *gradients, model.levels[0].quantizer.codebooks[1].vectors])
    assert all(map(torch.equal, *found))


def test_it_starts_at_the_share_of_every_code_and_the_error():
    quantizer, z = stack(LearnedPrior(LAYERS, SIZE, weight=0.0)), latents(500)
    quantizer.use_nearest()
    quantizer.init(z, Noise(1))
    out = quantizer.eval()(z)
    prior = quantizer.posterior.prior
    assert float(prior.s2) == pytest.approx(float((z - out.z).square().mean()), rel=0.2)
    shares = (-prior.nats(0)).exp().detach()
    counts = torch.bincount(out.codes[:, 0].flatten(), minlength=SIZE)
    assert torch.allclose(shares, counts / counts.sum(), atol=0.01)
    before = float(prior.s2)
    missed = z - quantizer.lookup(torch.zeros_like(out.codes))
    quantizer.update(z, torch.zeros_like(out.codes), Noise(1))
    moved = 0.99 * before + 0.01 * float(missed.square().mean())
    assert float(prior.s2) == pytest.approx(moved, rel=1e-3)


def test_models_of_any_precision_track_it():
    for dtype in (torch.float64, torch.bfloat16):
        model = build("stochastic", "residual", prior="learned").train().to(dtype)
        losses = model(signals().to(dtype), 0.5, Noise(3))
        model.update_codebooks(losses.z_e, losses.codes, Noise(4))
        assert learned_priors(model)[0].counts.dtype == dtype


def test_it_goes_on_into_the_nearest_code_phase():
    quantizer = stack(uneven())
    prior, variance = quantizer.posterior.prior, quantizer.posterior.variance.detach().sum()
    quantizer.use_nearest()
    assert quantizer.posterior.prior is prior and torch.allclose(prior.s2, variance)
    assert not quantizer.posterior.config.restart
    free = stack(uneven(weight=0.0))
    free.use_nearest()
    assert free.posterior.config.restart


# ------------------------------------------------------------------------- other weights


@pytest.fixture(scope="module")
def fitted():
    """(a model before its fit, the same after it, the signals)"""
    model = build("stochastic", "hybrid", prior="learned", rate_weight=1.0, beam_size=4).eval()
    x = signals(count=64)
    model.init_codebooks(x, Noise(1))
    model.use_nearest()
    before = copy.deepcopy(model)
    fit_prior(model, x, at_once=16)
    return before, model, x


def nats_of(model, codes, weight):
    """−log p of all codes, of every layer."""
    priors = learned_priors(model)
    tables = [prior.nats(i, weight) for prior in priors for i in range(len(prior.counts))]
    return [float(nats[own].sum()) for nats, own in zip(tables, codes)]


@pytest.mark.parametrize("weight", [0.0, *RATE_WEIGHTS, 3.0, 1000.0])
def test_a_fit_takes_fewer_bits(fitted, weight):
    """By a code of the prior's lengths; on the items of the fit nearly the entropy itself."""
    before, model, x = fitted
    codes = model.encode(x, rate_weight=weight)
    bits = sum(nats_of(model, codes, weight))
    assert bits < sum(nats_of(before, before.encode(x, rate_weight=weight), weight))
    if weight == 0:
        shares = [torch.bincount(own.flatten(), minlength=16) / own.numel() for own in codes]
        entropy = sum(
            float(torch.special.entr(p).sum()) * own.numel() for p, own in zip(shares, codes)
        )
        assert entropy < bits < 1.05 * entropy


def test_a_fit_changes_nothing_but_the_prior(fitted):
    before, model, x = fitted
    old, new = before.state_dict(), model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.split("posterior.")[-1] for name in changed} == {"prior.shifts"}
    losses = [m.train()(x, 0.5, Noise(3)).loss for m in (before, model)]
    before.eval(), model.eval()
    assert torch.equal(*losses)
    for weight in (None, 0.0, 1.0):  # its own
        codes = [m.encode(x, rate_weight=weight) for m in (before, model)]
        assert all(map(torch.equal, *codes))


def test_a_fit_leaves_networks_of_ones_own_as_they_are():
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5)
    )
    decoder = torch.nn.ConvTranspose2d(4, 3, 4, 4)
    level = LevelConfig(stride=4, codebook_size=16, dim=4)
    config = HQVAEConfig(levels=(level,), prior="learned")
    model = HQVAE(config, encoder, decoder).train()
    before = copy.deepcopy(model.encoder.state_dict())
    fit_prior(model, torch.rand(8, 3, 16, 16))
    assert model.training and encoder.training
    assert all(map(torch.equal, before.values(), model.encoder.state_dict().values()))
    with pytest.raises(ValueError, match="no signals; expected some to fit a prior to"):
        fit_prior(model, torch.rand(0, 3, 16, 16))


def test_between_weights_it_is_between_their_priors(fitted):
    prior = learned_priors(fitted[1])[0]
    low, between, high = (-prior.nats(0, weight) for weight in (2.0, 3.0, 4.0))
    share = (math.log1p(3) - math.log1p(2)) / (math.log1p(4) - math.log1p(2))
    assert torch.allclose(between, torch.lerp(low, high, share).log_softmax(0), atol=1e-5)
    assert torch.equal(prior.nats(0, 64.0), prior.nats(0, 1e6))  # beyond them the last one's
    assert not torch.equal(prior.nats(0), prior.nats(0, 1.0))  # of draws, and of what is encoded


def test_without_a_fit_every_weight_has_the_same_prior():
    prior = uneven()
    assert all(torch.allclose(prior.nats(1, weight), prior.nats(1)) for weight in (0.0, 0.7, 9.0))
    with pytest.raises(ValueError, match="a rate weight of 3; expected one of"):
        prior.fit(3.0, prior.counts)


def test_a_uniform_prior_has_no_fit():
    model = build("stochastic", "residual")
    before = copy.deepcopy(model.state_dict())
    fit_prior(model, signals())
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


# ------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def run(image_file, tmp_path_factory):
    config = tiny("rsqvae", image_file)
    return trained(
        override(config, ["model.prior=learned", "model.rate_weight=1"]),
        tmp_path_factory.mktemp("run"),
    )


def test_a_run_is_measured_at_several_weights(run, capsys):
    words = ["evaluate", str(run.path), "--rate-weight", "0", "--rate-weight", "2"]
    assert main(words) == 0
    assert "error against the codes' entropy" in capsys.readouterr().out
    report = json.loads((run.path / "report" / "report.json").read_text())
    free, dear = report["rates"]
    assert (free["rate_weight"], dear["rate_weight"]) == (0, 2)
    assert free["bits_per_point"] > dear["bits_per_point"] > 0 and free["rmse"] > 0
    assert len(free["entropy_bits"]) == 4
    # A coder with the model's own prior takes more than one with the histogram itself.
    assert all(point["prior_bits_per_point"] > point["bits_per_point"] for point in (free, dear))


def test_a_run_encodes_at_any_rate(run, tmp_path, capsys):
    words = ["encode", str(run.path), "--split", "test", "--out", str(tmp_path / "tokens")]
    assert main([*words, "--rate-weight", "8"]) == 0
    found = TokenDataset(tmp_path / "tokens", "test")
    data = open_data(run.config.data, 3, ("test",), 2)[1]["test"]
    (raw,) = sequential_batches(data, len(data))
    model = run.load_model()
    expected = Tokenizer(model, rate_weight=8.0).encode_signals(list(data.signal(raw)))
    free = Tokenizer(model).encode_signals(list(data.signal(raw)))
    for item, paid in zip(found, expected):
        assert all(map(torch.equal, item["tokens"], paid.codes))
    pairs = [(a, b) for one, two in zip(expected, free) for a, b in zip(one.codes, two.codes)]
    assert not all(torch.equal(a, b) for a, b in pairs)
    capsys.readouterr()
    assert main([*words, "--rate-weight", "2"]) == 2
    assert "holds tokens at another rate (rate_weight)" in capsys.readouterr().err
    assert main([*words, "--rate-weight=-2"]) == 2
    assert "rate_weight=-2: expected a number from 0 up" in capsys.readouterr().err


def test_it_comes_back_from_disk(run):
    model = HQVAE.from_pretrained(run.path)
    x = signals()
    again = run.load_model()
    prior = learned_priors(model)[0]
    assert float(prior.s2) < 1 and prior.shifts.any()  # the end of training fits it
    assert all(map(torch.equal, model.encode(x), again.encode(x)))


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_a_weight_below_zero_is_refused(run, weight, capsys):
    assert main(["evaluate", str(run.path), f"--rate-weight={weight}"]) == 2
    assert "expected a number from 0 up" in capsys.readouterr().err


def test_weights_of_a_uniform_prior_are_refused(image_file, tmp_path, capsys):
    config = override(tiny("rsqvae", image_file), ["model.prior=uniform"])
    run = trained(config, tmp_path)
    assert main(["evaluate", str(run.path), "--rate-weight", "1"]) == 2
    assert "is uniform, so all codes have as many bits" in capsys.readouterr().err
    words = ["encode", str(run.path), "--out", str(tmp_path / "tokens"), "--rate-weight", "1"]
    assert main(words) == 2 and not (tmp_path / "tokens").exists()
    assert "is uniform, so all codes have as many bits" in capsys.readouterr().err


def test_what_has_no_learned_prior_is_refused():
    with pytest.raises(ValueError, match="chosen by distance, and those of"):
        HQVAEConfig(prior="learned", quantizer=ExternalConfig(name="fsq"))
    with pytest.raises(ValueError, match="puts them back at every step; expected restart=false"):
        HQVAEConfig(prior="learned", rate_weight=1.0, quantizer=NearestCodeConfig(restart=True))
    HQVAEConfig(prior="learned", quantizer=NearestCodeConfig(restart=True))
    with pytest.raises(ValueError, match="the prior is of 2 × 6 codes; expected 3 × 6"):
        stack(uneven(layers=2))
    with pytest.raises(ValueError, match="rate_weight=-1: expected a number from 0 up"):
        LearnedPrior(1, 2, -1.0)
    with pytest.raises(ValueError, match="rate_weight=nan: expected a number from 0 up"):
        stack(uneven()).encode(latents(), rate_weight=math.nan)
    with pytest.raises(ValueError, match="the prior is uniform, so all codes have as many bits"):
        stack(None).encode(latents(), rate_weight=1.0)
    with pytest.raises(InputError, match="rate_weight=3 is of a learned prior, and prior=uniform"):
        override(tiny("rsqvae", "photos"), ["model.prior=uniform", "model.rate_weight=3"])
    with pytest.raises(InputError, match="rate_weight"):
        override(tiny("rsqvae", "photos"), ["model.rate_weight=-1"])
