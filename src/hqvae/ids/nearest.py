"""The rule `nearest`: of items of one ID one stays, the others move to free IDs nearby.

It is an assignment of least cost over all colliding items at once:

    minimise Σ_i ‖z̃_i − ID_i‖² − ‖z̃_i − own ID_i‖²

with no ID given twice, none that exists already or that an item has to itself, and one item staying
at every ID, unless that exists already.

Items look at few of their nearest free IDs, for that is enough. Let u, v be the prices of an
optimum among the IDs that are seen: u_i + v_j ≤ c_ij and v_j ≤ 0, with v_j = 0 for an ID that
nobody takes, or that one item alone sees. An item that sees such an ID has u_i at most its cost,
so at most that of any ID farther away. Once this holds for every item, the prices hold for all
IDs, and the optimum is one among all of them.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer, UInt64

from hqvae.errors import InputError
from hqvae.metrics.groups import group_rows
from hqvae.tokens import smallest_type

from .matching import Edges, assign, crowded, scipy_modules, without_needless
from .new_items import Candidates, NewItems

_FIRST_COUNT = 32  # candidates asked for at first: a narrow beam misses some of the nearest
_FIRST_SEEN = 2  # IDs that an item looks at first: in most places its own and one that is free
_MOST_CANDIDATES = 1 << 26  # held at once: up to 2 GiB
_AT_ONCE = 1 << 20  # candidates that are asked for in one call


def move_to_nearest(items: NewItems) -> Int64[np.ndarray, "n L"]:
    """The codes of the items' new IDs. Of an ID that exists already nobody stays.

    Raises InputError where scipy is missing, where there are fewer IDs than items, and where so
    many items share their IDs that candidates would not fit into memory.
    """
    groups = group_rows(np.concatenate([items.taken, items.codes]))
    own = groups[len(items.taken) :]
    exists = np.zeros(groups.max(initial=-1) + 1, dtype=bool)
    exists[groups[: len(items.taken)]] = True
    movers = np.flatnonzero((np.bincount(own, minlength=len(exists))[own] > 1) | exists[own])
    if not len(movers):
        return items.codes
    scipy_modules()  # said before the work
    _check_room(int(exists.sum()) + len(items.codes), items.codebook_sizes)
    free = _FreeIds(items, movers, may_stay=~exists[own[movers]])
    choices = _choose(free)
    _order_equal_items(free, choices)
    codes = items.codes.copy()
    codes[movers] = np.stack([of_item[choice] for of_item, choice in zip(free.codes, choices)])
    return codes


def _check_room(wanted: int, codebook_sizes: tuple[int, ...]) -> None:
    there_are = math.prod(codebook_sizes)
    if wanted > there_are:
        raise InputError(
            f"{wanted:,} items want an ID of their own, and codebooks of {list(codebook_sizes)} "
            f"codes make {there_are:,}; expected larger codebooks, or the rule 'token'"
        )


class _Numbering:
    """IDs as numbers: in their order where 64 bits hold them all."""

    def __init__(self, codebook_sizes: tuple[int, ...]):
        if math.prod(codebook_sizes) <= 2**64:
            factors = [math.prod(codebook_sizes[at + 1 :]) for at in range(len(codebook_sizes))]
            self.factors = np.array(factors, dtype=np.uint64)
        else:
            # Two IDs may then share a number by chance. Two that get different numbers differ all
            # the same: all that is lost is a free ID that nobody takes.
            drawn = np.random.default_rng(0).integers(2**64, size=len(codebook_sizes), dtype="u8")
            self.factors = drawn | np.uint64(1)

    def __call__(self, codes: Integer[np.ndarray, "*N L"]) -> UInt64[np.ndarray, "*N"]:
        return (codes.astype(np.uint64) * self.factors).sum(-1, dtype=np.uint64)


class _FreeIds:
    """The IDs that each of the colliding items could have: its own, if it may stay, and free ones.

    numbers, costs, codes: of each item, as many as are known, nearest first after its own
    whole: [n], whether these are all there are
    """

    def __init__(self, items: NewItems, movers: np.ndarray, may_stay: Bool[np.ndarray, "n"]):
        assert items.candidates is not None
        self.candidates: Candidates = items.candidates
        self.sizes = items.codebook_sizes
        self.rows = items.rows[movers]
        self.own = items.codes[movers].astype(smallest_type(max(self.sizes)))
        self.may_stay = may_stay
        self.numbering = _Numbering(items.codebook_sizes)
        self.own_numbers = self.numbering(self.own)
        self.occupied = np.unique(self.numbering(np.concatenate([items.taken, items.codes])))
        self.numbers: list[UInt64[np.ndarray, C]] = [self.own_numbers[:0]] * len(movers)
        self.costs: list[Float64[np.ndarray, C]] = [np.zeros(0)] * len(movers)
        self.codes: list[np.ndarray] = [self.own[:0]] * len(movers)
        self.whole = np.zeros(len(movers), dtype=bool)
        self.asked = np.full(len(movers), _FIRST_COUNT // 2)

    def known(self) -> Int64[np.ndarray, "n"]:
        """How many IDs of each item are known."""
        return np.array([len(numbers) for numbers in self.numbers])

    def ask(self, wanted: Int64[np.ndarray, "n"]) -> None:
        """Look for more until so many are known of each item, or all there are."""
        while len(short := np.flatnonzero((self.known() < wanted) & ~self.whole)):
            self.asked[short] *= 2
            self._check_memory()
            for count in np.unique(self.asked[short]):
                of_count = short[self.asked[short] == count]
                step = max(1, _AT_ONCE // int(count))
                for start in range(0, len(of_count), step):
                    self._ask(of_count[start : start + step], int(count))

    def _check_memory(self) -> None:
        if self.asked.sum() > _MOST_CANDIDATES:
            largest = np.unique(self.own_numbers, return_counts=True)[1].max()
            raise InputError(
                f"{len(self.own):,} items share their IDs, {largest:,} of them one: too many to be "
                "given the nearest free one each; expected the rule 'token', or a model whose "
                "codes tell the items apart"
            )

    def _ask(self, which: Int64[np.ndarray, "q"], count: int) -> None:
        codes, errors = self._answer(which, count)
        numbers = self.numbering(codes)
        is_own = numbers == self.own_numbers[which, None]
        # An item's own code need not be among those that a beam comes upon. Then it is taken to be
        # as far as the farthest of these, and would be no nearer if the beam were exact.
        base = np.where(is_own.any(1), np.where(is_own, errors, 0).sum(1), errors.max(1))
        costs = errors - base[:, None]
        free = ~_is_among(self.occupied, numbers)
        order = np.lexsort((numbers, costs))
        whole = codes.shape[1] < count or count >= math.prod(self.sizes)
        for place, item in enumerate(which):
            mine = order[place][free[place][order[place]]]
            own = slice(item, item + 1 if self.may_stay[item] else item)
            self.codes[item] = np.concatenate([self.own[own], codes[place, mine]])
            self.numbers[item] = np.concatenate([self.own_numbers[own], numbers[place, mine]])
            self.costs[item] = np.concatenate([np.zeros(own.stop - item), costs[place, mine]])
            self.whole[item] = whole

    def _answer(self, which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        codes, errors = self.candidates(torch.from_numpy(self.rows[which]), count)
        expected = [len(which), codes.shape[1], len(self.sizes)]
        if list(codes.shape) != expected or list(errors.shape) != expected[:2]:
            raise ValueError(
                f"candidates of shapes {list(codes.shape)} and {list(errors.shape)}; expected "
                f"{expected} and {expected[:2]}"
            )
        return codes.cpu().numpy().astype(self.own.dtype), errors.cpu().double().numpy()

    def edges(self, seen: Int64[np.ndarray, "n"]) -> Edges:
        """What each item sees: the first `seen` of its IDs."""
        lengths = np.minimum(self.known(), seen)
        items = np.repeat(np.arange(len(lengths)), lengths)
        numbers = np.concatenate([numbers[:n] for numbers, n in zip(self.numbers, lengths)])
        costs = np.concatenate([costs[:n] for costs, n in zip(self.costs, lengths)])
        # To stay costs less than any move gains: so one always does, and who is as it was.
        costs[numbers == self.own_numbers[items]] = -1 - 2 * max(0, -costs.min(initial=0))
        return Edges(items, numbers, costs)


def _is_among(known: UInt64[np.ndarray, "M"], numbers: UInt64[np.ndarray, "*N"]) -> np.ndarray:
    """Whether each number is one of those, which are in order."""
    places = np.searchsorted(known, numbers)
    return known[np.minimum(places, len(known) - 1)] == numbers


def _choose(free: _FreeIds) -> Int64[np.ndarray, "n"]:
    """Which of its IDs each item gets, at the least cost in all."""
    seen = np.full(len(free.own), _FIRST_SEEN)
    choices = np.full(len(free.own), -1)
    more = np.ones(len(free.own), dtype=bool)  # items that see more than when choices were made
    while True:
        free.ask(seen)
        edges, has_private = without_needless(free.edges(seen), len(seen))
        look_farther = crowded(edges, len(seen))
        farther = seen + np.maximum(1, seen // 2)
        if not look_farther.any():
            assign(edges, choices, more)
            more[:] = False
            unused = _first_unused(free, choices)
            look_farther = ~has_private & (unused >= seen)
            farther = np.where(unused < free.known(), unused + 1, farther)
        look_farther &= (seen < free.known()) | ~free.whole
        if not look_farther.any():
            break
        seen = np.where(look_farther, farther, seen)
        more |= look_farther
    if (choices < 0).any():
        raise ValueError(
            "candidates gave fewer IDs than they were asked for, and not all there are"
        )
    return choices


def _first_unused(free: _FreeIds, choices: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """The place of the nearest ID of each item that no item got; past its end if all are taken."""
    known = free.known()
    chosen = np.sort([numbers[choice] for numbers, choice in zip(free.numbers, choices)])
    taken = _is_among(chosen, np.concatenate(free.numbers))
    items = np.repeat(np.arange(len(known)), known)[~taken]
    first = known.copy()
    places = np.arange(len(taken)) - np.repeat(known.cumsum() - known, known)
    np.minimum.at(first, items, places[~taken])
    return first


def _order_equal_items(free: _FreeIds, choices: np.ndarray) -> None:
    """Items that nothing but their keys tells apart get their IDs in the order of these."""
    equal: dict[tuple[bytes, bytes, bytes], list[int]] = {}
    for item, (own, numbers, costs) in enumerate(zip(free.own, free.numbers, free.costs)):
        equal.setdefault((own.tobytes(), numbers.tobytes(), costs.tobytes()), []).append(item)
    for items in equal.values():
        choices[items] = np.sort(choices[items])
