"""A learned prior: Bayes' rule, what it costs, and what codes pay for their bits."""

import itertools
import json
import math

import pytest
import torch
from training import tiny, trained

from conftest import build, signals
from hqvae.cli import main
from hqvae.errors import InputError
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.overrides import override
from hqvae.quantize import (
    ExternalConfig,
    LearnedPrior,
    NearestCodeConfig,
    Noise,
    ResidualQuantizer,
    flatten_positions,
)

DIM, SIZE, LAYERS = 4, 6, 3


def uneven(weight: float = 1.0, layers: int = LAYERS) -> LearnedPrior:
    prior = LearnedPrior(layers, SIZE, weight)
    torch.nn.init.normal_(prior.logits, std=2, generator=torch.Generator().manual_seed(1))
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
    model = build(kind, "hybrid", prior="learned", beam_size=4).eval()
    x = signals(count=16)
    model.init_codebooks(x, Noise(1))
    model.use_nearest()
    paid = []
    for weight in (0.0, 1.0, 100.0, 1e4):
        codes = model.encode(x, rate_weight=weight)
        layers = iter(codes)
        priors = [(level.quantizer.posterior.prior, level) for level in model.levels]
        pairs = [(p, i, next(layers)) for p, level in priors for i in range(len(p.logits))]
        paid.append(sum(float(p.rate(i, own).detach().sum()) for p, i, own in pairs))
    assert paid[0] > paid[1] > paid[2] >= paid[3]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("phase", ["samples", "nearest codes"])
def test_evaluation_takes_the_codes_of_encode(beam_size, phase):
    model = build("stochastic", "hybrid", prior="learned", beam_size=beam_size).eval()
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
@pytest.mark.parametrize("kind", ["stochastic", "ema"])
def test_the_objective_fits_it_to_what_is_drawn_whatever_it_weighs(kind, weight):
    """Its gradient is p less the share of every code, for each position."""
    model = build(kind, "residual", prior="learned", rate_weight=weight).train()
    x = signals()
    out = model(x, 0.5, Noise(3))
    out.loss.backward()
    quantizer = model.levels[0].quantizer
    prior = quantizer.posterior.prior
    drawn = out.codes if kind == "ema" else drawn_codes(quantizer, out.z_e[0])
    for layer, codes in enumerate(drawn):
        share = torch.bincount(codes.flatten(), minlength=16) / len(x)
        expected = codes[0].numel() * (-prior.nats(layer)).exp() - share
        assert torch.allclose(prior.logits.grad[layer], expected.detach(), atol=1e-3)


def drawn_codes(quantizer, z_e):
    """Hard draws of every layer with the noise of `model(x, 0.5, Noise(3))`."""
    stream, drawn, residual = Noise(3).fold(0), [], z_e
    for layer, codebook in enumerate(quantizer.codebooks):
        own = stream.fold(layer)
        drawn.append(quantizer.posterior.sample(layer, residual, codebook, own).codes)
        relaxed = quantizer.posterior.relax(layer, residual, codebook, 0.5, own)
        residual = residual - relaxed.z.detach()
    return drawn


def test_what_it_weighs_is_what_features_feel():
    def gradient(weight):
        quantizer, z = stack(LearnedPrior(LAYERS, SIZE, weight)), latents().requires_grad_()
        quantizer.posterior.prior.logits.data.copy_(uneven().logits)
        return torch.autograd.grad(quantizer(z, 0.5, Noise(1)).rate[:, 0].sum(), z)[0]

    assert not gradient(0.0).any() and gradient(1.0).any()


def test_its_gradient_moves_it_to_the_share_of_every_code():
    quantizer = stack(LearnedPrior(1, SIZE), layers=1).train()
    quantizer.use_nearest()
    z = latents(500)
    prior = quantizer.posterior.prior
    prior.weight = 0.0  # choices stay
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        out = quantizer(z)
        out.rate.mean().backward()
        optimizer.step()
    share = torch.bincount(out.codes.flatten(), minlength=SIZE) / out.codes.numel()
    assert torch.allclose((-prior.nats(0)).exp(), share, atol=0.01)


def test_it_starts_at_the_share_of_every_code_and_the_error():
    quantizer, z = stack(LearnedPrior(LAYERS, SIZE)), latents(500)
    quantizer.use_nearest()
    quantizer.init(z, Noise(1))
    out = quantizer.eval()(z)
    prior = quantizer.posterior.prior
    assert float(prior.s2) == pytest.approx(float((z - out.z).square().mean()), rel=0.2)
    shares = (-prior.nats(0)).exp().detach()
    assert float(shares.sum()) == pytest.approx(1) and shares.min() > 1 / SIZE / 42
    before = float(prior.s2)
    missed = z - quantizer.lookup(torch.zeros_like(out.codes))
    quantizer.update(z, torch.zeros_like(out.codes), Noise(1))
    moved = 0.99 * before + 0.01 * float(missed.square().mean())
    assert float(prior.s2) == pytest.approx(moved, rel=1e-3)


def test_it_goes_on_into_the_nearest_code_phase():
    quantizer = stack(uneven())
    prior, variance = quantizer.posterior.prior, quantizer.posterior.variance.detach().sum()
    quantizer.use_nearest()
    assert quantizer.posterior.prior is prior and torch.allclose(prior.s2, variance)
    assert not quantizer.posterior.config.restart
    free = stack(uneven(weight=0.0))
    free.use_nearest()
    assert free.posterior.config.restart


# ------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def run(image_file, tmp_path_factory):
    config = tiny("rsqvae", image_file)
    return trained(override(config, ["model.prior=learned"]), tmp_path_factory.mktemp("run"))


def test_a_run_is_measured_at_several_weights(run, capsys):
    words = ["evaluate", str(run.path), "--rate-weight", "0", "--rate-weight", "50"]
    assert main(words) == 0
    assert "error against the codes' entropy" in capsys.readouterr().out
    report = json.loads((run.path / "report" / "report.json").read_text())
    free, dear = report["rates"]
    assert (free["rate_weight"], dear["rate_weight"]) == (0, 50)
    assert free["bits_per_point"] > dear["bits_per_point"] > 0 and free["rmse"] > 0
    assert len(free["entropy_bits"]) == 4
    # A coder with the model's own prior takes more than one with the histogram itself.
    assert all(point["prior_bits_per_point"] > point["bits_per_point"] for point in (free, dear))


def test_it_comes_back_from_disk(run):
    model = HQVAE.from_pretrained(run.path)
    x = signals()
    again = run.load_model()
    assert float(model.levels[0].quantizer.posterior.prior.s2) < 1
    assert all(map(torch.equal, model.encode(x), again.encode(x)))


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_a_weight_below_zero_is_refused(run, weight, capsys):
    assert main(["evaluate", str(run.path), f"--rate-weight={weight}"]) == 2
    assert "expected numbers from 0 up" in capsys.readouterr().err


def test_weights_of_a_uniform_prior_are_refused(image_file, tmp_path, capsys):
    run = trained(tiny("rsqvae", image_file), tmp_path)
    assert main(["evaluate", str(run.path), "--rate-weight", "1"]) == 2
    assert "is uniform, so all codes have as many bits" in capsys.readouterr().err


def test_what_has_no_learned_prior_is_refused():
    with pytest.raises(ValueError, match="chosen by distance, and those of"):
        HQVAEConfig(prior="learned", quantizer=ExternalConfig(name="fsq"))
    with pytest.raises(ValueError, match="puts them back at every step; expected restart=false"):
        HQVAEConfig(prior="learned", quantizer=NearestCodeConfig(restart=True))
    HQVAEConfig(prior="learned", rate_weight=0.0, quantizer=NearestCodeConfig(restart=True))
    with pytest.raises(ValueError, match="the prior is of 2 × 6 codes; expected 3 × 6"):
        stack(uneven(layers=2))
    with pytest.raises(ValueError, match="a rate weight of -1; expected a number from 0 up"):
        LearnedPrior(1, 2, -1.0)
    with pytest.raises(ValueError, match="a rate weight of nan; expected a number from 0 up"):
        stack(uneven()).encode(latents(), rate_weight=math.nan)
    with pytest.raises(ValueError, match="the prior is uniform, so all codes have as many bits"):
        stack(None).encode(latents(), rate_weight=1.0)
    with pytest.raises(InputError, match="rate_weight=3 is of a learned prior, and prior=uniform"):
        override(tiny("rsqvae", "photos"), ["model.rate_weight=3"])
    with pytest.raises(InputError, match="rate_weight"):
        override(tiny("rsqvae", "photos"), ["model.rate_weight=-1"])
