"""Items that want an ID, and the IDs that are taken already: what every rule is given."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from torch import Tensor

Candidates = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(row numbers [n], count) → codes [n, B, L] of the nearest IDs of these items, and their errors
[n, B]. B is `count`, or the number of all IDs where that is less. A row's answer is its own: it
does not depend on the rows asked for with it."""


@dataclass(frozen=True)
class NewItems:
    """Items in the order of their keys.

    codes: [n, L], of the model
    rows: [n], the items' numbers as `candidates` knows them
    taken: [m, L], the codes of IDs that exist already
    taken_extra: [m], their extra tokens; None where they have none
    """

    codes: Int64[np.ndarray, "n L"]
    rows: Int64[np.ndarray, "n"]
    taken: Int64[np.ndarray, "m L"]
    taken_extra: Int64[np.ndarray, "m"] | None
    codebook_sizes: tuple[int, ...]
    candidates: Candidates | None
