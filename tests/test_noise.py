"""Noise as a function of (seed, row, code): distribution, independence, resolution, repetition."""

import math

import numpy as np
import pytest
import torch

from hqvae.quantize import Noise, Stream
from hqvae.quantize.noise import code_hashes, log_exponential, row_hashes

SEEDS = [0, 1, 2, -5, 2**62 - 1, int(Noise.of(3, 4).seed)]
CPU = torch.device("cpu")


def gumbel(seed: int, rows: int = 256, codes: int = 256, first: int = 0) -> torch.Tensor:
    return -log_exponential(
        row_hashes(seed, first, rows, CPU), code_hashes(seed, codes, CPU)
    ).double()


def distance(sample: torch.Tensor, cdf) -> float:
    """Kolmogorov and Smirnov's distance times √n: above 1.95 once in a thousand samples."""
    x = np.sort(sample.flatten().numpy())
    n, expected = len(x), cdf(x)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()) * math.sqrt(n))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation times √n: a standard normal number where a and b are independent."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) * math.sqrt(
        a.numel()
    )


def with_bits(bits: list[int]) -> torch.Tensor:
    """E where the hash of (row, code) has the given 32 bits: its steps are undone."""
    rows = []
    for x in bits:
        x ^= x >> 16
        x = x * pow(0x846CA68B, -1, 1 << 32) % (1 << 32)
        x ^= (x >> 15) ^ (x >> 30)
        x = x * pow(0x7FEB352D, -1, 1 << 32) % (1 << 32)
        rows.append(x - (x >> 31 << 32))
    hashes, no_code = torch.tensor(rows, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    return log_exponential(hashes, no_code).squeeze(1).double().exp()


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_gumbel_and_its_exponent_exponential(seed):
    g = gumbel(seed)
    assert distance(g, lambda x: np.exp(-np.exp(-x))) < 1.95
    assert distance(torch.exp(-g), lambda x: 1 - np.exp(-x)) < 1.95


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_and_every_code_alone_is_gumbel(seed):
    g = gumbel(seed, 1000, 1000)
    for i in (0, 1, 999):
        assert distance(g[i], lambda x: np.exp(-np.exp(-x))) < 1.95
        assert distance(g[:, i], lambda x: np.exp(-np.exp(-x))) < 1.95


def test_the_distance_tells_noise_of_another_scale():
    assert distance(1.05 * gumbel(0), lambda x: np.exp(-np.exp(-x))) > 1.95


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("apart", [1, 2, 8, 64])
def test_rows_and_codes_are_uncorrelated(seed, apart):
    g = gumbel(seed)
    for h in (g, g.square()):
        assert abs(correlation(h[apart:], h[:-apart])) < 4
        assert abs(correlation(h[:, apart:], h[:, :-apart])) < 4
        assert abs(correlation(h[apart:, apart:], h[:-apart, :-apart])) < 4
    assert abs(correlation(g[:128, 128:], g[128:, :128].T)) < 4


@pytest.mark.parametrize(
    "seed", [*SEEDS, *range(3, 20), *[int(Noise.of(0, step).seed) for step in range(8)]]
)
def test_no_row_has_the_hash_of_a_code(seed):
    """Their exclusive or would be 0, the largest noise: that row would always draw that code."""
    assert not torch.isin(row_hashes(seed, 0, 256, CPU), code_hashes(seed, 256, CPU)).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_contrasts_of_rows_and_codes_are_uncorrelated(seed):
    """Row and code meet in an exclusive or: three corners of a square must not tell the fourth."""
    g = gumbel(seed)
    signs = (g > -math.log(math.log(2))).double() * 2 - 1
    fours = signs[::2, ::2] * signs[1::2, ::2] * signs[::2, 1::2] * signs[1::2, 1::2]
    assert abs(fours.sum()) < 4 * math.sqrt(fours.numel())


@pytest.mark.parametrize("seed", [0, 1, 12, int(Noise.of(3, 4).seed)])
@pytest.mark.parametrize("other", [1, 2, 1 << 20, -(1 << 40)])
def test_seeds_are_uncorrelated(seed, other):
    a, b = gumbel(seed), gumbel(seed + other)
    assert abs(correlation(a, b)) < 4 and not torch.equal(a, b)
    flipped = gumbel(
        seed ^ 1
    )  # the same hashes of rows, two by two exchanged: only the codes' hashes tell the seeds apart
    assert abs(correlation(a[1::2][:-1], flipped[2::2])) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_every_code_wins_equally_often_whoever_won_the_row_before(seed):
    winner = gumbel(seed, 16385, 16).argmax(1)
    pairs = torch.bincount(winner[1:] * 16 + winner[:-1], minlength=256).double()
    expected, dof = len(winner[1:]) / 256, 255
    assert abs((pairs - expected).square().sum() / expected - dof) < 4 * math.sqrt(2 * dof)


def test_the_same_seed_draws_the_same_whole_or_in_parts():
    whole = gumbel(7, 100)
    assert torch.equal(whole, gumbel(7, 100))
    assert torch.equal(whole[33:60], gumbel(7, 27, first=33))
    assert torch.equal(whole[:, :50], gumbel(7, 100, 50))
    out = torch.empty(100, 256)
    assert log_exponential(
        row_hashes(7, 0, 100, CPU), code_hashes(7, 256, CPU), out
    ) is out and torch.equal(out.double(), -whole)


def test_rows_far_on_in_a_run_are_no_repetition():
    first = row_hashes(7, 0, 1000, CPU)
    for start in (1 << 31, 1 << 32, 1 << 40):
        assert not torch.isin(row_hashes(7, start, 1000, CPU), first).any()


def test_the_tail_that_decides_has_31_bits():
    """The smallest E are j / 2^31, each its own float: the largest Gumbel numbers stay apart."""
    bits = [1, 2, 3, 5, 100, 101, 1000, 1001, 65535, 65537]
    e = with_bits(bits)
    torch.testing.assert_close(
        e, -torch.log1p(-torch.tensor(bits, dtype=torch.float64) / 2**31), rtol=3e-6, atol=0
    )
    assert (e.diff() > 0).all() and e[0] < 2**-30
    assert len(with_bits(list(range(1, 1000))).unique()) == 999


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0, 2.0**-32),
        (0x7FFFFFFF, 24 * math.log(2)),
        (0xFFFFFFFF, 24 * math.log(2)),
        (0x80000000, 2.0**-32),
        (0x40000000, math.log(2)),
    ],
)
def test_noise_is_finite_at_its_ends(bits, expected):
    assert float(with_bits([bits])) == pytest.approx(expected, rel=3e-6)


def test_noise_is_finite_everywhere():
    g = gumbel(11, 2048, 2048)
    assert g.isfinite().all() and g.max() > 12 and g.min() > -math.log(24 * math.log(2)) - 1e-5


def test_folds_are_streams_of_their_own_at_the_same_place():
    noise = Noise(5, samples=3)
    seeds = {int(noise.fold(i).seed) for i in (*Stream, *range(100))} | {noise.seed}
    assert len(seeds) == len(Stream) + 101
    assert noise.fold(1) == noise.fold(1)
    assert noise.fold(1).samples == 3
    assert noise.fold(1).fold(2) != noise.fold(2).fold(1)
    assert abs(correlation(gumbel(int(noise.fold(0).seed)), gumbel(int(noise.fold(1).seed)))) < 4


def test_a_named_stream_is_none_of_a_layer_and_nothing_else_is_negative():
    assert len(set(Stream)) == len(Stream.__members__)  # no alias
    assert all(stream < 0 for stream in Stream)
    with pytest.raises(ValueError, match="stream=-2: expected an index from 0 on"):
        Noise(5).fold(-2)


def test_the_hashes_of_codes_are_not_those_of_a_layers_rows():
    codes = code_hashes(5, 1000, CPU)
    for stream in (0, 1, 2, *(stream for stream in Stream if stream != Stream.CODES)):
        assert not torch.equal(codes, row_hashes(Noise(5).fold(stream).seed, 0, 1000, CPU))


def test_numbers_make_a_stream_by_value_and_order():
    assert Noise.of(3, 4) == Noise.of(3, 4) and Noise.of(3, 4, samples=8).samples == 8
    streams = {int(Noise.of(a, b).seed) for a in range(40) for b in range(40)} | {
        int(Noise.of(a).seed) for a in range(40)
    }
    assert len(streams) == 40 * 41
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in streams)


def test_torchs_seed_fixes_a_fresh_stream():
    torch.manual_seed(3)
    first, second = Noise.draw(), Noise.draw()
    torch.manual_seed(3)
    assert Noise.draw() == first != second


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2)])
def test_gaussian_noise_of_a_sample_does_not_depend_on_batch_mates(shape):
    whole = Noise(5).gaussian(torch.zeros(shape))
    assert whole.shape == shape
    for b in range(6):
        assert torch.equal(Noise(5, samples=b).gaussian(torch.zeros(1, *shape[1:]))[0], whole[b])
    assert torch.equal(Noise(5, samples=2).gaussian(torch.zeros(3, *shape[1:])), whole[2:5])
    assert Noise(5).gaussian(torch.zeros(0, *shape[1:])).shape == (0, *shape[1:])
    assert Noise(5).gaussian(torch.zeros(shape, dtype=torch.float64)).dtype == torch.float64


def test_gaussian_noise_is_standard_normal_and_uncorrelated():
    g = Noise(5).gaussian(torch.zeros(64, 1000)).double()
    assert distance(g, lambda x: torch.special.ndtr(torch.from_numpy(x)).numpy()) < 1.95
    assert abs(correlation(g[1:], g[:-1])) < 4 and abs(correlation(g[:, 1:], g[:, :-1])) < 4
    assert (
        abs(correlation(g, Noise(6).gaussian(g))) < 4
        and abs(correlation(g, Noise(5).fold(0).gaussian(g))) < 4
    )
