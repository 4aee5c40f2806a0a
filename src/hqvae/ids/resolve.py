"""Rules for items that have the same codes: what becomes of them.

    none      they share an ID
    token     one more token after the codes counts them: 0, 1, 2, … in the order of their keys
    nearest   one stays, the others move to the nearest free IDs: with the least error in all

No rule depends on the order of rows, for all go by the order of keys. No rule changes an ID that
exists already: `token` counts on, and to `nearest` such IDs are taken.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from hqvae.metrics.groups import group_rows, occurrences

from .nearest import move_to_nearest
from .new_items import NewItems

Resolved = tuple[Int64[np.ndarray, "n L"], Int64[np.ndarray, "n"] | None]
Rule = Callable[[NewItems], Resolved]


def share(items: NewItems) -> Resolved:
    """The rule `none`: codes stay as they are."""
    return items.codes, None


def count(items: NewItems) -> Resolved:
    """The rule `token`: codes stay, and a number tells items of the same codes apart.

    It goes on after the highest of the IDs that exist.
    """
    groups = group_rows(np.concatenate([items.taken, items.codes]))
    of_taken = groups[: len(items.taken)]
    of_items = groups[len(items.taken) :]
    first = np.zeros(groups.max(initial=-1) + 1, dtype=np.int64)
    if items.taken_extra is not None:
        np.maximum.at(first, of_taken, items.taken_extra + 1)
    return items.codes, first[of_items] + occurrences(of_items)


def move(items: NewItems) -> Resolved:
    """The rule `nearest`: see `move_to_nearest`."""
    return move_to_nearest(items), None


RULES: dict[str, Rule] = {"none": share, "token": count, "nearest": move}
"""By name, for a command line."""
