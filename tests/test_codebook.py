"""Facts about codebooks: lookup and nearest are inverses, and every way the vectors move."""

import copy
import math

import pytest
import torch

from hqvae.quantize import Codebook, Noise, flatten_positions, unflatten_positions

SHAPES = [(6, 5), (4, 5, 7), (3, 5, 4, 6)]  # none, one and two axes
DIM, K = 5, 8


def features(shape, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(dim: int = DIM, codebook_size: int = K) -> Codebook:
    torch.manual_seed(0)
    return Codebook(dim, codebook_size).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_come_second_and_positions_keep_their_place(shape):
    z_e, codebook = features(shape), make()
    codes = codebook.nearest(z_e)
    z = codebook.lookup(codes)
    assert codes.shape == (shape[0], *shape[2:]) and codes.dtype == torch.long
    last = tuple(size - 1 for size in (shape[0], *shape[2:]))
    for place in [(0,) * (len(shape) - 1), last]:
        vector, code = z_e.movedim(1, -1)[place], codes[place]
        assert code == (vector - codebook.vectors).square().sum(1).argmin()
        assert torch.equal(z.movedim(1, -1)[place], codebook.vectors[code])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flatten_and_unflatten_are_inverses(shape):
    z = features(shape)
    rows = flatten_positions(z)
    assert torch.equal(unflatten_positions(rows, z), z)
    assert torch.equal(rows[0], z.movedim(1, -1).reshape(-1, DIM)[0])
    # positions of one sample stay together
    assert torch.equal(flatten_positions(z[:1]), rows[: len(rows) // shape[0]])


@pytest.mark.parametrize("shape", [(K,), (2, K), (2, 4, K)], ids=str)
def test_nearest_of_lookup_is_the_code(shape):
    codebook, codes = make(), torch.arange(K).expand(shape)
    assert torch.equal(codebook.nearest(codebook.lookup(codes)), codes)
    assert codebook.lookup(codes).shape == (shape[0], DIM, *shape[1:])


@pytest.mark.parametrize("wrong", [-1, K])
def test_lookup_names_the_code_out_of_range(wrong):
    with pytest.raises(ValueError, match=rf"{wrong}.*0 to {K - 1}"):
        make().lookup(torch.tensor([[0, wrong]]))


@pytest.mark.parametrize(
    ("dim", "codebook_size", "message"),
    [(4, 1, "codebook_size is 1"), (4, 0, "codebook_size is 0"), (0, 4, "dim is 0")],
)
def test_too_few_codes_or_dimensions_are_named(dim, codebook_size, message):
    with pytest.raises(ValueError, match=message):
        Codebook(dim, codebook_size)


# ------------------------------------------------------------------------- moving averages


def on_a_line() -> Codebook:
    """Three codes: 0, 1 and −4."""
    codebook = make(1, 3)
    codebook.vectors.copy_(torch.tensor([[0.0], [1.0], [-4.0]]))
    return codebook


def update(codebook: Codebook, rows, codes, restart: bool = False, seed: int = 1) -> int:
    return codebook.update(rows, codes, decay=0.5, restart=restart, noise=Noise(seed))


def test_update_is_the_moving_average_computed_by_hand():
    codebook = on_a_line()
    counts, sums = [1.0, 1.0, 1.0], [0.0, 1.0, -4.0]
    for rows, codes in [([0.2, 0.4, 1.4], [0, 0, 1]), ([0.1, -3.0, 0.9], [0, 2, 1])]:
        z = torch.tensor(rows).unsqueeze(1)
        assert codebook.nearest(z).tolist() == codes
        assert update(codebook, z, torch.tensor(codes)) == 0
        for k in range(3):
            own = [row for row, code in zip(rows, codes) if code == k]
            counts[k] = 0.5 * counts[k] + 0.5 * len(own)
            sums[k] = 0.5 * sums[k] + 0.5 * sum(own)
        smoothed = [(count + 1e-5) / (sum(counts) + 3e-5) * sum(counts) for count in counts]
        torch.testing.assert_close(codebook.counts, torch.tensor(counts))
        expected = torch.tensor([m / n for m, n in zip(sums, smoothed)])
        torch.testing.assert_close(codebook.vectors.squeeze(1), expected)
    # and as numbers: N = (1.25, 1, 0.75), m = (0.2, 1.05, −2.5), but for the smoothing
    expected = torch.tensor([0.2 / 1.25, 1.05, -2.5 / 0.75])
    torch.testing.assert_close(codebook.vectors.squeeze(1), expected, rtol=1e-4, atol=1e-4)


def test_the_same_batch_again_and_again_leads_to_its_means():
    codebook = on_a_line()
    z, codes = torch.tensor([[0.2], [0.4], [1.4]]), torch.tensor([0, 0, 1])
    for _ in range(30):
        update(codebook, z, codes)
    expected = torch.tensor([[0.3], [1.4]])
    torch.testing.assert_close(codebook.vectors[:2], expected, rtol=1e-4, atol=1e-4)
    assert codebook.vectors.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_a_restarted_code_is_a_row_of_the_batch_and_stays_so(seed):
    """The averages cannot overwrite it, in the same step or the next."""
    z = torch.tensor([[0.2], [0.4], [1.4], [1.6]] * 6)
    codes = torch.tensor([0, 0, 1, 1] * 6)
    codebook, without = on_a_line(), on_a_line()
    assert update(codebook, z, codes, restart=True, seed=seed) == 1
    assert update(without, z, codes, restart=False, seed=seed) == 0
    placed = codebook.vectors[2].clone()
    assert placed in z and codebook.counts[2] == 1
    for name in ("vectors", "counts"):  # codes with a count of 1 or more keep their averages
        assert torch.equal(getattr(codebook, name)[:2], getattr(without, name)[:2])
    assert without.counts[2] == 0.5 and without.vectors[2] not in z
    update(codebook, z, codes, restart=False)  # nothing chose it: its mean stays
    torch.testing.assert_close(codebook.vectors[2], placed, rtol=1e-4, atol=0)


def test_in_small_batches_an_eighth_of_the_even_share_is_enough_to_stay():
    """By a threshold of 1 most of a large codebook would be put back at every step."""
    z = torch.tensor([[0.2], [0.4], [1.4]])
    codes = torch.tensor([0, 0, 1])  # an even share of 1
    codebook = on_a_line()
    restarts = [update(codebook, z, codes, restart=True, seed=seed) for seed in range(4)]
    assert restarts == [0, 0, 0, 1]  # N_3 = 1/2, 1/4, 1/8, 1/16
    assert codebook.counts[2] == 1 and codebook.vectors[2] in z


def test_restarts_differ_between_noises_and_repeat_with_one():
    z, codes, placed = features((64, 1)), torch.zeros(64, dtype=torch.long), []
    for seed in (1, 1, 2):
        codebook = on_a_line()
        assert update(codebook, z, codes, restart=True, seed=seed) == 2
        placed.append(codebook.vectors[1:].clone())
    assert torch.equal(placed[0], placed[1]) and not torch.equal(placed[0], placed[2])


def test_vectors_and_counts_move_in_place():
    codebook = on_a_line()
    places = {name: values.data_ptr() for name, values in codebook.state_dict().items()}
    update(codebook, torch.tensor([[0.2]]), torch.tensor([0]), restart=True)
    codebook.init_kmeans(features((16, 1, 4)), Noise(1))
    codebook.set_counts(torch.tensor([0, 1, 1]))
    assert {name: v.data_ptr() for name, v in codebook.state_dict().items()} == places


# -------------------------------------------------------------------------- initialisation


def test_with_as_many_rows_as_codes_each_row_is_a_code():
    codebook, z_e = make(), features((2, DIM, 4), seed=3)
    codebook.init_kmeans(z_e, Noise(1))
    rows = flatten_positions(z_e)
    distance, at = torch.cdist(codebook.vectors, rows).min(1)
    assert len(at.unique()) == K and (distance < 0.1 * 3 * DIM**0.5).all()  # but for the jitter


def test_started_from_fewer_rows_than_codes_every_row_has_codes():
    codebook, rows = make(codebook_size=7), 10 * features((3, DIM))
    codebook.init_kmeans(rows, Noise(1))
    used = torch.bincount(torch.cdist(codebook.vectors, rows).argmin(1), minlength=3)
    assert sorted(used.tolist()) == [2, 2, 3]
    assert len(codebook.vectors.unique(dim=0)) == 7  # codes that begin on one row part


def test_kmeans_leaves_every_code_near_the_mean_of_what_is_nearest_to_it():
    """None is left without, and they are nearer than random features are."""
    codebook, z_e = make(), features((64, DIM, 8), seed=3)
    codebook.init_kmeans(z_e, Noise(1))
    for _ in range(20):
        codebook.refine_kmeans(z_e, Noise(1))
    rows, codes = flatten_positions(z_e), codebook.nearest(z_e).flatten()
    for code in range(K):
        torch.testing.assert_close(codebook.vectors[code], rows[codes == code].mean(0))
    error = torch.cdist(rows, codebook.vectors).amin(1).square().mean()
    random = torch.cdist(rows, rows[:K]).amin(1).square().mean()
    assert error < 0.9 * random


def test_refinement_goes_on_from_the_vectors_and_reseeds_idle_ones():
    z_e = features((60, DIM, 8), seed=3)
    codebook = make()
    codebook.init_kmeans(z_e, Noise(1))
    before = codebook.vectors.clone()
    codebook.vectors[0] = 1000.0
    codebook.refine_kmeans(z_e, Noise(1))
    assert codebook.vectors.abs().max() < 10
    assert torch.cdist(codebook.vectors[1:], before[1:]).diagonal().mean() < 1.0


def test_counts_are_those_of_one_step_and_at_least_one():
    codebook, codes = make(), torch.tensor([[0] * 9, [1] * 9])
    codebook.set_counts(codes, steps=3)
    assert codebook.counts.tolist() == [3.0, 3.0, *[1.0] * 6]


def test_kmeans_leaves_no_code_on_a_heavy_background():
    """Nearly all features are one: idle codes go where the error is, not onto the heap again."""
    torch.manual_seed(0)
    z_e = torch.cat([torch.zeros(19_000, DIM), torch.randn(1000, DIM)])
    codebook = make(codebook_size=100)
    codebook.init_kmeans(z_e, Noise(1))
    codebook.set_counts(codebook.nearest(z_e))
    assert len(codebook.nearest(z_e).unique()) > 95
    # so that no restart undoes the start
    assert codebook.counts.max() > 18_000 and codebook.counts.min() >= 1


def test_kmeans_does_not_put_codes_on_every_feature_there_is():
    """Few features, often repeated: residual layers need something left to start from."""
    z_e, codebook = features((3, DIM)).repeat(50, 1), make(codebook_size=7)
    codebook.init_kmeans(z_e, Noise(1))
    assert torch.cdist(z_e, codebook.vectors).amin() > 1e-4


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
@pytest.mark.parametrize("verb", ["init_kmeans", "refine_kmeans"])
def test_nothing_starts_from_constant_or_broken_features(verb, value):
    codebook = make()
    before = copy.deepcopy(codebook.state_dict())
    with pytest.raises(ValueError, match="constant or not finite"):
        getattr(codebook, verb)(torch.full((4, DIM, 7), value), Noise(1))
    assert all(torch.equal(before[name], value) for name, value in codebook.state_dict().items())
