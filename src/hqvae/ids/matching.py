"""Assignments of least cost: each item to one of its columns, no column to two items."""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from hqvae.errors import InputError

_DENSE = 1 << 20  # costs of a component that are laid out as a matrix; more are kept sparse


class Edges(NamedTuple):
    """Which item could have which column, and at what cost: E of them, items in order.

    items: 0 to N − 1
    columns: any numbers
    costs: of any size and sign
    """

    items: Int64[np.ndarray, "E"]
    columns: UInt64[np.ndarray, "E"]
    costs: Float64[np.ndarray, "E"]


def scipy_modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    """(scipy.optimize, scipy.sparse, scipy.sparse.csgraph); InputError where it is missing."""
    try:
        import scipy.optimize
        import scipy.sparse
        import scipy.sparse.csgraph
    except ImportError as error:
        raise InputError("rule 'nearest' needs scipy: pip install 'hqvae[ids]'") from error
    return scipy.optimize, scipy.sparse, scipy.sparse.csgraph


def without_needless(edges: Edges, count: int) -> tuple[Edges, Bool[np.ndarray, "N"]]:
    """(the edges without those that no assignment needs, which items have a column to themselves).

    No item needs an edge that costs more than one to a column that nobody else sees. Without such
    edges others have columns to themselves, and so on. Each item's edges must come cheapest first.

    >>> columns = np.array([1, 2, 3, 1, 3], np.uint64)
    >>> edges = Edges(np.array([0, 0, 0, 1, 1]), columns, np.array([0.0, 1.0, 2.0, 0.0, 1.0]))
    >>> without_needless(edges, 2)[0].columns  # the first has 2, so 3 is the second's alone
    array([1, 2, 1, 3], dtype=uint64)
    """
    places = np.unique(edges.columns, return_inverse=True)[1]
    numbers = np.arange(len(places))
    kept = numbers
    while True:
        alone = np.bincount(places[kept])[places[kept]] == 1
        first = np.full(count, len(places))
        np.minimum.at(first, edges.items[kept[alone]], kept[alone])
        needed = kept <= first[edges.items[kept]]
        if needed.all():
            return Edges(*(of_edges[kept] for of_edges in edges)), first < len(places)
        kept = kept[needed]


def crowded(edges: Edges, count: int) -> Bool[np.ndarray, "N"]:
    """The items that see too few columns between them for each to have one; none where all fit.

    They are those from which alternating paths of a largest matching lead to an item without a
    column: all columns that they see are taken, and by them.

    >>> edges = Edges(np.array([0, 1, 2, 2]), np.array([5, 5, 5, 6], np.uint64), np.zeros(4))
    >>> crowded(edges, 3)
    array([ True,  True, False])
    """
    _, sparse, graphs = scipy_modules()
    columns, places = np.unique(edges.columns, return_inverse=True)
    links = np.ones(len(places), dtype=bool)
    graph = sparse.csr_matrix((links, (edges.items, places)), shape=(count, len(columns)))
    matched = graphs.maximum_bipartite_matching(graph, perm_type="column")  # of each item
    reached = matched < 0
    holder = np.full(len(columns), -1)
    holder[matched[~reached]] = np.flatnonzero(~reached)
    ends = holder[places]  # who has the column of each edge: no path ends at one that nobody has
    frontier = reached
    while frontier.any():
        found = ends[frontier[edges.items]]
        frontier = np.zeros(count, dtype=bool)
        frontier[found] = True
        frontier &= ~reached
        reached = reached | frontier
    return reached


def components(edges: Edges, count: int) -> Int64[np.ndarray, "N"]:
    """For each of `count` items the number of its component: items that share columns share it.

    >>> edges = Edges(np.array([0, 1, 2]), np.array([5, 7, 5], np.uint64), np.zeros(3))
    >>> components(edges, 3)
    array([0, 1, 0])
    """
    _, sparse, graphs = scipy_modules()
    columns, places = np.unique(edges.columns, return_inverse=True)
    size = count + len(columns)
    links = (np.ones(len(places), bool), (edges.items, count + places))
    graph = sparse.coo_matrix(links, shape=(size, size)).tocsr()
    return graphs.connected_components(graph, directed=False)[1][:count].astype(np.int64)


def assign(edges: Edges, choices: Int64[np.ndarray, "N"], wanted: Bool[np.ndarray, "N"]) -> None:
    """Assign the items of each component with a wanted one; others keep their choice.

    A choice is the place of an edge among those of its item. The cost of each component's
    assignment is the least there is, and the choices are always the same for the same edges. Every
    item must be able to have a column: see `crowded`.

    >>> costs = np.array([0.0, 1.0, 0.0, 5.0])
    >>> columns = np.array([1, 2, 1, 3], np.uint64)
    >>> choices = np.array([-1, -1])
    >>> assign(Edges(np.array([0, 0, 1, 1]), columns, costs), choices, np.array([True, True]))
    >>> choices  # the first gives way, for which it pays less
    array([1, 0])
    """
    number = components(edges, len(choices))
    of_edges = number[edges.items]
    order = np.argsort(of_edges, kind="stable")
    starts = np.searchsorted(of_edges[order], np.arange(number.max(initial=-1) + 2))
    first = np.searchsorted(edges.items, np.arange(len(choices)))
    for component in np.unique(number[wanted]):
        mine = order[starts[component] : starts[component + 1]]
        items, rows = np.unique(edges.items[mine], return_inverse=True)
        found = _cheapest(rows, edges.columns[mine], edges.costs[mine])
        choices[items] = mine[found] - first[items]


def _cheapest(
    rows: Int64[np.ndarray, "E"], numbers: UInt64[np.ndarray, "E"], costs: Float64[np.ndarray, "E"]
) -> Int64[np.ndarray, "R"]:
    """The chosen edge of each row 0 to R − 1."""
    if rows[-1] == 0:
        return np.array([costs.argmin()])
    found, columns = np.unique(numbers, return_inverse=True)
    shape = (int(rows[-1]) + 1, len(found))
    optimize, sparse, graphs = scipy_modules()
    if shape[0] * shape[1] <= _DENSE:
        matrix = np.full(shape, np.inf)
        matrix[rows, columns] = costs
        chosen = optimize.linear_sum_assignment(matrix)[1]
    else:
        # A cost of 0 would be no edge: all are raised by as much, which changes nothing else.
        raised = costs - costs.min()
        raised = raised / max(raised.max(), np.finfo(float).tiny) + 1
        matrix = sparse.csr_matrix((raised, (rows, columns)), shape=shape)
        chosen = graphs.min_weight_full_bipartite_matching(matrix)[1]
    return np.flatnonzero(columns == chosen[rows])
