"""Equal rows as numbers: which items share a prefix of codes, which have the same vector."""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

_BLOCK = 1 << 22  # values that are hashed at once
_ROOM = 4  # possible groups for each item, up to which a table of them is worth its memory


def refine(
    groups: Int64[np.ndarray, "N"], values: Int64[np.ndarray, "N"]
) -> Int64[np.ndarray, "N"]:
    """The groups that items form by their group and a value ≥ 0: numbers 0, 1, … in that order.

    >>> refine(np.array([0, 0, 1, 1]), np.array([7, 3, 5, 5]))
    array([1, 0, 2, 2])
    """
    size = int(values.max(initial=0)) + 1
    joint = groups * size + values
    bound = (int(groups.max(initial=0)) + 1) * size
    if bound > _ROOM * len(joint):
        return np.unique(joint, return_inverse=True)[1]
    there = np.zeros(bound, dtype=bool)  # counted through, which is faster than sorting
    there[joint] = True
    return (np.cumsum(there) - 1)[joint]


def group_rows(codes: Int64[np.ndarray, "N L"]) -> Int64[np.ndarray, "N"]:
    """The same number for equal rows, 0, 1, … in the order of the rows' codes.

    >>> group_rows(np.array([[1, 0], [0, 9], [1, 0]]))
    array([1, 0, 1])
    """
    groups = np.zeros(len(codes), dtype=np.int64)
    for values in codes.T:
        groups = refine(groups, values)
    return groups


def hash_rows(vectors: Float[Tensor, "N D"], seed: int = 0) -> UInt64[np.ndarray, "N"]:
    """A number of 64 bits for each row, the same for rows of the same bytes.

    A multilinear hash: Σ_i m_i w_i over the 32-bit words of a row, with random odd m_i. Two rows
    that differ share a number with a probability far below one in a million millions.
    """
    wide = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    words = vectors.shape[1] * wide.itemsize // 4
    generator = np.random.default_rng(seed)
    factors = generator.integers(2**64, size=words, dtype=np.uint64) | np.uint64(1)
    step = max(1, _BLOCK // max(1, words))
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].detach().to("cpu", wide).contiguous()
        as_words = block.numpy().view(np.uint32).astype(np.uint64)
        hashes[start : start + step] = mix((as_words * factors).sum(1, dtype=np.uint64))
    return hashes


def mix(hashes: UInt64[np.ndarray, "*N"]) -> UInt64[np.ndarray, "*N"]:
    """Every bit has a say in every other: the last steps of SplitMix64, which lose nothing."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def occurrences(groups: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "N"]:
    """How many of an item's group come before it.

    >>> occurrences(np.array([5, 2, 5, 5, 2]))
    array([0, 0, 1, 2, 1])
    """
    order = np.argsort(groups, kind="stable")
    in_order = groups[order]
    first = np.ones(len(groups), dtype=bool)
    first[1:] = in_order[1:] != in_order[:-1]
    starts = np.flatnonzero(first)
    places = np.arange(len(groups))
    counted = np.empty(len(groups), dtype=np.int64)
    counted[order] = places - np.repeat(starts, np.diff(starts, append=len(groups)))
    return counted
