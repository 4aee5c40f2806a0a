"""Networks: shapes are exact, reach is finite, batch mates do not matter, starts are as stated."""

import math

import pytest
import torch
from torch import nn

from hqvae.nets import ConvConfig, Decoder, Encoder, TopDown, WaveConvConfig
from hqvae.nets.layers import ChannelNorm, ResBlock, downsample, factor_stride, res_blocks, upsample

SMALL = ConvConfig(widths=(8, 12), blocks=1)
WAVE = WaveConvConfig(widths=(8, 12), blocks=2, inner_blocks=1, dilations=(1, 3), factor=4)
NETS = {"blocks": SMALL, "inner": ConvConfig(widths=(6,), blocks=0, inner_blocks=1), "wave": WAVE}
STRIDES = [(4,), (8, 4), (12, 2), (6, 3), (10, 5), (7,), (8, 4, 2), (4, 1), (1,)]


# ------------------------------------------------------------------------------------ shapes


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
def test_a_stride_is_taken_by_its_prime_factors_small_first(stride, factors):
    assert factor_stride(stride) == factors and math.prod(factors) == stride


@pytest.mark.parametrize(
    ("stride", "largest", "factors"),
    [(128, 4, [4, 4, 4, 2]), (320, 8, [8, 8, 5]), (12, 4, [4, 3]), (8, 3, [2, 2, 2]), (7, 4, [7])],
)
def test_prime_factors_are_taken_together_up_to_the_largest(stride, largest, factors):
    assert factor_stride(stride, largest) == factors


@pytest.mark.parametrize(("reductions", "width"), [(0, 32), (1, 32), (2, 64), (3, 64), (9, 64)])
def test_the_last_width_is_kept(reductions, width):
    assert ConvConfig(widths=(32, 64)).width(reductions) == width


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("factor", [2, 3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_downsample_and_upsample_are_exact(axes, factor, size):
    small, large = torch.zeros(2, 4, *[size] * axes), torch.zeros(2, 3, *[size * factor] * axes)
    assert downsample(axes, 3, 4, factor)(large).shape == small.shape
    assert upsample(axes, 4, 3, factor)(small).shape == large.shape


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_downsample_looks_around_its_own_samples_and_upsample_writes_there(factor):
    """Position t has samples factor·t … factor·t + factor − 1, and one margin on both sides."""
    down, up = downsample(1, 1, 1, factor), upsample(1, 1, 1, factor)
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
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_residual_block_adds_to_its_input(axes, net, dilation):
    block, x = ResBlock(axes, 6, net, dilation), torch.randn(2, 6, *[5] * axes)
    assert block(x).shape == x.shape and not torch.equal(block(x), x)
    nn.init.zeros_(block.project_out.weight)
    nn.init.zeros_(block.project_out.bias)
    assert torch.equal(block(x), x)


def test_dilations_go_round():
    blocks = res_blocks(1, 4, ConvConfig(widths=(4,), dilations=(1, 3, 9)), 5)
    assert [block.project_in.dilation[0] for block in blocks] == [1, 3, 9, 1, 3]
    assert blocks(torch.zeros(1, 4, 7)).shape == (1, 4, 7)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 5), (2, 8, 4, 6)], ids=str)
def test_channel_norm_brings_every_position_to_mean_0_and_variance_1(shape):
    """By itself: other positions and samples have no say."""
    norm, x = ChannelNorm(8), 5 + 3 * torch.randn(shape)
    normed = norm(x)
    torch.testing.assert_close(normed.mean(1), torch.zeros_like(normed[:, 0]), atol=1e-5, rtol=0)
    variance = normed.var(1, correction=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm(x[:1]), normed[:1])


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_features_have_the_promised_shapes_coarse_first(axes, strides):
    encoder, size = Encoder(axes, 3, strides, SMALL), 2 * strides[0]
    features = encoder(torch.randn(2, 3, *[size] * axes))
    widths = [SMALL.width(len(factor_stride(stride))) for stride in strides]
    assert [tuple(h.shape) for h in features] == [
        (2, w, *[size // s] * axes) for w, s in zip(widths, strides)
    ]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("strides", STRIDES, ids=str)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_the_decoder_inverts_the_shape(axes, strides, net):
    x = torch.randn(2, 3, *[2 * strides[0] * n for n in (1, 2)[:axes]])
    finest = Encoder(axes, 3, strides, net)(x)[-1]
    decoder = Decoder(axes, 3, finest.shape[1], strides[-1], net)
    assert decoder(finest).shape == x.shape


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("strides", [(8, 4), (12, 2), (10, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_top_down_goes_from_one_levels_resolution_to_the_next(axes, strides, net):
    above, here = strides
    top_down = TopDown(axes, (5, 3), strides, net)
    latent = torch.randn(2, 5, *[2] * axes)
    assert top_down(latent).shape == (2, 3, *[2 * above // here] * axes)
    assert top_down(latent).any()
    assert not TopDown(axes, (5, 3), strides, net, zero_init=True)(latent).any()


# ------------------------------------------------------------------------------------- reach


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_the_sign_of_the_signal_is_seen(strides):
    """No nonlinearity stands before the first convolution."""
    torch.manual_seed(0)
    encoder = Encoder(1, 3, strides, SMALL)
    x = -torch.rand(1, 3, 8 * strides[0])
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(encoder(x), encoder(2 * x)))


def test_every_weight_of_encoder_and_decoder_is_used():
    torch.manual_seed(0)
    net = ConvConfig(widths=(8, 12), blocks=1, inner_blocks=1)
    encoder, decoder = Encoder(2, 3, (8, 4), net), Decoder(2, 3, 12, 4, net)
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
    encoder, decoder = Encoder(axes, 3, (8, 4), SMALL), Decoder(axes, 3, 5, 4, SMALL)
    x = torch.randn(1, 3, *[96] * axes)
    other = x.clone()
    other[(0, slice(None), *[0] * axes)] += 100.0
    far = (..., *[slice(8, None)] * axes)
    for before, after in zip(encoder(x), encoder(other)):
        torch.testing.assert_close(after[far], before[far], rtol=0, atol=1e-6)
        assert not torch.allclose(after, before, atol=1e-2)
    latent = torch.randn(1, 5, *[24] * axes)
    other = latent.clone()
    other[(0, slice(None), *[0] * axes)] += 100.0
    far = (..., *[slice(32, None)] * axes)
    before, after = decoder(latent), decoder(other)
    torch.testing.assert_close(after[far], before[far], rtol=0, atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("axes", [1, 2])
def test_batch_mates_do_not_matter(axes):
    torch.manual_seed(0)
    encoder, decoder = Encoder(axes, 3, (8, 4), SMALL), Decoder(axes, 3, 12, 4, SMALL)
    x = torch.randn(3, 3, *[32] * axes)
    other = torch.cat([x[:1], 100 * torch.randn(2, 3, *[32] * axes)])
    for training in (True, False):
        encoder.train(training)
        decoder.train(training)
        before, after = encoder(x), encoder(other)
        for a, b in zip(before, after):
            torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-6)
            assert not torch.allclose(a[1], b[1], atol=1e-2)
        torch.testing.assert_close(decoder(before[1])[0], decoder(after[1])[0], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------- for waveforms


def wave_nets(init: bool = True) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    nets = Encoder(1, 1, (32, 8), WAVE), Decoder(1, 1, 12, 8, WAVE)
    return tuple(map(WAVE.init, nets)) if init else nets


def linearity_error(net, x: torch.Tensor) -> float:
    """How far a thousandth of x is from giving a thousandth of the output, relatively."""
    outputs = [y if isinstance(y, tuple) else (y,) for y in (net(x), net(1e-3 * x))]
    errors = [(one - 1e3 * other).norm() / one.norm() for one, other in zip(*outputs)]
    return max(float(error.detach()) for error in errors)


def test_nets_for_waveforms_pass_on_what_is_quiet():
    """Nearly linear: without zero biases, and with norm, they would not be."""
    x = 1e-3 * torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(0))
    for init, linear in ((True, True), (False, False)):
        encoder, decoder = wave_nets(init)
        assert (linearity_error(encoder, x) < 0.02) == linear
        assert (linearity_error(decoder, encoder(x)[-1]) < 0.02) == linear
    torch.manual_seed(0)
    assert linearity_error(Encoder(1, 1, (32, 8), SMALL), x) > 0.02


def test_nets_for_waveforms_learn_all_of_themselves():
    encoder, decoder = wave_nets()
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], 1e-3)
    x = torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # what lies before a zero has a gradient from the second step on
        optimizer.zero_grad()
        coarse, fine = encoder(x)
        (coarse.square().sum() + (decoder(fine) - x).square().sum()).backward()
        optimizer.step()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_nets_for_images_keep_their_initialisation():
    encoder = Encoder(2, 3, (8, 4), SMALL)
    before = {name: values.clone() for name, values in encoder.state_dict().items()}
    after = SMALL.init(encoder).state_dict()
    assert all(torch.equal(before[name], values) for name, values in after.items())
