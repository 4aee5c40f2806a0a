"""IDs of items: the rules for equal codes, and that neither order nor appending changes an ID."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from id_items import Items
from scipy.optimize import linear_sum_assignment

from hqvae.errors import InputError
from hqvae.ids import RULES, IdVocabulary, make_ids, matching, nearest

rules = pytest.mark.parametrize("rule", RULES)
QUICK = settings(max_examples=25, deadline=None)


def by_key(ids):
    return dict(zip(ids.keys, map(tuple, ids.places.tolist())))


def distinct(ids):
    return len(set(ids.tokens()))


# ------------------------------------------------------------------------------ the rules


def test_items_of_equal_codes_share_an_id_by_the_rule_none():
    items = Items(30)
    ids = items.make("none")
    assert torch.equal(ids.codes, items.codes) and ids.extra is None
    assert distinct(ids) == len(items.codes.unique(dim=0))
    assert ids.vocabulary == IdVocabulary((4, 3))


def test_a_token_counts_items_of_equal_codes_in_the_order_of_their_keys():
    codes = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1], [0, 1]])
    ids = make_ids(list("dbeca"), codes, None, "token", codebook_sizes=(2, 2))
    assert ids.extra.tolist() == [1, 1, 2, 0, 0]
    assert ids.vocabulary == IdVocabulary((2, 2), extra=3)
    assert ids.tokens()[0] == ("<a_1>", "<b_1>", "<c_1>")
    assert torch.equal(ids.codes, codes)


def test_every_item_has_the_extra_token():
    ids = make_ids(["a", "b"], torch.tensor([[0], [1]]), None, "token", codebook_sizes=(2,))
    assert ids.extra.tolist() == [0, 0] and ids.vocabulary.extra == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", [(4, 3), (12,), (2, 2, 3)])
def test_nearest_free_ids_cost_as_little_as_there_is(seed, sizes, monkeypatch):
    """Of all ways to give each item an ID of its own, with one staying where items collide."""
    monkeypatch.setattr(nearest, "_FIRST_COUNT", 2)
    items = Items(9, sizes, seed)
    ids = items.make("nearest")
    assert distinct(ids) == 9
    assert float(items.errors(ids.codes).sum()) == pytest.approx(least_error(items), rel=1e-6)
    stays = (ids.codes == items.codes).all(1)
    for code in items.codes.unique(dim=0):
        assert stays[(items.codes == code).all(1)].sum() == 1


def least_error(items):
    """By looking at everything: who stays, and the best assignment of the others."""
    every = torch.cartesian_prod(*map(torch.arange, items.sizes)).reshape(-1, len(items.sizes))
    sums = items.quantizer.lookup(every)
    errors = torch.cdist(items.z.double(), sums.double()).square().numpy()
    place = {tuple(code): number for number, code in enumerate(every.tolist())}
    own = np.array([place[tuple(code)] for code in items.codes.tolist()])
    free = np.setdiff1d(np.arange(len(every)), own)
    groups = [np.flatnonzero(own == number) for number in np.unique(own)]
    best = math.inf
    for stay in itertools.product(*groups):
        moved = np.setdiff1d(np.arange(len(own)), stay)
        kept = errors[list(stay), own[list(stay)]].sum()
        costs = errors[np.ix_(moved, free)]
        best = min(best, kept + costs[linear_sum_assignment(costs)].sum())
    return best


def test_least_cost_is_not_first_come():
    """The item that would pay more to move away stays, whatever the keys are."""
    errors = {0: {(0,): 0.0, (1,): 1.0, (2,): 9.0}, 1: {(0,): 0.0, (1,): 5.0, (2,): 9.0}}
    for keys in (["a", "b"], ["b", "a"]):
        ids = make_ids(
            keys,
            torch.zeros(2, 1, dtype=torch.long),
            lambda rows, count: table(errors, rows, count),
            "nearest",
            codebook_sizes=(3,),
        )
        assert ids.codes.tolist() == [[1], [0]]
        assert ids.model_codes.tolist() == [[0], [0]]


def table(errors, rows, count):
    """Candidates from a table of errors by row and code."""
    ordered = [sorted(errors[int(row)].items(), key=lambda one: one[1])[:count] for row in rows]
    codes = torch.tensor([[code for code, _ in of_row] for of_row in ordered])
    return codes, torch.tensor([[error for _, error in of_row] for of_row in ordered])


def test_items_that_do_not_collide_keep_their_codes():
    items = Items(200, (8, 8, 8))
    ids = items.make("nearest")
    _, which, counts = items.codes.unique(dim=0, return_inverse=True, return_counts=True)
    alone = counts[which] == 1
    assert 0 < alone.sum() < 200 and distinct(ids) == 200
    assert torch.equal(ids.codes[alone], items.codes[alone])
    assert torch.equal(ids.model_codes, items.codes)


def test_items_of_one_vector_move_in_the_order_of_their_keys():
    items = Items(8, (4, 4), spread=0)
    ids = items.make("nearest")
    order = sorted(range(8), key=items.keys.__getitem__)
    assert torch.equal(ids.codes[order[0]], items.codes[0])
    errors = items.errors(ids.codes)[order]
    assert (errors.diff() >= 0).all()
    nearby = items.quantizer.candidates(items.z[:1], 8)[0][0]
    assert torch.equal(ids.codes[order], nearby)


def test_every_id_there_is_can_be_given():
    items = Items(12)
    assert distinct(items.make("nearest")) == 12


@pytest.mark.parametrize("sizes", [(16,) * 8, (2**16,) * 4, (2**13,) * 5])
def test_codebooks_of_more_ids_than_a_number_holds(sizes, monkeypatch):
    """40 items of one ID: the same IDs, whether 64 bits hold all IDs or not."""
    small = Items(40, (8, 8), spread=0.1)
    expected = small.make("nearest").codes

    def padded(codes):
        return torch.nn.functional.pad(codes, (0, len(sizes) - 2))

    ids = make_ids(
        small.keys,
        padded(small.codes),
        lambda rows, count: pad_first(small.quantizer.candidates(small.z[rows], count), padded),
        "nearest",
        codebook_sizes=sizes,
    )
    assert distinct(ids) == 40
    errors = [float(small.errors(codes[:, :2]).sum()) for codes in (ids.codes, expected)]
    assert errors[0] == pytest.approx(errors[1])


def pad_first(pair, padded):
    return padded(pair[0]), pair[1]


def test_large_and_small_components_cost_the_same(monkeypatch):
    """By a matrix or by sparse edges."""
    items = Items(150, (16, 16), spread=0.5)
    dense = items.make("nearest")
    monkeypatch.setattr(matching, "_DENSE", 0)
    sparse = items.make("nearest")
    totals = [float(items.errors(ids.codes).sum()) for ids in (dense, sparse)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)
    assert distinct(sparse) == 150


@pytest.mark.parametrize("first_count", [1, 2, 64])
def test_how_many_candidates_are_asked_for_at_first_has_no_say(first_count, monkeypatch):
    items = Items(60, (6, 6, 6))
    items.quantizer.beam_size = 6**3
    expected = items.make("nearest")
    monkeypatch.setattr(nearest, "_FIRST_COUNT", max(2, first_count))
    monkeypatch.setattr(nearest, "_AT_ONCE", 7)
    total = float(items.errors(items.make("nearest").codes).sum())
    assert total == pytest.approx(float(items.errors(expected.codes).sum()), rel=1e-9)


def test_codes_that_no_beam_comes_upon():
    """A model may give codes that are not among the nearest sums; items move all the same."""
    items = Items(30, (6, 6))
    ids = items.make("nearest", codes=torch.zeros(30, 2, dtype=torch.long))
    assert distinct(ids) == 30 and (ids.codes == 0).all(1).sum() == 1


# ------------------------------------------------------------------------------ invariance


@rules
@given(seed=st.integers(0, 10**6))
@QUICK
def test_ids_do_not_depend_on_the_order_of_rows(rule, seed):
    items = Items(40, (4, 4, 4), seed)
    items.z[:6] = items.z[6]
    items.codes = items.quantizer.encode(items.z, 64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert by_key(items.make(rule)) == by_key(items.make(rule, order))
    assert items.make(rule, order).keys == tuple(items.keys[row] for row in order)


@rules
@given(seed=st.integers(0, 10**6), at_once=st.integers(1, 50))
@QUICK
def test_ids_do_not_depend_on_batches(rule, seed, at_once):
    items = Items(40, (4, 4, 4), seed)
    expected = by_key(items.make(rule))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_AT_ONCE", at_once)
        assert by_key(items.make(rule)) == expected


@rules
@given(
    seed=st.integers(0, 10**6),
    first=st.integers(1, 39),
    overlap=st.integers(0, 20),
    shuffle=st.booleans(),
)
@QUICK
def test_appending_never_changes_an_id(rule, seed, first, overlap, shuffle):
    items = Items(40, (4, 4, 4), seed)
    before = items.make(rule, range(first))
    rows = torch.arange(max(0, first - overlap), 40)
    if shuffle:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    after = items.make(rule, rows, before)
    assert after.keys[:first] == before.keys
    assert torch.equal(after.places[:first], before.places)
    assert after.changed == ()
    assert sorted(after.keys) == sorted(items.keys)
    assert rule == "none" or distinct(after) == 40
    again = items.make(rule, rows.flip(0), before)
    assert by_key(again) == by_key(after)


def test_nobody_takes_an_id_that_exists():
    items = Items(3, (3,))
    items.z[:] = items.z[0]
    items.codes[:] = items.codes[0]
    before = items.make("nearest", [0])
    after = items.make("nearest", [1, 2], before)
    assert distinct(after) == 3 and torch.equal(after.codes[0], items.codes[0])


def test_a_count_goes_on_after_the_highest():
    def make(keys, existing=None):
        codes = torch.zeros(len(keys), 1, dtype=torch.long)
        return make_ids(keys, codes, None, "token", existing, codebook_sizes=(2,))

    ids = make(["a", "c"], make(["z", "y"]))
    assert dict(zip(ids.keys, ids.extra.tolist())) == {"y": 0, "z": 1, "a": 2, "c": 3}
    assert ids.vocabulary.extra == 4


@rules
def test_items_that_had_an_id_keep_it_and_those_with_other_codes_now_are_named(rule):
    items = Items(30, (4, 4, 4))
    before = items.make(rule)
    codes = items.codes.clone()
    codes[3, 0] = (codes[3, 0] + 1) % 4
    codes[7, 2] = (codes[7, 2] + 1) % 4
    after = items.make(rule, None, before, codes)
    assert set(after.changed) == {items.keys[3], items.keys[7]}
    assert by_key(after) == by_key(before) and len(after) == 30
    assert torch.equal(after.model_codes, items.codes)


# ------------------------------------------------------------------------------ refusals


def refused(message, error=InputError):
    return pytest.raises(error, match=message)


def make(keys=("a", "b"), codes=((0, 0), (0, 1)), rule="token", existing=None, sizes=(2, 2)):
    codes = torch.as_tensor(codes)
    return make_ids(list(keys), codes, None, rule, existing, codebook_sizes=sizes)


def test_what_does_not_fit_is_named():
    with refused("rule 'tokens' does not exist; did you mean 'token'?"):
        make(rule="tokens")
    with refused("key 'a' is there 2 times; expected keys that all differ"):
        make(keys=("a", "a"))
    with refused("no items to give IDs to"):
        make(keys=(), codes=torch.zeros(0, 2, dtype=torch.long))
    with refused(r"key 'a\\udce9' is not UTF-8 text"):
        make(keys=("a\udce9", "b"))
    with refused(r"codes have shape \[2, 2\]; expected \[3, 2\]", ValueError):
        make(keys=("a", "b", "c"))
    with refused("code 2 of item 1, layer 0; expected 0 to 1", ValueError):
        make(codes=((0, 0), (2, 1)))
    with refused("rule 'nearest' without candidates", ValueError):
        make(rule="nearest")


def test_existing_ids_of_another_kind_are_refused():
    with refused("rule 'none' for new items, and the existing IDs are of rule 'token'"):
        make(rule="none", existing=make())
    with refused(r"codebooks of \[2, 2\] codes, and the existing IDs are of \[2, 3\]"):
        make(existing=make(sizes=(2, 3)))


def test_more_items_than_ids_are_refused():
    with refused(r"13 items want an ID of their own, and codebooks of \[4, 3\] codes make 12"):
        Items(13).make("nearest")


def test_too_many_items_of_one_id_are_refused(monkeypatch):
    monkeypatch.setattr(nearest, "_MOST_CANDIDATES", 400)
    with refused("60 items share their IDs, 60 of them one: too many"):
        Items(60, (8, 8), spread=0).make("nearest")


def test_scipy_is_asked_for_where_it_is_missing(monkeypatch):
    for name in ("scipy", "scipy.optimize", "scipy.sparse", "scipy.sparse.csgraph"):
        monkeypatch.setitem(sys.modules, name, None)
    with refused(r"rule 'nearest' needs scipy: pip install 'hqvae\[ids\]'"):
        Items(10).make("nearest")
    assert distinct(Items(10).make("token")) == 10


def test_candidates_of_another_shape_are_named():
    items = Items(10)
    with refused(r"candidates of shapes \[\d+, 8, 3\] and .*; expected", ValueError):
        make_ids(
            items.keys,
            items.codes,
            lambda rows, count: (torch.zeros(len(rows), 8, 3).long(), torch.zeros(len(rows), 8)),
            "nearest",
            codebook_sizes=(4, 3),
        )
