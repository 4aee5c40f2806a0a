"""Measures of codes as IDs: known values, limits, chance levels, and no say of the order."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqvae.metrics import groups as grouping
from hqvae.metrics import ids, measure_ids, neighbours
from hqvae.metrics.groups import group_rows, hash_rows, occurrences
from hqvae.metrics.neighbours import nearest_items, sample_rows


def random_codes(items, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (items,), generator=generator) for size in sizes], 1)


def random_vectors(items, width=4, seed=0):
    return torch.randn(items, width, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ known values


def test_known_values():
    codes = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1], [2, 1], [2, 3]])
    measures = measure_ids(codes, (4, 5))
    collisions = measures.collisions
    assert (collisions.items, collisions.alone, collisions.largest) == (6, 0.5, 3)
    assert collisions.collisions == pytest.approx(1 - 4 / 6)
    first, second = measures.layers
    assert (first.codebook_size, first.used) == (4, 2)
    entropy = -(4 / 6) * math.log(4 / 6) - (2 / 6) * math.log(2 / 6)
    assert first.perplexity == pytest.approx(math.exp(entropy))
    # Counts 0 0 2 4: (−3·0 − 1·0 + 1·2 + 3·4) / (4 · 6)
    assert first.gini == pytest.approx(14 / 24)
    assert second.used == 3
    one, two = measures.prefixes
    assert (one.layers, one.distinct, one.mean_items) == (1, 2, 3.0)
    assert one.perplexity == pytest.approx(first.perplexity)
    assert (two.layers, two.distinct, two.mean_items) == (2, 4, 1.5)
    assert one.purity is None and one.neighbours is None
    assert (measures.labelled, measures.queries, measures.without_duplicates) == (0, 0, None)


def test_purity_counts_the_commonest_label_of_each_prefix():
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
    labels = ["cat", "cat", "dog", "owl", None, "dog"]
    measures = measure_ids(codes, (3, 2), labels)
    one, two = (prefix.purity for prefix in measures.prefixes)
    assert measures.labelled == 5
    assert (one.all_items, one.shared) == (pytest.approx(4 / 5), pytest.approx(2 / 3))
    assert (two.all_items, two.shared) == (1.0, 1.0)


def test_duplicates_of_one_id_count_as_one_item():
    codes = torch.tensor([[0], [0], [0], [1], [1], [2]])
    vectors = torch.tensor([[1.0], [1.0], [1.5], [3.0], [3.0], [3.0]])
    measures = measure_ids(codes, (3,), vectors=vectors)
    assert (measures.collisions.items, measures.collisions.alone) == (6, pytest.approx(1 / 6))
    aside = measures.without_duplicates
    assert (aside.items, aside.alone, aside.largest) == (4, 0.5, 2)
    assert aside.collisions == pytest.approx(1 / 4)


def test_duplicates_are_those_of_the_same_bytes():
    codes = torch.zeros(3, 1, dtype=torch.long)
    vectors = torch.tensor([[0.0], [-0.0], [1e-45]])
    assert measure_ids(codes, (2,), vectors=vectors).without_duplicates.items == 3
    wide = torch.tensor([[1.0], [1.0 + 1e-12], [1.0]], dtype=torch.float64)
    assert measure_ids(codes, (2,), vectors=wide).without_duplicates.items == 2


def test_recall_of_neighbours_by_hand():
    """Two clusters of three; of no more than ten other items all are neighbours."""
    vectors = torch.tensor([[0.0], [0.1], [0.3], [9.0], [9.1], [9.3]])
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    one, two = (prefix.neighbours for prefix in measure_ids(codes, (2, 2), None, vectors).prefixes)
    assert (one.recall, one.chance) == pytest.approx((2 / 5, 2 / 5))
    assert two.recall == pytest.approx((1 + 1 + 0 + 2 + 2 + 2) / 30)


def test_neighbours_of_codes_that_follow_clusters_share_prefixes_more_than_chance():
    centres = random_vectors(20, seed=1) * 10
    which = torch.arange(20).repeat_interleave(50)
    vectors = centres[which] + random_vectors(1000)
    codes = torch.stack([which, random_codes(1000, (8,))[:, 0]], 1)
    one, two = (prefix.neighbours for prefix in measure_ids(codes, (20, 8), None, vectors).prefixes)
    assert one.recall > 0.95 and one.chance == pytest.approx(49 / 999)
    assert two.recall == pytest.approx(1 / 8, abs=0.02)


def test_labels_of_no_relation_have_the_purity_of_chance():
    codes = random_codes(20000, (8, 8))
    labels = random_codes(20000, (5,), seed=1)[:, 0].tolist()
    for prefix in measure_ids(codes, (8, 8), labels).prefixes:
        assert prefix.purity.all_items == pytest.approx(prefix.purity.all_items_chance, abs=0.01)
        assert prefix.purity.shared == pytest.approx(prefix.purity.shared_chance, abs=0.01)


# ------------------------------------------------------------------------------ limits


def test_items_that_are_all_equal():
    measures = measure_ids(torch.zeros(50, 3, dtype=torch.long), (4, 4, 4), [7] * 50)
    collisions = measures.collisions
    assert (collisions.alone, collisions.collisions, collisions.largest) == (0, 1 - 1 / 50, 50)
    for layer, prefix in zip(measures.layers, measures.prefixes):
        assert (layer.perplexity, layer.used, layer.gini) == (1, 1, 0.75)
        assert (prefix.distinct, prefix.perplexity, prefix.mean_items) == (1, 1, 50)
        assert prefix.purity == ids.Purity(1.0, 1.0, 1.0, 1.0)


def test_items_that_are_all_different():
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    measures = measure_ids(codes, (4, 5), list(range(20)), random_vectors(20))
    collisions = measures.collisions
    assert (collisions.alone, collisions.collisions, collisions.largest) == (1, 0, 1)
    assert measures.without_duplicates == collisions
    for layer in measures.layers:
        assert layer.perplexity == pytest.approx(layer.codebook_size)
        assert layer.gini == 0
    last = measures.prefixes[-1]
    assert (last.distinct, last.mean_items) == (20, 1)
    assert last.perplexity == pytest.approx(20)
    assert last.purity == ids.Purity(1.0, 1.0, None, None)
    assert (last.neighbours.recall, last.neighbours.chance) == (0, 0)


def test_one_item_has_no_neighbours():
    measures = measure_ids(torch.tensor([[3]]), (4,), ["a"], torch.zeros(1, 2))
    assert measures.prefixes[0].neighbours is None
    assert measures.collisions == ids.Collisions(1, 1.0, 0.0, 1)


def test_codes_of_any_integer_type():
    codes = random_codes(100, (8, 8))
    assert measure_ids(codes.to(torch.uint8), (8, 8)) == measure_ids(codes, (8, 8))


# ------------------------------------------------------------------------------ invariance


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_order_of_items_has_no_say(seed, sampled):
    items = 300
    codes = random_codes(items, (4, 5, 3), seed)
    labels = random_codes(items, (6,), seed + 1)[:, 0].tolist()
    vectors = random_vectors(items, seed=seed)
    vectors[:20] = vectors[20:40]
    codes[:20] = codes[20:40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "QUERIES", 100 if sampled else 2000)
        before = measure_ids(codes, (4, 5, 3), labels, vectors)
        order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
        labels = [labels[row] for row in order]
        after = measure_ids(codes[order], (4, 5, 3), labels, vectors[order])
    assert before.queries == (100 if sampled else 300)
    assert same(before.entry(), after.entry())


def same(one, other):
    """Nested plain values, floats but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, rel=1e-12)


def test_measures_are_plain_values():
    codes = random_codes(50, (4, 5))
    measures = measure_ids(codes, (4, 5), ["a"] * 50, random_vectors(50))
    said = json.loads(json.dumps(measures.entry()))
    assert said["collisions"]["items"] == 50
    assert said["prefixes"][1]["neighbours"].keys() == {"recall", "chance"}


# ------------------------------------------------------------------------------ parts


def test_neighbours_do_not_depend_on_blocks(monkeypatch):
    vectors = random_vectors(500, 6) + 100
    queries = torch.arange(0, 500, 7)
    expected = torch.cdist(vectors.double(), vectors.double())
    expected.fill_diagonal_(torch.inf)
    nearest = expected[queries].topk(10, 1, largest=False).indices
    for block in (1, 300, 4000, 10**7):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        assert torch.equal(nearest_items(vectors, queries, 10), nearest)


def test_a_sample_is_even_whatever_is_duplicated():
    """A third of the items are equal: about a third of the sample is."""
    vectors = torch.cat([torch.zeros(3000, 2), random_vectors(6000, 2)])
    rows = sample_rows(vectors, np.zeros(9000, dtype=np.int64), 1000, seed=3)
    assert len(rows.unique()) == 1000
    assert int((rows < 3000).sum()) == pytest.approx(333, abs=60)
    thirds = [int(((rows >= start) & (rows < start + 3000)).sum()) for start in (3000, 6000)]
    assert thirds == pytest.approx([333, 333], abs=60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_hashes_are_of_rows(dtype):
    vectors = torch.randint(-3, 4, (5000, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    hashes = hash_rows(vectors)
    pairs = {tuple(row): int(number) for row, number in zip(vectors.tolist(), hashes)}
    assert len(set(pairs.values())) == len(pairs) == 7**3
    assert all(pairs[tuple(row)] == int(n) for row, n in zip(vectors.tolist(), hashes))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_groups_are_the_ranks_of_rows(rows):
    ranks = {row: rank for rank, row in enumerate(sorted(set(rows)))}
    for room in (0, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouping, "_ROOM", room)
            groups = group_rows(np.array(rows))
        assert groups.tolist() == [ranks[row] for row in rows]
    counted = [rows[:place].count(row) for place, row in enumerate(rows)]
    assert occurrences(groups).tolist() == counted


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (torch.zeros(0, 2, dtype=torch.long), (4, 4), r"codes of shape \[0, 2\]; expected \[N, 2"),
        (torch.zeros(3, 2, dtype=torch.long), (4,), r"codes of shape \[3, 2\]; expected \[N, 1"),
        (torch.tensor([[0, 4]]), (4, 4), "codes of layer 1 range from 4 to 4; expected 0 to 3"),
        (torch.tensor([[-1, 0]]), (4, 4), "codes of layer 0 range from -1 to -1; expected 0 to 3"),
    ],
)
def test_codes_that_do_not_fit_are_named(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        measure_ids(codes, sizes)


def test_a_label_for_each_item():
    with pytest.raises(ValueError, match="2 labels of 3 items; expected one for each"):
        measure_ids(torch.zeros(3, 1, dtype=torch.long), (2,), ["a", "b"])
