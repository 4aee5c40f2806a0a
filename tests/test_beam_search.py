"""The beam search for one code per codebook whose sum is near."""

from itertools import pairwise

import pytest
import torch
from kernel_backends import ROWS_PER_BLOCK, set_rows_per_block

from hqvae.quantize.kernels import beam_search, nearest


def rows(count, dtype=torch.float32):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


def codebooks_of(layers=3, codes=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(codes + layer, 4, generator=generator, dtype=dtype) / (layer + 1)
        for layer in range(layers)
    ]


def square_error(z, codebooks, codes):
    total = sum(codebook[code] for codebook, code in zip(codebooks, codes.unbind(1)))
    return (z - total).square().sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_beam_as_wide_as_all_sums_finds_the_nearest_sum(dtype):
    z = rows(200, dtype)
    codebooks = codebooks_of(dtype=dtype)
    every = torch.cartesian_prod(*(torch.arange(len(codebook)) for codebook in codebooks))
    sums = sum(codebook[every[:, layer]] for layer, codebook in enumerate(codebooks))
    assert torch.equal(beam_search(z, codebooks, 42), every[torch.cdist(z, sums).argmin(1)])


def test_a_beam_of_one_takes_the_nearest_code_layer_by_layer():
    z = rows(300)
    codebooks = codebooks_of()
    codes = []
    residual = z
    for codebook in codebooks:
        codes.append(nearest(residual, codebook))
        residual = residual - codebook[codes[-1]]
    assert torch.equal(beam_search(z, codebooks, 1), torch.stack(codes, 1))


def test_a_wider_beam_has_a_smaller_error():
    z = rows(500)
    codebooks = codebooks_of(4, 32)
    errors = [
        float(square_error(z, codebooks, beam_search(z, codebooks, beam_size)).mean())
        for beam_size in (1, 2, 4, 8, 16)
    ]
    assert all(wider < narrower for narrower, wider in pairwise(errors))


@pytest.mark.parametrize("rows_per_block", ROWS_PER_BLOCK)
def test_the_beam_of_a_row_is_its_own(rows_per_block, monkeypatch):
    z = rows(100)
    codebooks = codebooks_of(4, 32)
    whole = beam_search(z, codebooks, 4)
    parts = [beam_search(part, codebooks, 4) for part in z.split(7)]
    assert torch.equal(torch.cat(parts), whole)
    set_rows_per_block(monkeypatch, rows_per_block)
    assert torch.equal(beam_search(z, codebooks, 4), whole)
    assert beam_search(z[:0], codebooks, 4).shape == (0, 4)


def test_an_empty_beam_is_refused():
    with pytest.raises(ValueError, match="beam_size=0"):
        beam_search(torch.zeros(2, 4), codebooks_of(), 0)
