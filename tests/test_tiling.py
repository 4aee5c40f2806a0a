"""Signals of any length, and batches of several, give the tokens of each signal whole and alone."""

import threading

import pytest
import torch

from conftest import FAMILY, build, signals
from hqvae.tiling import (
    decode_chunked,
    decode_padded,
    encode_chunked,
    encode_padded,
    receptive_margin,
)


@pytest.fixture(params=[1, 2], ids=["one axis", "two axes"])
def axes(request):
    return request.param


def long_signal(axes, length, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, *[16] * (axes - 1), length, generator=generator) * 2 - 1


def same(codes, others):
    return all(torch.equal(one, other) for one, other in zip(codes, others, strict=True))


# -------------------------------------------------------------------------- several lengths


@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_neither_padding_nor_batch_mates_change_a_token(family, axes):
    """Signals of several lengths in one batch, with rubbish where they have ended."""
    model = build(*family, axes=axes).eval()
    x, lengths = signals(4, 48, axes, seed=2), [48, 41, 8, 1]
    alone = [model.encode(x[i : i + 1, ..., :length]) for i, length in enumerate(lengths)]
    rubbish = x.clone()
    for i, length in enumerate(lengths):
        rubbish[i, ..., length:] = 0.9 * (-1) ** i
    padded = encode_padded(model, rubbish, lengths)
    decoded = decode_padded(model, padded, lengths, size=x.shape[2:])
    for i, (codes, length) in enumerate(zip(alone, lengths)):
        for layer, of_layer in enumerate(codes):
            count = of_layer.shape[-1]
            assert torch.equal(padded[layer][i, ..., :count], of_layer[0]), (length, layer)
            assert not padded[layer][i, ..., count:].any()
        expected = model.decode(codes, size=[*x.shape[2:-1], length])[0]
        assert torch.allclose(decoded[i, ..., :length], expected, atol=1e-5)
        assert not decoded[i, ..., length:].any()
    assert not same(model.encode(rubbish), padded)  # without lengths rubbish is seen


def test_a_prefix_of_the_layers_is_decoded_from_several_lengths(axes):
    model = build("stochastic", "hybrid", axes=axes).eval()
    x, lengths = signals(4, 48, axes, seed=2), [48, 41, 8, 1]
    codes = encode_padded(model, x, lengths)
    decoded = decode_padded(model, codes, lengths, layers=1, size=x.shape[2:])
    for i, length in enumerate(lengths):
        alone = model.encode(x[i : i + 1, ..., :length])
        expected = model.decode(alone, 1, [*x.shape[2:-1], length])[0]
        assert torch.allclose(decoded[i, ..., :length], expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [[16, 16], [0, 16, 16, 16], [17, 16, 16, 16]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    model, x = build("ema", "one", axes=1).eval(), signals(axes=1)
    codes = model.encode(x)
    with pytest.raises(ValueError, match=r"expected 4 from 1 to 16"):
        encode_padded(model, x, lengths)
    with pytest.raises(ValueError, match=r"expected 4 from 1 to 16"):
        decode_padded(model, codes, lengths)


@pytest.mark.parametrize("verb", ["encode", "margin"])
def test_threads_that_share_a_model_do_not_disturb_each_other(verb):
    """One thread is inside its masked convolutions while another encodes, or asks for a margin."""
    model, x = build("ema", "hybrid", axes=1).eval(), signals(axes=1, size=40)
    lengths = [5, 9, 17, 33]
    ask = {"encode": lambda: model.encode(x), "margin": lambda: receptive_margin(model)}[verb]
    alone = (encode_padded(model, x, lengths), ask())
    inside, asked = threading.Event(), threading.Event()
    found = []

    def wait(module, inputs):
        if threading.current_thread() is masked:
            inside.set()
            assert asked.wait(60)

    hook = next(iter(model.encoder.modules())).register_forward_pre_hook(wait)
    masked = threading.Thread(target=lambda: found.append(encode_padded(model, x, lengths)))
    masked.start()
    assert inside.wait(60)
    other = ask()
    asked.set()
    masked.join(60)
    hook.remove()
    if verb == "margin":
        assert other == alone[1]
    else:
        assert all(map(torch.equal, other, alone[1]))
    assert all(map(torch.equal, found[0], alone[0]))


def test_the_networks_are_as_before_after_lengths():
    model, x = build("ema", "one", axes=1).eval(), signals(axes=1)
    before = model.encode(x)
    encode_padded(model, x, [3, 4, 5, 16])
    decode_padded(model, before, [3, 4, 5, 16])
    assert same(before, model.encode(x))


# ----------------------------------------------------------------------------- long signals


@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_chunks_give_the_tokens_and_the_samples_of_the_whole(family, axes):
    """Of a length that is no multiple of the stride, and longer than any margin."""
    model = build(*family, axes=axes).eval()
    x = long_signal(axes, 2 * receptive_margin(model) + 5 * model.stride + 3)
    codes = model.encode(x)
    whole = model.decode(codes, size=x.shape[2:])
    for chunk in (50, 150):
        assert same(encode_chunked(model, x, chunk), codes), chunk
        pieces = list(decode_chunked(model, codes, chunk, size=x.shape[2:]))
        joined = torch.cat(pieces, -1)
        assert joined.shape == whole.shape and torch.allclose(joined, whole, atol=1e-5)
    first = torch.cat(list(decode_chunked(model, codes, 40, layers=1)), -1)
    assert torch.allclose(first, model.decode(codes, layers=1), atol=1e-5)


def test_nothing_beyond_the_margin_changes_a_code():
    """The margin is large enough: what differs outside it is not seen. And it is not absurd."""
    model = build("stochastic", "hybrid", axes=1).eval()
    margin, middle = receptive_margin(model), 64
    x = long_signal(1, middle + 2 * margin)
    y = x.clone()
    y[..., : middle // 2 - model.stride] *= -1
    first = (middle // 2 + margin) // model.stride * model.stride
    for place, one, other in zip(model.config.layers, model.encode(x), model.encode(y)):
        inner = slice(first // place.stride, None)
        assert torch.equal(one[..., inner], other[..., inner])
        assert not torch.equal(one, other)
    assert margin % model.stride == 0 and margin < 400


def test_nothing_beyond_the_margin_changes_a_sample():
    model = build("stochastic", "hybrid", axes=1).eval()
    margin = receptive_margin(model)
    codes = model.encode(long_signal(1, 64 + 2 * margin))
    others = [layer.clone() for layer in codes]
    for place, layer in zip(model.config.layers, others):
        end = 24 // place.stride
        layer[..., :end] = (layer[..., :end] + 1) % place.codebook_size
    one, other = model.decode(codes), model.decode(others)
    torch.testing.assert_close(one[..., 24 + margin :], other[..., 24 + margin :])
    assert not torch.allclose(one, other, atol=1e-3)


def test_only_a_chunk_and_its_margins_are_seen_at_once(monkeypatch):
    model = build("ema", "two", axes=1).eval()
    margin = receptive_margin(model)
    sizes, features = [], model.features
    monkeypatch.setattr(model, "features", lambda x: sizes.append(x.shape[-1]) or features(x))
    encode_chunked(model, long_signal(1, 8000), 160)
    sizes = sizes[1:]  # the first is that of the margin's probe
    assert max(sizes) == 160 + 2 * margin and len(sizes) >= 50


def test_a_chunk_of_nothing_is_refused():
    model, x = build("ema", "one", axes=1).eval(), signals(axes=1)
    with pytest.raises(ValueError, match="chunk=0: expected at least 1"):
        encode_chunked(model, x, 0)
    with pytest.raises(ValueError, match="chunk=0: expected at least 1"):
        list(decode_chunked(model, model.encode(x), 0))
