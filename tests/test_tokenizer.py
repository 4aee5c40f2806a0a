"""A signal's tokens are the same in any company, and decode to the model's reconstruction."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import noise, png
from PIL import Image
from token_files import same_tokens

from conftest import FAMILY, build, signals
from hqvae.data import AudioConfig, ImageConfig, WaveConfig
from hqvae.model import HQVAE
from hqvae.presets import PRESETS
from hqvae.quantize import Noise
from hqvae.tiling import Windows
from hqvae.tiling.batches import batch_size, rows_of
from hqvae.tokenizer import Tokenizer
from hqvae.tokens import Tokens


def random_signal(*size, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, *size, generator=generator) * 2 - 1


def one_by_one(tokenizer, items):
    return [tokenizer.encode([item])[0] for item in items]


# ------------------------------------------------------------------------------ windows


@pytest.mark.parametrize("size", [(1,), (64,), (65,), (300,), (1000,), (31, 200), (200, 31)])
@pytest.mark.parametrize("margin, largest", [(0, 8), (3, 16), (3, 64)])
def test_what_windows_keep_tiles_the_signal(size, margin, largest):
    """Each position once; a margin on all sides but the signal's own ends."""
    windows = Windows(stride=4, margin=margin, largest=largest)
    counts = [-(-side // 4) for side in size]
    seen = torch.zeros(counts, dtype=torch.long)
    for window in windows.of(size):
        seen[window.within(1)] += 1
        for axis, count in enumerate(counts):
            assert window.ends[axis] <= window.sides[axis] <= largest
            begins, ends = (
                window.starts[axis] == 0,
                window.starts[axis] + window.sides[axis] >= count,
            )
            assert window.first[axis] == 0 if begins else window.first[axis] >= margin
            assert ends or window.last[axis] <= window.sides[axis] - margin
    assert (seen == 1).all()


def test_a_signal_of_the_usual_size_has_a_window_of_its_own():
    windows = Windows(stride=4, margin=2, largest=64, usual=(100,))
    assert [windows.of((size,))[0].sides for size in (99, 100, 101)] == [(28,), (25,), (28,)]


def test_windows_of_nothing_but_margins_are_refused():
    with pytest.raises(ValueError, match="largest=4: expected more than two margins of 2"):
        Windows(stride=4, margin=2, largest=4)


# ------------------------------------------------------------------------------ the same tokens


@pytest.mark.parametrize("axes", [1, 2], ids=["one axis", "two axes"])
@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_tokens_are_those_of_the_model(family, axes):
    """Behind its ends a signal is masked, so the model alone finds the same."""
    model = build(*family, axes=axes)
    tokenizer = Tokenizer(model)
    sizes = [(16,), (17,), (70,), (8,)] if axes == 1 else [(16, 16), (17, 9), (70, 33), (8, 24)]
    items = [random_signal(*size, seed=i) for i, size in enumerate(sizes)]
    for item, tokens in zip(items, tokenizer.encode(items)):
        expected = tuple(layer[0] for layer in model.encode(item[None]))
        assert same_tokens([tokens], [Tokens(expected, tuple(item.shape[1:]))])


@pytest.mark.parametrize("axes", [1, 2], ids=["one axis", "two axes"])
def test_large_signals_have_the_tokens_and_samples_of_the_whole(axes):
    """Several windows along each axis, with their margins."""
    model = build("stochastic", "hybrid", axes=axes)
    tokenizer = Tokenizer(model)
    tokenizer._encoding = Windows(8, tokenizer._encoding.margin, 2 * tokenizer._encoding.margin + 3)
    tokenizer._decoding = Windows(8, tokenizer._decoding.margin, 2 * tokenizer._decoding.margin + 3)
    size = (3000,) if axes == 1 else (403, 390)
    item = random_signal(*size)
    (tokens,) = tokenizer.encode([item])
    codes = model.encode(item[None])
    assert len(tokenizer._encoding.of(size)) > 3**axes
    assert all(torch.equal(one, other[0]) for one, other in zip(tokens.codes, codes))
    (decoded,) = tokenizer.decode_signals([tokens])
    torch.testing.assert_close(decoded, model.decode(codes, size=size)[0], atol=1e-5, rtol=0)


def test_the_order_and_the_company_change_no_token():
    tokenizer = Tokenizer(build("stochastic", "hybrid"))
    items = [random_signal(16 + 8 * (i % 3), 24, seed=i) for i in range(300)]
    together = tokenizer.encode(items)
    assert same_tokens(one_by_one(tokenizer, items[:9]), together[:9])
    assert same_tokens(tokenizer.encode(items[::-1]), together[::-1])
    assert same_tokens(tokenizer.encode(items[7:40]), together[7:40])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_the_same_tokens_alone_and_in_any_batch(name):
    """Its real networks, with codebooks from noise: near ties are everywhere."""
    torch.manual_seed(0)
    config = PRESETS[name]
    channels = config.model.channels or 6  # of arrays it is the data's
    model = HQVAE(replace(config.model, channels=channels))
    size = (2 * model.stride, 4 * model.stride)[2 - config.model.axes :]
    items = [random_signal(*size, seed=i, channels=channels) for i in range(12)]
    model.init_scale(torch.stack(items))
    model.init_codebooks(torch.stack(items), Noise(1))
    tokenizer = Tokenizer(model)
    together = tokenizer.encode(items)
    assert same_tokens(one_by_one(tokenizer, items[:2]), together[:2])
    assert same_tokens(tokenizer.encode(items[5:]), together[5:])
    everywhere = torch.cat([layer.flatten() for one in together for layer in one.codes])
    assert len(everywhere.unique()) > 2


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("widths", [None, (8,)], ids=["of the preset", "of no whole vector"])
def test_waveforms_have_the_same_tokens_alone_and_on_more_threads(widths, two_threads):
    """Libraries share their convolutions among threads; their activations have a tail."""
    torch.manual_seed(0)
    config = PRESETS["rsqvae-audio"].model
    net = config.net if widths is None else replace(config.net, widths=widths, blocks=1)
    model = HQVAE(replace(config, net=net))
    for module in model.modules():  # the last layer of a block is zero before training
        if isinstance(module, torch.nn.Conv1d) and not module.weight.any():
            torch.nn.init.kaiming_uniform_(module.weight)
    items = [0.2 * random_signal(640, seed=i, channels=1) for i in range(60)]
    items += [0.2 * random_signal(16_384, seed=i, channels=1) for i in range(3)]
    x = torch.stack(items[:60])
    model.init_scale(x)
    model.init_codebooks(x, Noise(1))
    tokenizer = Tokenizer(model)
    on_two = tokenizer.encode(items)
    torch.set_num_threads(1)
    assert same_tokens(tokenizer.encode(items), on_two)
    some = [0, 17, 50, 51, 59, 60, 62]
    assert same_tokens(one_by_one(tokenizer, [items[i] for i in some]), [on_two[i] for i in some])


def test_no_batch_ends_with_a_signal_but_in_whole_vectors():
    """The last values of a batch that fill no vector are computed in another way."""
    for side in (7, 8, 16, 17, 33, 40, 64, 100, 256):
        count = batch_size((side, side), 2**16)
        rows = rows_of(count)
        assert count == 1 or rows % 64 == 0 or rows > count
        assert rows * side**2 <= 2**16 * 9 / 8 + side**2


def test_autocast_changes_no_token():
    tokenizer = Tokenizer(build("stochastic", "hybrid"))
    items = [random_signal(16, 24, seed=i) for i in range(50)]
    expected = tokenizer.encode(items)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_tokens(tokenizer.encode(items), expected)
        assert torch.equal(*(tokenizer.decode_signals(expected[:1])[0] for _ in range(2)))


def test_signals_as_stored_and_as_floats_stand_side_by_side():
    """A uint8 picture of ones is nearly black, and a float one is white."""
    tokenizer = Tokenizer(build("stochastic", "hybrid"))
    stored = torch.from_numpy(noise(16, 16)).movedim(2, 0) % 2
    floats = random_signal(16, 16)
    for items in ([stored, floats], [floats, stored]):
        assert same_tokens(tokenizer.encode(items), one_by_one(tokenizer, items))
    assert same_tokens(tokenizer.encode([stored]), tokenizer.encode([stored / 127.5 - 1]))


def test_own_networks_that_see_further_are_not_masked_or_cut():
    """An encoder with a norm over space, whose margins nobody knows."""
    model = build("stochastic", "one")
    encoder = torch.nn.Sequential(model.encoder, FirstLevel(), torch.nn.GroupNorm(1, 12))
    own = HQVAE(model.config, encoder=encoder, decoder=model.decoder)
    own.load_state_dict(model.state_dict(), strict=False)
    items = [random_signal(17, 30), random_signal(1200, 20)]
    for item, tokens in zip(items, Tokenizer(own).encode(items)):
        expected = [layer[0] for layer in own.encode(item[None])]
        assert all(map(torch.equal, tokens.codes, expected))


class FirstLevel(torch.nn.Module):
    def forward(self, features):
        return features[0]


@pytest.mark.parametrize("count", [20_000])
def test_twenty_thousand_items_in_five_ways(count, two_threads):
    """In order, in another, in parts, beside others, with more threads; some of them alone."""
    torch.set_num_threads(1)
    model = build("stochastic", "hybrid")
    generator = torch.Generator().manual_seed(3)
    items = list((torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1).unbind())
    tokenizer = Tokenizer(model)
    flat = _flat(tokenizer.encode(items))
    order = torch.randperm(count, generator=generator)
    shuffled = _flat(tokenizer.encode([items[i] for i in order]))
    parts = [tokenizer.encode(items[i : i + 613]) for i in range(0, count, 613)]
    torch.set_num_threads(2)
    threaded = _flat(Tokenizer(build("stochastic", "hybrid")).encode(items))
    torch.set_num_threads(1)
    beside = [random_signal(8 + i % 5, 11, seed=i) for i in range(count // 20)]
    mixed = list(itertools.chain(*zip(items[: count // 20], beside)))
    alone = _flat(one_by_one(tokenizer, items[:: count // 50]))
    assert torch.equal(shuffled, flat[order])
    assert torch.equal(_flat(list(itertools.chain(*parts))), flat)
    assert torch.equal(threaded, flat)
    assert torch.equal(_flat(tokenizer.encode(mixed)[::2]), flat[: count // 20])
    assert torch.equal(alone, flat[:: count // 50])


def _flat(tokens):
    return torch.stack([torch.cat([layer.flatten() for layer in one.codes]) for one in tokens])


# ------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_decoded_tokens_are_the_reconstruction_to_the_last_bit(family):
    """The batch that a tokenizer computes is as the model would have it."""
    model = build(*family)
    tokenizer = Tokenizer(model)
    x = signals(batch_size((16, 16), tokenizer.points))
    tokens = tokenizer.encode(list(x))
    assert torch.equal(torch.stack(tokenizer.decode_signals(tokens)), model(x).reconstruction)
    (alone,) = tokenizer.decode_signals(tokens[5:6])
    assert torch.equal(alone, model(x).reconstruction[5])


def test_a_prefix_of_the_layers_is_a_coarser_signal():
    model = build("stochastic", "hybrid")
    tokenizer = Tokenizer(model)
    tokens = tokenizer.encode([random_signal(16, 24)])
    for layers in (1, 2, 5):
        expected = model.decode([layer[None] for layer in tokens[0].codes], layers)
        short = Tokens(tokens[0].codes[:layers], tokens[0].size)
        for given in (tokens, [short]):
            (decoded,) = tokenizer.decode_signals(given, layers)
            torch.testing.assert_close(decoded, expected[0], atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------ items


@pytest.fixture(scope="module")
def pictures():
    """A tokenizer of pictures of 16²."""
    model = build("stochastic", "hybrid")
    model.data = ImageConfig(size=16)
    return Tokenizer(model)


@pytest.mark.parametrize("whole", [False, True])
def test_a_picture_is_the_same_as_path_bytes_pillow_and_array(pictures, tmp_path, whole):
    pixels = noise(23, 40)
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels))
    items = [path, str(path), png(pixels), Image.fromarray(pixels), pixels]
    tokens = pictures.encode(items, whole)
    assert all(same_tokens([one], tokens[:1]) for one in tokens)
    assert tokens[0].size == ((23, 40) if whole else (16, 16))
    (picture,) = pictures.decode(tokens[:1])
    assert isinstance(picture, Image.Image) and picture.size == tokens[0].size[::-1]


def test_a_sound_is_the_same_as_samples_and_as_a_file(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    model = build("ema", "residual", axes=1, channels=1, started=False)
    model.data = AudioConfig(rate=8000, seconds=0.1, frontend=WaveConfig())
    samples = np.random.default_rng(0).integers(-9000, 9000, 1234, dtype=np.int16)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 8000)
    tokens = Tokenizer(model).encode([path, samples, (samples / 32768).astype(np.float32)])
    assert same_tokens(tokens[:1] * 3, tokens)
    (decoded,) = Tokenizer(model).decode(tokens[:1])
    assert decoded.shape == (1234,)


@pytest.mark.parametrize(
    "item, message",
    [
        (7, "expected the path or the bytes of a file, or a picture of Pillow or a uint8 array"),
        (np.zeros((8, 8)), r"a uint8 array \[H, W, C\], not float64 \[8, 8\]"),
        (torch.zeros(1, 8, 8), r"a signal has shape \[1, 8, 8\]; expected \[3, H, W\]"),
        (torch.zeros(8, 8), r"a signal has shape \[8, 8\]; expected \[3, H, W\]"),
        (torch.full((3, 8, 8), 255.0), "expected floats in"),
    ],
)
def test_what_is_no_item_is_refused(pictures, item, message):
    with pytest.raises(ValueError, match=message):
        pictures.encode([item])


@pytest.mark.parametrize(
    "item", ["a.png", b"abc", Image.new("RGB", (8, 8)), np.zeros((2, 8, 8, 3))]
)
def test_one_item_in_no_list_is_refused(pictures, item):
    """An array would be read row by row, and a path letter by letter."""
    with pytest.raises(ValueError, match="expected a list, be it of one"):
        pictures.encode(item)


def test_tokens_in_no_list_are_refused_and_codes_of_numpy_decode(pictures):
    (tokens,) = pictures.encode([noise(16, 16)])
    with pytest.raises(ValueError, match="tokens are a Tokens; expected a list"):
        pictures.decode(tokens)
    plain = Tokens(tuple(layer.numpy().astype(np.uint8) for layer in tokens.codes), tokens.size)
    assert torch.equal(*pictures.decode_signals([tokens, plain]))


@pytest.mark.parametrize(
    "tokens, layers, message",
    [
        (Tokens((torch.zeros(2, 2, dtype=torch.long),), (16, 16)), None, "codes of shapes"),
        (Tokens((torch.zeros(2, 3, dtype=torch.long),), (16, 16)), 1, r"expected \[\[2, 2\]\]"),
        (
            Tokens((torch.zeros(2, 2, dtype=torch.long),), (16, 16)),
            9,
            "expected a whole number from 1 to 5",
        ),
        (Tokens((torch.full((2, 2), 99),), (16, 16)), 1, "99"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(pictures, tokens, layers, message):
    with pytest.raises(ValueError, match=message):
        pictures.decode_signals([tokens], layers)


def test_weights_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16; expected torch.float32"):
        Tokenizer(build("ema", "one").bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and TRITON_INTERPRET=0")
def test_a_gpu_gives_the_same_tokens_in_any_company():
    tokenizer = Tokenizer(build("stochastic", "hybrid").cuda())
    items = [random_signal(16 + 8 * (i % 3), 24, seed=i) for i in range(300)]
    together = tokenizer.encode(items)
    assert same_tokens(one_by_one(tokenizer, items[:9]), together[:9])
    assert same_tokens(tokenizer.encode(items[::-1]), together[::-1])
