"""The nearest other items of some items, by Euclidean distance, in bounded memory."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .groups import hash_rows, mix, occurrences

_BLOCK = 1 << 20  # distances that are held at once: what a cache holds


@torch.no_grad()
def nearest_items(
    vectors: Float[Tensor, "N D"], queries: Int64[Tensor, "Q"], count: int
) -> Int64[Tensor, "Q C"]:
    """The numbers of the `count` nearest other items of each query, or of all others if fewer.

    Nearest first. Which of equally near ones comes first is not defined.

    >>> nearest_items(torch.tensor([[0.0], [1.0], [5.0], [6.5]]), torch.tensor([0, 3]), 2)
    tensor([[1, 2],
            [2, 1]])
    """
    # Less the mean, for distances come from products, which would round them away far from zero.
    centre = vectors.mean(0, dtype=torch.float64).float()
    own = vectors[queries].float() - centre
    count = min(count, len(vectors) - 1)
    best = own.new_full((len(own), count), -torch.inf)
    numbers = queries.new_zeros(len(own), count)
    step = max(1, _BLOCK // max(1, len(own)))
    for start in range(0, len(vectors) if count else 0, step):
        block = vectors[start : start + step].float() - centre
        # −‖q − x‖²/2, up to ‖q‖²/2.
        scores = torch.addmm(block.square().sum(1), own, block.T, beta=-0.5)
        inside = ((queries >= start) & (queries < start + len(block))).nonzero().squeeze(1)
        scores[inside, queries[inside] - start] = -torch.inf
        # The more has been seen, the fewer queries find a nearer one: only these are sorted.
        rows = (scores.amax(1) > best[:, -1]).nonzero().squeeze(1)
        found, places = scores[rows].topk(min(count, len(block)), 1)
        best[rows], order = torch.cat([best[rows], found], 1).topk(count, 1)
        numbers[rows] = torch.cat([numbers[rows], places + start], 1).gather(1, order)
    return numbers


def sample_rows(
    vectors: Float[Tensor, "N D"], codes: Int64[np.ndarray, "N"], count: int, seed: int
) -> Int64[Tensor, "Q"]:
    """`count` items at random, or all if fewer: the same ones in whatever order items stand.

    So the draw is from what items are, their vector and the number of their codes. Equal items
    are numbered, so that many of them are neither all drawn nor all left out.
    """
    if len(vectors) <= count:
        return torch.arange(len(vectors))
    hashes = mix(hash_rows(vectors, seed) ^ mix(codes.astype(np.uint64)))
    copies = occurrences(hashes.view(np.int64)).astype(np.uint64)
    drawn = np.argpartition(mix(hashes + mix(copies)), count)[:count]
    return torch.from_numpy(np.sort(drawn))
