"""Assignments of least cost, piece by piece, against one over everything at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from id_items import Items
from scipy.optimize import linear_sum_assignment

from hqvae.ids.matching import Edges, assign, crowded, without_needless

QUICK = settings(max_examples=60, deadline=None)


def random_edges(seed, items, columns):
    """Of each item some edges, cheapest first."""
    generator = np.random.default_rng(seed)
    lists = [generator.permutation(columns)[: generator.integers(1, 5)] for _ in range(items)]
    lengths = [len(of_item) for of_item in lists]
    costs = [np.sort(generator.random(length).round(1)) for length in lengths]
    return Edges(
        np.repeat(np.arange(items), lengths),
        np.concatenate(lists).astype(np.uint64),
        np.concatenate(costs),
    )


def matrix_of(edges, items, columns):
    matrix = np.full((items, columns), np.inf)
    matrix[edges.items, edges.columns.astype(int)] = edges.costs
    return matrix


def least_cost(edges, items, columns):
    """None where not all items can have a column."""
    if items > columns:  # of which scipy would leave some out
        return None
    matrix = matrix_of(edges, items, columns)
    try:
        return matrix[linear_sum_assignment(matrix)].sum()
    except ValueError:
        return None


@given(seed=st.integers(0, 10**6), items=st.integers(1, 12))
@QUICK
def test_needless_edges_change_no_least_cost(seed, items):
    edges = random_edges(seed, items, 20)
    kept, has_private = without_needless(edges, items)
    assert least_cost(kept, items, 20) == pytest.approx(least_cost(edges, items, 20))
    columns, counts = np.unique(kept.columns, return_counts=True)
    private = np.isin(kept.columns, columns[counts == 1])
    assert set(np.flatnonzero(has_private)) == set(kept.items[private])


@given(seed=st.integers(0, 10**6), items=st.integers(1, 12))
@QUICK
def test_items_are_crowded_where_not_all_can_have_a_column(seed, items):
    edges = random_edges(seed, items, 10)
    found = crowded(edges, items)
    assert found.any() == (least_cost(edges, items, 10) is None)
    seen = np.unique(edges.columns[found[edges.items]])
    assert not found.any() or len(seen) < found.sum()
    rest = ~found[edges.items] & ~np.isin(edges.columns, seen)
    left = np.flatnonzero(~found)
    others = Edges(np.searchsorted(left, edges.items[rest]), *(one[rest] for one in edges[1:]))
    assert not len(left) or least_cost(others, len(left), 10) is not None


@given(seed=st.integers(0, 10**6), items=st.integers(1, 12))
@QUICK
def test_components_together_cost_the_least(seed, items):
    edges = random_edges(seed, items, 25)
    expected = least_cost(edges, items, 25)
    if expected is None:
        return
    choices = np.full(items, -1)
    assign(edges, choices, np.ones(items, dtype=bool))
    chosen = np.searchsorted(edges.items, np.arange(items)) + choices
    assert len(set(edges.columns[chosen])) == items
    assert (edges.items[chosen] == np.arange(items)).all()
    assert edges.costs[chosen].sum() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_hundreds_of_items_move_at_the_least_cost_of_all(seed, spread):
    """Items see a few IDs each; what they pay is what an assignment over all IDs would cost."""
    items = Items(300, (8, 8, 8), seed, spread)
    items.quantizer.beam_size = 8**3  # so that no candidate is missed
    ids = items.make("nearest")
    every = torch.cartesian_prod(*map(torch.arange, items.sizes))
    sums = items.quantizer.lookup(every)
    costs = (items.z.double()[:, None] - sums.double()).square().sum(2).numpy()
    own = (items.codes * torch.tensor([64, 8, 1])).sum(1).numpy()
    row = np.arange(300)
    forced = costs - costs[row, own][:, None]
    forced[:, np.unique(own)] = np.inf  # for all but those that stay
    forced[row, own] = -1e3  # so that one stays wherever it can
    chosen = linear_sum_assignment(forced)[1]
    assert float(items.errors(ids.codes).sum()) == pytest.approx(costs[row, chosen].sum(), rel=1e-5)
