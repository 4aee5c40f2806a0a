"""Quantizers of vector-quantize-pytorch behind our contract: the same facts as for ours, and rates that are exactly equal."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import LEVELS, SMALL, signals
from hqvae.quantize.others import scalar_levels

from hqvae.errors import InputError
from hqvae.model import HQVAE, HQVAEConfig
from hqvae.quantize import Noise, OtherConfig, OtherQuantizer
from hqvae.topdown import Residual, State

pytest.importorskip("vector_quantize_pytorch", reason="comes with the extra compare")
NAMES = ["fsq", "lfq", "simvq", "rotation"]


@pytest.fixture(params=NAMES)
def quantizer(request):
    torch.manual_seed(0)
    made = OtherQuantizer(6, 16, OtherConfig(name=request.param))
    made.start_from(torch.randn(64, 6, 5), Noise(1))
    return made


@pytest.mark.parametrize("bits", range(2, 17))
def test_scalar_levels_give_exactly_the_rate(bits):
    levels = scalar_levels(1 << bits)
    assert math.prod(levels) == 1 << bits and set(levels) <= {4, 8}


@pytest.mark.parametrize(("name", "codes"), [("fsq", 2), ("fsq", 12), ("lfq", 12)])
def test_a_codebook_that_cannot_have_equal_rate_is_refused(name, codes):
    with pytest.raises(InputError, match=f"codebook_size={codes}"):
        OtherQuantizer(6, codes, OtherConfig(name=name))


@pytest.mark.parametrize("name", NAMES)
def test_a_search_leaves_their_codes_as_they_are(name):
    torch.manual_seed(0)
    model = HQVAE(
        HQVAEConfig(levels=LEVELS["residual"], quantizer=OtherConfig(name=name), net=SMALL)
    ).eval()
    codes = model.encode(signals())
    model.config = replace(model.config, search=8)
    assert all(torch.equal(before, after) for before, after in zip(codes, model.encode(signals())))


def test_evaluation_looks_codes_up_and_depends_on_no_batch_mate(quantizer):
    z = torch.randn(5, 6, 4, 3)
    out = quantizer.eval()(z)
    assert out.codes.shape == (5, 4, 3) and out.codes.min() >= 0 and out.codes.max() < 16
    assert torch.equal(out.z, quantizer.lookup(out.codes)) and torch.equal(
        out.codes, quantizer.nearest(z)
    )
    assert torch.equal(quantizer(z[2:3]).codes, out.codes[2:3])
    torch.testing.assert_close(quantizer.codebook[out.codes].movedim(-1, 1), out.z)


def test_the_codes_of_evaluation_come_in_training_mode_too(quantizer):
    z = torch.randn(5, 6, 7)
    expected = quantizer.eval().nearest(z)
    assert torch.equal(quantizer.train().nearest(z), expected) and quantizer.module.training


def test_training_has_gradient_and_the_library_s_loss(quantizer):
    z = torch.randn(8, 6, 7, requires_grad=True)
    out = quantizer.train()(z)
    cost = quantizer.fit(z, [out, out])
    assert (
        cost.shape == (8,)
        and torch.allclose(cost, 2 * out.cost)
        and not out.entropy.any()
        and out.variance == 0
    )
    (out.z.square().sum() + cost.sum()).backward()
    assert z.grad.abs().sum() > 0
    if quantizer.config.name != "fsq":
        assert out.cost.abs().sum() > 0


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_models_train_and_come_back_from_disk(name, levels, tmp_path):
    torch.manual_seed(0)
    model, x = (
        HQVAE(HQVAEConfig(levels=LEVELS[levels], quantizer=OtherConfig(name=name), net=SMALL)),
        signals(),
    )
    model.scale_from(x)
    model.start_from(x, Noise(5))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(12):
        out = model.train()(x, noise=Noise(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.distortion.mean()))
    assert min(losses[-3:]) < losses[0]
    model.eval().save_pretrained(tmp_path)
    again = HQVAE.from_pretrained(tmp_path)
    codes = model.encode(x)
    assert all(torch.equal(a, b) for a, b in zip(codes, again.encode(x)))
    assert torch.allclose(model.decode(codes), model(x).reconstruction, atol=1e-5)


def test_residual_stacks_have_the_library_s_gradient():
    """Each layer's loss and straight-through gradient reach the features: as in their ResidualSimVQ."""
    from vector_quantize_pytorch import ResidualSimVQ

    torch.manual_seed(0)
    theirs = ResidualSimVQ(dim=6, num_quantizers=3, codebook_size=16)
    ours = [OtherQuantizer(6, 16, OtherConfig(name="simvq")) for _ in range(3)]
    for quantizer, layer in zip(ours, theirs.layers, strict=True):
        quantizer.module.load_state_dict(layer.state_dict())
    x, weight = torch.randn(4, 9, 6), torch.randn(4, 9, 6)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    z, _, losses = theirs(one)
    ((z * weight).sum() + losses.sum()).backward()
    target, state = other.movedim(-1, 1), State()
    layers = [Residual(0, quantizer) for quantizer in ours]
    state, cost = replace(state, target=target, chosen=torch.zeros_like(target)), torch.zeros(())
    for layer in layers:
        z_e = layer.query(state, [])
        out = layer.quantizer(z_e)
        state, cost = layer.absorb(state, z_e, out.z), cost + out.cost[0]
    ((state.chosen * weight.movedim(-1, 1)).sum() + cost).backward()
    torch.testing.assert_close(state.chosen.movedim(1, -1), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
