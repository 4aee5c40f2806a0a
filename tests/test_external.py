"""Quantizers of vector-quantize-pytorch: the same facts as for ours, at exactly equal rates."""

import math

import pytest
import torch

from conftest import LEVELS, SMALL, signals
from hqvae.errors import InputError
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.quantize import ExternalConfig, Noise, ResidualQuantizer
from hqvae.quantize.external import ExternalCodebook, fsq_levels

pytest.importorskip("vector_quantize_pytorch", reason="comes with the extra compare")
NAMES = ["fsq", "lfq", "simvq", "rotation"]
DIM, K = 6, 16


def build(name: str, layers: int = 1, **options) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(DIM, K, layers, ExternalConfig(name=name), **options)
    quantizer.init(torch.randn(64, DIM, 5), Noise(1))
    return quantizer


def build_model(name: str, levels: str, **config) -> HQVAE:
    torch.manual_seed(0)
    quantizer = ExternalConfig(name=name)
    return HQVAE(HQVAEConfig(levels=LEVELS[levels], quantizer=quantizer, net=SMALL, **config))


@pytest.fixture(params=NAMES)
def quantizer(request):
    return build(request.param)


@pytest.mark.parametrize("bits", range(2, 17))
def test_fsq_levels_give_exactly_the_rate(bits):
    levels = fsq_levels(1 << bits)
    assert math.prod(levels) == 1 << bits and set(levels) <= {4, 8}


@pytest.mark.parametrize(("name", "codebook_size"), [("fsq", 2), ("fsq", 12), ("lfq", 12)], ids=str)
def test_a_codebook_that_cannot_have_equal_rate_is_refused(name, codebook_size):
    with pytest.raises(InputError, match=f"codebook_size={codebook_size}"):
        ExternalCodebook(DIM, codebook_size, ExternalConfig(name=name))


@pytest.mark.parametrize(
    ("dim", "codebook_size", "words"),
    [(0, 16, "dim is 0; a code needs"), (6, 1, "codebook_size is 1; a codebook needs")],
)
def test_too_few_codes_or_dimensions_are_named(dim, codebook_size, words):
    with pytest.raises(ValueError, match=words):
        ExternalCodebook(dim, codebook_size)


@pytest.mark.parametrize("wrong", [-1, K])
def test_lookup_names_the_code_out_of_range(quantizer, wrong):
    codes = torch.full((1, 1, 3), wrong)
    with pytest.raises(ValueError, match=f"codes range from {wrong}.*has codes 0 to {K - 1}"):
        quantizer.lookup(codes)


@pytest.mark.parametrize("name", NAMES)
def test_a_beam_leaves_their_codes_as_they_are(name):
    alone, together = (build_model(name, "residual", beam_size=size) for size in (1, 8))
    alone.init_codebooks(signals(), Noise(5))
    together.load_state_dict(alone.state_dict())
    pairs = zip(alone.eval().encode(signals()), together.eval().encode(signals()), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


def test_they_have_no_candidates(quantizer):
    with pytest.raises(ValueError, match="posterior 'external' does not choose by distance"):
        quantizer.candidates(torch.randn(3, DIM), 2)


def test_evaluation_looks_codes_up_and_depends_on_no_batch_mate(quantizer):
    z_e = torch.randn(5, DIM, 4, 3)
    out = quantizer.eval()(z_e)
    assert out.codes.shape == (5, 1, 4, 3) and out.codes.min() >= 0 and out.codes.max() < K
    assert torch.equal(out.z, quantizer.lookup(out.codes))
    assert torch.equal(out.codes, quantizer.encode(z_e))
    assert torch.equal(quantizer(z_e[2:3]).codes, out.codes[2:3])
    vectors = quantizer.codebooks[0].vectors
    torch.testing.assert_close(vectors[out.codes[:, 0]].movedim(-1, 1), out.z)


def test_the_codes_of_evaluation_come_in_training_mode_too(quantizer):
    z_e = torch.randn(5, DIM, 7)
    expected = quantizer.eval().encode(z_e)
    assert torch.equal(quantizer.train().encode(z_e), expected)
    assert quantizer.codebooks[0].module.training


def test_training_has_gradient_and_the_librarys_loss(quantizer):
    z_e = torch.randn(8, DIM, 7, requires_grad=True)
    codebook, posterior = quantizer.codebooks[0], quantizer.posterior
    choice = posterior.relax(0, z_e, codebook.train(), 1.0, Noise(1))
    latent_loss = posterior.latent_loss(z_e, [choice, choice])
    assert latent_loss.shape == (8,) and torch.allclose(latent_loss, 2 * choice.cost)
    assert not choice.entropy.any() and not posterior.variance.any()
    (choice.z.square().sum() + latent_loss.sum()).backward()
    assert z_e.grad.abs().sum() > 0
    if codebook.config.name != "fsq":
        assert choice.cost.abs().sum() > 0


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_models_train_and_come_back_from_disk(name, levels, tmp_path):
    model, x = build_model(name, levels), signals()
    model.init_scale(x)
    model.init_codebooks(x, Noise(5))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    distortions = []
    for step in range(12):
        out = model.train()(x, noise=Noise(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        distortions.append(float(out.distortion.mean()))
    assert min(distortions[-3:]) < distortions[0]
    model.eval().save_pretrained(tmp_path)
    again = HQVAE.from_pretrained(tmp_path)
    codes = model.encode(x)
    assert again.posterior == "external"
    assert all(torch.equal(a, b) for a, b in zip(codes, again.encode(x), strict=True))
    assert torch.allclose(model.decode(codes), model(x).reconstruction, atol=1e-5)


def test_residual_stacks_have_the_librarys_gradient():
    """Each layer's loss and straight-through gradient reach the features.

    As in their ResidualSimVQ.
    """
    from vector_quantize_pytorch import ResidualSimVQ

    torch.manual_seed(0)
    theirs = ResidualSimVQ(dim=DIM, num_quantizers=3, codebook_size=K)
    ours = ResidualQuantizer(DIM, K, 3, ExternalConfig(name="simvq"))
    for codebook, layer in zip(ours.codebooks, theirs.layers, strict=True):
        codebook.module.load_state_dict(layer.state_dict())
    x, weight = torch.randn(4, 9, DIM), torch.randn(4, 9, DIM)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    z, _, losses = theirs(one)
    ((z * weight).sum() + losses.sum()).backward()
    out = ours(other.movedim(-1, 1))
    # Their loss is that of the whole batch; ours gives it to every signal.
    ((out.z * weight.movedim(-1, 1)).sum() + out.latent_loss[0]).backward()
    torch.testing.assert_close(out.z.movedim(1, -1), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_the_extra_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'hqvae\[compare\]'"):
        ExternalCodebook(DIM, K)
