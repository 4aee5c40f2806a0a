"""Networks: shapes are exact, reach is finite, batch mates do not matter."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hqvae.nets import (
    Decoder,
    Encoder,
    NetConfig,
    ResBlock,
    grow,
    reductions,
    shrink,
    start_at_zero,
)

SMALL = NetConfig(widths=(8, 12), blocks=1)
STRIDES = [(4,), (8, 4), (12, 2), (6, 3), (10, 5), (7,), (8, 4, 2), (4, 1), (1,)]


@pytest.mark.parametrize(
    ("stride", "factors"),
    [
        (1, []),
        (2, [2]),
        (3, [3]),
        (8, [2, 2, 2]),
        (10, [2, 5]),
        (12, [2, 2, 3]),
        (49, [7, 7]),
        (320, [2] * 6 + [5]),
    ],
)
def test_reductions_are_the_prime_factors_small_first(stride, factors):
    assert reductions(stride) == factors and math.prod(factors) == stride


@pytest.mark.parametrize(("done", "width"), [(1, 32), (2, 64), (3, 64), (9, 64)])
def test_the_last_width_is_kept(done, width):
    assert NetConfig(widths=(32, 64)).width(done) == width


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("factor", [2, 3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_shrink_and_grow_are_exact(axes, factor, size):
    small, large = torch.zeros(2, 4, *[size] * axes), torch.zeros(2, 3, *[size * factor] * axes)
    assert shrink(axes, 3, 4, factor)(large).shape == small.shape
    assert grow(axes, 4, 3, factor)(small).shape == large.shape


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_shrink_looks_around_its_own_samples_and_grow_writes_there(factor):
    """Position t belongs to samples factor·t … factor·t + factor − 1, with the same margin on both sides."""
    down, up = shrink(1, 1, 1, factor), grow(1, 1, 1, factor)
    for net in (down, up):
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
    margin = factor // 2
    expected = torch.zeros(5 * factor)
    expected[2 * factor - margin : 3 * factor + margin] = 1
    x = torch.zeros(1, 1, 5 * factor, requires_grad=True)
    (read,) = torch.autograd.grad(down(x)[0, 0, 2], x)
    written = up(torch.eye(5)[2].view(1, 1, 5))
    assert torch.equal(read[0, 0], expected) and torch.equal(written[0, 0], expected)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("hidden", [0.01, 0.5, 2.0])
def test_a_residual_block_adds_to_its_input(axes, hidden):
    block, x = ResBlock(axes, 6, NetConfig(hidden=hidden)), torch.randn(2, 6, *[5] * axes)
    assert block(x).shape == x.shape and not torch.equal(block(x), x)
    nn.init.zeros_(block.narrow.weight)
    nn.init.zeros_(block.narrow.bias)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_features_have_the_promised_shapes_coarse_first(axes, strides):
    encoder, size = Encoder(axes, 3, strides, SMALL), 2 * strides[0]
    features = encoder(torch.randn(2, 3, *[size] * axes))
    widths = [SMALL.width(max(1, len(reductions(stride)))) for stride in strides]
    assert encoder.widths == widths
    assert [tuple(h.shape) for h in features] == [
        (2, w, *[size // s] * axes) for w, s in zip(widths, strides)
    ]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("strides", STRIDES, ids=str)
@pytest.mark.parametrize(
    "net", [SMALL, NetConfig(widths=(6,), blocks=0, inner_blocks=1)], ids=["blocks", "inner"]
)
def test_the_decoder_inverts_the_shape(axes, strides, net):
    x = torch.randn(2, 3, *[2 * strides[0] * n for n in (1, 2)[:axes]])
    finest = Encoder(axes, 3, strides, net)(x)[-1]
    assert Decoder(axes, 3, strides[-1], net)(finest).shape == x.shape


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_the_sign_of_the_signal_is_seen(strides):
    """No nonlinearity stands before the first convolution."""
    torch.manual_seed(0)
    encoder = Encoder(1, 3, strides, SMALL)
    x = -torch.rand(1, 3, 8 * strides[0])
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(encoder(x), encoder(2 * x)))


def test_every_weight_of_encoder_and_decoder_is_used():
    torch.manual_seed(0)
    net = NetConfig(widths=(8, 12), blocks=1, inner_blocks=1)
    encoder, decoder = Encoder(2, 3, (8, 4), net), Decoder(2, 3, 4, net)
    coarse, fine = encoder(torch.randn(4, 3, 32, 32))
    (coarse.sum() + decoder(fine).square().sum()).backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_feature_reads_the_samples_of_its_field_and_no_other():
    """conv4s2, conv4s2, conv3 and a block with one conv3: 26 samples, from 4t − 11 to 4t + 14."""
    torch.manual_seed(0)
    encoder, x = Encoder(1, 3, (4,), SMALL), torch.randn(1, 3, 128, requires_grad=True)
    read = torch.autograd.grad(encoder(x)[0][0, :, 16].sum(), x)[0].abs().sum((0, 1)) > 1e-9
    assert not read[: 64 - 11].any() and not read[64 + 15 :].any() and read[64 - 2 : 64 + 6].all()


@pytest.mark.parametrize("axes", [1, 2])
def test_what_is_far_away_changes_nothing(axes):
    torch.manual_seed(0)
    encoder, decoder = Encoder(axes, 3, (8, 4), SMALL), Decoder(axes, 3, 4, SMALL)
    x = torch.randn(1, 3, *[96] * axes)
    other = x.clone()
    other[(0, slice(None), *[0] * axes)] += 100.0
    far = (..., *[slice(8, None)] * axes)
    for before, after in zip(encoder(x), encoder(other)):
        torch.testing.assert_close(after[far], before[far], rtol=0, atol=1e-6)
        assert not torch.allclose(after, before, atol=1e-2)
    canvas = torch.randn(1, 12, *[24] * axes)
    other = canvas.clone()
    other[(0, slice(None), *[0] * axes)] += 100.0
    far = (..., *[slice(32, None)] * axes)
    before, after = decoder(canvas), decoder(other)
    torch.testing.assert_close(after[far], before[far], rtol=0, atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("axes", [1, 2])
def test_batch_mates_do_not_matter(axes):
    torch.manual_seed(0)
    encoder, decoder = Encoder(axes, 3, (8, 4), SMALL), Decoder(axes, 3, 4, SMALL)
    x = torch.randn(3, 3, *[32] * axes)
    other = torch.cat([x[:1], 100 * torch.randn(2, 3, *[32] * axes)])
    for training in (True, False):
        encoder.train(training), decoder.train(training)
        before, after = encoder(x), encoder(other)
        for a, b in zip(before, after):
            torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-6)
            assert not torch.allclose(a[1], b[1], atol=1e-2)
        torch.testing.assert_close(decoder(before[1])[0], decoder(after[1])[0], rtol=0, atol=1e-6)


WAVE = NetConfig(
    widths=(8, 12),
    blocks=2,
    inner_blocks=1,
    dilations=(1, 3),
    factor=4,
    activation="elu",
    norm=False,
    zero_start=True,
)


@pytest.mark.parametrize(
    ("stride", "largest", "factors"),
    [(128, 4, [4, 4, 4, 2]), (320, 8, [8, 8, 5]), (12, 4, [4, 3]), (8, 3, [2, 2, 2]), (7, 4, [7])],
)
def test_reductions_are_taken_together_up_to_the_largest(stride, largest, factors):
    assert reductions(stride, largest) == factors


def test_a_net_that_starts_at_zero_passes_on_what_is_quiet():
    """Nearly linear: a thousandth of a quiet signal gives a thousandth of its features; with norm and biases it would not."""
    for net, linear in (
        (WAVE, True),
        (replace(WAVE, zero_start=False), False),
        (replace(WAVE, activation="relu"), True),
        (SMALL, False),
    ):
        torch.manual_seed(0)
        encoder, decoder = Encoder(1, 1, (32, 8), net), Decoder(1, 1, 8, net)
        if net.zero_start:
            start_at_zero(encoder), start_at_zero(decoder)
        x = 1e-3 * torch.randn(2, 1, 256)
        for one, other in zip(encoder(x), encoder(1e-3 * x)):
            assert (float((one - 1e3 * other).norm() / one.norm()) < 0.02) == linear
        canvas = encoder(x)[-1]
        one, other = decoder(canvas), decoder(1e-3 * canvas)
        assert (float((one - 1e3 * other).norm() / one.norm()) < 0.02) == linear


def test_a_net_that_starts_at_zero_learns_all_of_itself():
    torch.manual_seed(0)
    encoder, decoder = Encoder(1, 1, (32, 8), WAVE), Decoder(1, 1, 8, WAVE)
    start_at_zero(encoder), start_at_zero(decoder)
    optimizer, x = (
        torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], 1e-3),
        torch.randn(2, 1, 256),
    )
    for _ in range(2):  # what lies before a zero has a gradient from the second step on
        optimizer.zero_grad()
        coarse, fine = encoder(x)
        (coarse.square().sum() + (decoder(fine) - x).square().sum()).backward()
        optimizer.step()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
