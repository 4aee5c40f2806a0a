"""How well codes do as IDs of items: collisions, use, and what shares a prefix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from hqvae.integers import integers

from .groups import group_rows, hash_rows, refine
from .neighbours import nearest_items, sample_rows

NEIGHBOURS = 10
"""Nearest other items of a query, whose prefixes are compared with its own."""
QUERIES = 2000
"""Items whose neighbours are looked for, at most."""
_SHUFFLES = 3  # of labels; more change the chance level of large sets in the third digit
_Array = Int64[np.ndarray, "N"]
_Sizes = Int64[np.ndarray, "G"]  # of groups


@dataclass(frozen=True)
class Collisions:
    """Items that share an ID.

    items: how many there are
    alone: share of the items with an ID that no other has
    collisions: 1 − different IDs / items
    largest: items of the ID that most items have
    """

    items: int
    alone: float
    collisions: float
    largest: int


@dataclass(frozen=True)
class LayerUse:
    """How the codes of a layer are used.

    perplexity: exp of the entropy of the codes, 1 to `codebook_size`
    used: codes that some item has
    gini: of the use of all K codes: 0 where all are used equally, 1 − 1/K where one alone is
    """

    codebook_size: int
    perplexity: float
    used: int
    gini: float


@dataclass(frozen=True)
class Purity:
    """Share of the labelled items whose label is the commonest one of their prefix.

    all_items: of all prefixes; an item alone in its prefix counts as pure
    shared: over prefixes of two items or more; None where there is none
    …_chance: the same for labels dealt out at random to prefixes of these sizes
    """

    all_items: float
    all_items_chance: float
    shared: float | None
    shared_chance: float | None


@dataclass(frozen=True)
class NeighbourRecall:
    """Share of the nearest other items that have the query's prefix, and of all other items."""

    recall: float
    chance: float


@dataclass(frozen=True)
class PrefixMeasures:
    """The first `layers` codes of the IDs.

    distinct: how many different ones there are
    perplexity: exp of their entropy
    mean_items: items for each
    purity: None without labels
    neighbours: None without vectors
    """

    layers: int
    distinct: int
    perplexity: float
    mean_items: float
    purity: Purity | None
    neighbours: NeighbourRecall | None


@dataclass(frozen=True)
class IdMeasures:
    """IDs of a set of items.

    without_duplicates: collisions where items of one ID and the same vector, byte by byte, count
        as one; None without vectors
    labelled: items that have a label
    queries: items whose neighbours were looked for
    """

    collisions: Collisions
    without_duplicates: Collisions | None
    layers: tuple[LayerUse, ...]
    prefixes: tuple[PrefixMeasures, ...]
    labelled: int
    queries: int

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_ids(
    codes: Integer[Tensor, "N L"],
    codebook_sizes: Sequence[int],
    labels: Sequence[int | str | None] | None = None,
    vectors: Float[Tensor, "N D"] | None = None,
    seed: int = 0,
) -> IdMeasures:
    """Measure IDs. The order of the items has no say.

    Args:
        codes: of each item, layer by layer
        codebook_sizes: K_l
        labels: of the items, None for one without
        vectors: the items' embeddings, for duplicates and neighbours
        seed: of the sample of queries and of the chance level of labels

    Raises ValueError for no items, codes that are not of these codebooks, and for another number
    of labels or vectors than of codes.

    >>> codes = torch.tensor([[0, 1], [0, 1], [0, 2], [3, 0]])
    >>> measures = measure_ids(codes, (4, 4), labels=["a", "a", "b", "b"])
    >>> measures.collisions
    Collisions(items=4, alone=0.5, collisions=0.25, largest=2)
    >>> [prefix.distinct for prefix in measures.prefixes]
    [2, 3]
    >>> measures.prefixes[0].purity.all_items
    0.75
    """
    array = _checked(codes, codebook_sizes)
    for what, values in (("labels", labels), ("vectors", vectors)):
        if values is not None and len(values) != len(array):
            raise ValueError(f"{len(values)} {what} of {len(array)} items; expected one for each")
    ids = group_rows(array)
    neighbours = None if vectors is None else _Neighbours.find(vectors, ids, seed)
    numbers = None if labels is None else _label_numbers(labels)
    generator = np.random.default_rng(seed)
    prefixes = []
    groups = np.zeros(len(array), dtype=np.int64)
    for layer, values in enumerate(array.T, 1):
        groups = refine(groups, values)
        purity = None if numbers is None else _purity(groups, numbers, generator)
        recall = None if neighbours is None else neighbours.recall(groups)
        prefixes.append(_prefix(layer, np.bincount(groups), purity, recall))
    return IdMeasures(
        collisions=_collisions(np.bincount(ids)),
        without_duplicates=None if vectors is None else _collisions(_distinct(ids, vectors)),
        layers=tuple(_layer(*layer) for layer in zip(array.T, codebook_sizes)),
        prefixes=tuple(prefixes),
        labelled=0 if numbers is None else int((numbers >= 0).sum()),
        queries=0 if neighbours is None else len(neighbours.queries),
    )


def _checked(codes: Tensor, codebook_sizes: Sequence[int]) -> Int64[np.ndarray, "N L"]:
    array = integers(codes).cpu().numpy()
    if len(array) == 0 or array.shape[1] != len(codebook_sizes):
        raise ValueError(
            f"codes of shape {list(array.shape)}; expected [N, {len(codebook_sizes)}] of N ≥ 1 "
            "items, a column for each codebook"
        )
    for layer, size in enumerate(codebook_sizes):
        lowest = array[:, layer].min()
        highest = array[:, layer].max()
        if lowest < 0 or highest >= size:
            raise ValueError(
                f"codes of layer {layer} range from {lowest} to {highest}; expected 0 to {size - 1}"
            )
    return array


def _label_numbers(labels: Sequence[int | str | None]) -> _Array:
    """Labels as 0, 1, …; −1 where there is none."""
    known: dict[int | str | None, int] = {None: -1}
    return np.array([known.setdefault(label, len(known) - 1) for label in labels])


# ------------------------------------------------------------------------------ collisions


def _collisions(sizes: _Sizes) -> Collisions:
    """From how many items each ID has."""
    items = int(sizes.sum())
    alone = float((sizes == 1).sum()) / items
    return Collisions(items, alone, 1 - len(sizes) / items, int(sizes.max()))


def _distinct(ids: _Array, vectors: Tensor) -> _Sizes:
    """How many different vectors each ID has."""
    colliding = np.flatnonzero(np.bincount(ids)[ids] > 1)
    of_ids = ids[colliding]
    groups = of_ids
    for seed in (0, 1):  # 128 bits in all
        hashes = hash_rows(vectors, seed)[colliding]
        groups = refine(groups, np.unique(hashes, return_inverse=True)[1])
    _, first = np.unique(groups, return_index=True)
    return np.maximum(np.bincount(of_ids[first], minlength=int(ids.max()) + 1), 1)


# ---------------------------------------------------------------------- layers and prefixes


def _layer(codes: _Array, codebook_size: int) -> LayerUse:
    counts = np.bincount(codes, minlength=codebook_size)
    return LayerUse(codebook_size, _perplexity(counts), int((counts > 0).sum()), _gini(counts))


def _perplexity(counts: Int64[np.ndarray, "K"]) -> float:
    """exp of the entropy: not `Usage`, which sums over processes that each have all items here."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _gini(counts: Int64[np.ndarray, "K"]) -> float:
    """Σ_i (2i − K − 1) n_i / (K Σ n), over counts in ascending order, i from 1."""
    size = len(counts)
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float(weights @ np.sort(counts)) / (size * int(counts.sum()))


def _prefix(
    layers: int, sizes: _Sizes, purity: Purity | None, recall: NeighbourRecall | None
) -> PrefixMeasures:
    mean = float(sizes.mean())
    return PrefixMeasures(layers, len(sizes), _perplexity(sizes), mean, purity, recall)


def _purity(groups: _Array, labels: _Array, generator: np.random.Generator) -> Purity | None:
    labelled = labels >= 0
    if not labelled.any():
        return None
    groups = np.unique(groups[labelled], return_inverse=True)[1]
    labels = labels[labelled]
    # Chance depends on sizes alone: sorted, so that the order of items has no say.
    sizes = np.sort(np.bincount(groups))
    dealt = np.repeat(np.arange(len(sizes)), sizes)
    deck = np.repeat(np.arange(labels.max() + 1), np.sort(np.bincount(labels)))
    shuffled = [_pure_shares(dealt, generator.permutation(deck)) for _ in range(_SHUFFLES)]
    found, found_shared = _pure_shares(groups, labels)
    chance, chance_shared = np.mean(shuffled, 0).tolist()
    if np.isnan(found_shared):
        return Purity(found, chance, None, None)
    return Purity(found, chance, found_shared, chance_shared)


def _pure_shares(groups: _Array, labels: _Array) -> tuple[float, float]:
    """Of all items, and of those in groups of two or more: NaN where there are none."""
    count = int(labels.max()) + 1
    pairs, items = np.unique(groups * count + labels, return_counts=True)
    starts = np.flatnonzero(np.diff(pairs // count, prepend=-1))
    commonest = np.maximum.reduceat(items, starts)
    sizes = np.bincount(groups)
    shared = sizes > 1
    of_shared = commonest[shared].sum() / sizes[shared].sum() if shared.any() else np.nan
    return float(commonest.sum() / len(groups)), float(of_shared)


@dataclass(frozen=True)
class _Neighbours:
    """Queries [Q], and the nearest other items of each [Q, C]."""

    queries: _Array
    nearest: Int64[np.ndarray, "Q C"]

    @classmethod
    def find(cls, vectors: Tensor, ids: _Array, seed: int) -> "_Neighbours":
        queries = sample_rows(vectors, ids, QUERIES, seed)
        return cls(queries.numpy(), nearest_items(vectors, queries, NEIGHBOURS).numpy())

    def recall(self, groups: _Array) -> NeighbourRecall | None:
        """None where an item has no other."""
        if not self.nearest.shape[1]:
            return None
        own = groups[self.queries]
        same = groups[self.nearest] == own[:, None]
        chance = (np.bincount(groups)[own] - 1) / (len(groups) - 1)
        return NeighbourRecall(float(same.mean()), float(chance.mean()))
