"""Chunks of a long signal give the tokens and the samples of the whole, whatever the chunk, in bounded memory."""

import pytest
import torch
from conftest import FAMILY, build, signals
from hqvae.chunks import decode_in_chunks, encode_in_chunks, reach


@pytest.fixture(params=[1, 2], ids=["one axis", "two axes"])
def axes(request):
    return request.param


def long_signal(axes, length):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, *[16] * (axes - 1), length, generator=generator) * 2 - 1


@pytest.mark.parametrize("family", FAMILY, ids="-".join)
def test_chunks_give_the_tokens_and_the_samples_of_the_whole(family, axes):
    model = build(*family, axes=axes).eval()
    length = (
        2 * reach(model) + 5 * model.stride + 3
    )  # no multiple of the stride, and longer than any halo
    x = long_signal(axes, length)
    codes = model.encode(x)
    whole = model.decode(codes, size=x.shape[2:])
    for chunk in (50, 150):
        found = encode_in_chunks(model, x, chunk)
        assert all(torch.equal(one, other) for one, other in zip(found, codes, strict=True)), chunk
        pieces = list(decode_in_chunks(model, codes, chunk, size=x.shape[2:]))
        again = torch.cat(pieces, -1)
        assert again.shape == whole.shape and torch.allclose(again, whole, atol=1e-5)
    first = torch.cat(list(decode_in_chunks(model, codes, 40, layers=1)), -1)
    assert torch.allclose(first, model.decode(codes, layers=1), atol=1e-5)


def test_nothing_beyond_the_reach_changes_a_code_or_a_sample():
    """The halo is large enough: what differs outside it is not seen. And not absurdly large: some of it is seen."""
    model = build("stochastic", "hybrid", axes=1).eval()
    halo, middle = reach(model), 64
    x = long_signal(1, middle + 2 * halo)
    y = x.clone()
    y[..., : middle // 2 - model.stride] = -x[..., : middle // 2 - model.stride]
    inner = slice((middle // 2 + halo) // 8, None)
    assert all(torch.equal(a[..., inner.start * 8 // s :], b[..., inner.start * 8 // s :])
               for a, b, s in zip(model.encode(x), model.encode(y), (8, 8, 4, 4, 4)))  # fmt: skip
    assert halo % model.stride == 0 and halo < 400


def test_only_a_chunk_and_its_halo_are_seen_at_once(monkeypatch):
    model = build("ema", "two", axes=1).eval()
    seen, features = [], model.features
    monkeypatch.setattr(model, "features", lambda x: seen.append(x.shape[-1]) or features(x))
    halo = reach(model)
    seen.clear()
    encode_in_chunks(model, long_signal(1, 8000), 160)
    assert max(seen) == 160 + 2 * halo and len(seen) >= 50


def test_no_chunk_is_refused():
    model = build("ema", "one", axes=1).eval()
    with pytest.raises(ValueError, match="chunk=0: expected at least 1"):
        encode_in_chunks(model, signals(axes=1), 0)
