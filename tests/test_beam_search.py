"""The beam search for one code per codebook whose sum is near."""

from itertools import pairwise

import pytest
import torch
from kernel_backends import ROWS_PER_BLOCK, set_rows_per_block

from hqvae.quantize.kernels import beam_search, blocked, candidates, nearest


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


# ------------------------------------------------------------------------------ candidates


def every_sum(codebooks):
    """All codes, and their sums."""
    codes = torch.cartesian_prod(*(torch.arange(len(codebook)) for codebook in codebooks))
    codes = codes.reshape(len(codes), len(codebooks))
    return codes, sum(codebook[codes[:, layer]] for layer, codebook in enumerate(codebooks))


@pytest.mark.parametrize("count", [1, 5, 42, 335, 336, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_candidates_of_a_beam_that_holds_all_are_the_nearest_sums(dtype, count):
    z = rows(100, dtype)
    codebooks = codebooks_of(dtype=dtype)
    every, sums = every_sum(codebooks)
    codes, errors = candidates(z, codebooks, count, beam_size=len(every))
    distances = (z.double().unsqueeze(1) - sums.double()).square().sum(2)
    order = distances.argsort(1)[:, :count]
    assert torch.equal(codes, every[order])
    torch.testing.assert_close(errors.double(), distances.gather(1, order), rtol=1e-5, atol=1e-6)
    assert (errors.diff(dim=1) >= 0).all() and errors.dtype == dtype


def test_candidates_of_one_codebook_are_the_nearest_codes():
    z = rows(100)
    (codebook,) = codebooks_of(1, 30)
    codes, _ = candidates(z, [codebook], 4)
    assert torch.equal(codes.squeeze(2), torch.cdist(z, codebook).argsort(1)[:, :4])
    assert torch.equal(codes[:, 0, 0], nearest(z, codebook))


def test_candidates_all_differ_and_each_has_the_error_of_its_sum():
    z = rows(100)
    codebooks = codebooks_of(3, 32)
    codes, errors = candidates(z, codebooks, 16)
    for column in range(16):
        exact = square_error(z, codebooks, codes[:, column])
        torch.testing.assert_close(errors[:, column], exact, rtol=1e-6, atol=0)
    assert all(len(of_row.unique(dim=0)) == 16 for of_row in codes)
    assert torch.equal(codes[:, 0], beam_search(z, codebooks, 16))


def test_the_nearest_candidate_is_never_worse_than_the_code_of_a_narrower_beam():
    z = rows(300)
    codebooks = codebooks_of(4, 32)
    greedy = square_error(z, codebooks, beam_search(z, codebooks, 8))
    assert (candidates(z, codebooks, 2, beam_size=8)[1][:, 0] <= greedy * (1 + 1e-6)).all()


def test_of_equal_errors_the_smaller_codes_come_first():
    codebooks = [torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[0.0], [-1.0], [1.0]])]
    codes, errors = candidates(torch.zeros(1, 1), codebooks, 9)
    assert errors.tolist() == [[0, 0, 0, 1, 1, 1, 1, 4, 4]]
    expected = [[0, 1], [1, 0], [2, 1], [0, 0], [1, 1], [1, 2], [2, 0], [0, 2], [2, 2]]
    assert codes[0].tolist() == expected


@pytest.mark.parametrize("rows_per_block", ROWS_PER_BLOCK)
def test_the_candidates_of_a_row_are_its_own(rows_per_block, monkeypatch):
    z = rows(100)
    codebooks = codebooks_of(4, 32)
    whole = candidates(z, codebooks, 6)
    parts = [candidates(part, codebooks, 6) for part in z.split(7)]
    set_rows_per_block(monkeypatch, rows_per_block)
    again = candidates(z, codebooks, 6)
    for index, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[index] for part in parts]), expected)
        assert torch.equal(again[index], expected)
    assert candidates(z[:0], codebooks, 6)[0].shape == (0, 6, 4)


def test_a_wide_beam_takes_a_few_rows_at_a_time():
    blocks = list(blocked._blocks(slice(0, 10), 2048 * 1024, torch.device("cpu"), 2048))
    assert {block.stop - block.start for block in blocks} == {2}


def test_no_candidates_are_refused():
    with pytest.raises(ValueError, match="count=0: expected at least 1"):
        candidates(torch.zeros(2, 4), codebooks_of(), 0)


def largest_of(scores, count):
    """The places that Numba finds, which must be those of a stable sort."""
    passes_numba = pytest.importorskip("hqvae.quantize.kernels.passes_numba")
    places = torch.empty(len(scores), count, dtype=torch.long)
    passes_numba.largest(scores, places)
    return places, torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
@pytest.mark.parametrize("width", [40, 255, 256, 257, 700])
def test_the_largest_scores_are_found_in_order(width, count):
    scores = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    scores[:, 5] = -torch.inf
    assert torch.equal(*largest_of(scores, count))


def test_of_equal_scores_the_first_are_found():
    scores = torch.randint(3, (50, 600), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(*largest_of(scores, 8))


def test_zeros_of_both_signs_are_equal():
    scores = torch.tensor([[-0.0, 0.0, -1.0, -0.0], [0.0, -0.0, -2.0, -1.0]])
    assert torch.equal(*largest_of(scores, 3))


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_are_not_numbers_still_give_places(sign):
    places, _ = largest_of(torch.full((4, 300), torch.nan).copysign(torch.tensor(sign)), 8)
    assert ((places >= 0) & (places < 300)).all()
    assert all(len(set(row)) == 8 for row in places.tolist())
