"""p(Z_l), learned: one log-probability for each code of each layer. Uniform where there is none.

    P̂(b_k | z̃) ∝ p_k^w exp(−‖z̃ − b_k‖² / 2s²)                          (Bayes' rule, for w = 1)
    s² → 0:      argmin_k ‖z̃ − b_k‖² − 2s² w log p_k

The first is SQ-VAE's posterior for another prior than the uniform one. The second is
entropy-constrained quantization (Chou, Lookabaugh and Gray, 1989): a code pays for its bits. Both
are ours; docs/theory.md derives them.

What a code pays is its *price*, in squared distance. One dimension more makes any kernel charge it:
0 in z̃, and √price in the code.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.errors import InputError
from hqvae.ranks import all_mean, all_sum

RATE_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Those that a prior is fitted to beside its own; between them it is interpolated."""

_DECAY = 0.99  # of counts, and of the running mean of squared errors
_SPARE = 0.5  # of a code, that every code has been seen beside what was counted
_CARRIED = 0.1  # of s: what the most nats are in the dimension that carries them to the sample


def check_weight(weight: float) -> float:
    """The weight. Raises InputError where it is below 0 or not finite."""
    if not 0 <= weight < math.inf:
        raise InputError(f"rate_weight={weight:g}: expected a number from 0 up")
    return weight


class LearnedPrior(nn.Module):
    """p_k of every layer of a stack, by decayed counts; and s² where codes are the nearest ones.

    The bound has −E log p(Z) in it, which is least where p is how often codes are drawn, whatever w
    is. With relaxed samples its gradient moves features towards codes of few bits, w times. Nearest
    codes have no s² of their own. Theirs is the mean squared error of a dimension, the
    maximum-likelihood variance of p(z̃ | z).

    How often codes are chosen depends on what they pay, so the prior of one weight is far from that
    of another. `fit` gives it a shift of log p for each of RATE_WEIGHTS, by which codes of that
    weight are priced and coded. No shift is used in training. Without a fit all are 0.

    Args:
        layers: L
        codebook_size: K
        weight: w, of −log p where codes are chosen; 1 is the bound, 0 a prior that nothing pays

    Shape:
        counts [L, K], of a step, decayed; s2 [], a running mean; shifts [W, L, K], of RATE_WEIGHTS

    >>> prior = LearnedPrior(layers=2, codebook_size=16)
    >>> prior.nats(0).shape, round(float(prior.nats(0)[3]) / math.log(2), 4)
    (torch.Size([16]), 4.0)
    """

    counts: Tensor
    s2: Tensor
    shifts: Tensor

    def __init__(self, layers: int, codebook_size: int, weight: float = 1.0):
        super().__init__()
        self.weight = check_weight(weight)
        self.register_buffer("counts", torch.ones(layers, codebook_size))
        self.register_buffer("s2", torch.ones(()))
        self.register_buffer("shifts", torch.zeros(len(RATE_WEIGHTS), layers, codebook_size))

    def check_fits(self, layers: int, codebook_size: int) -> None:
        """Raises ValueError where it is of other layers and codes than a stack's."""
        if tuple(self.counts.shape) != (layers, codebook_size):
            raise ValueError(
                f"the prior is of {' × '.join(map(str, self.counts.shape))} codes; "
                f"expected {layers} × {codebook_size}"
            )

    def nats(self, layer: int, weight: float | None = None) -> Float[Tensor, "K"]:
        """−log p_k of a layer's codes, float32 under any autocast.

        By draws, as the bound has it; with a weight by codes that are encoded at that weight.
        """
        log_p = _log_share(self.counts[layer], 1 / (1 - _DECAY))
        if weight is not None:
            log_p = (log_p + self._shift(weight)[layer]).log_softmax(0)
        return -log_p

    def _shift(self, weight: float) -> Float[Tensor, "L K"]:
        """That of a weight, between those of the nearest weights that have one."""
        fitted = {
            self.weight: torch.zeros_like(self.shifts[0]),
            **dict(zip(RATE_WEIGHTS, self.shifts)),
        }
        known = sorted(fitted)
        above = min(bisect_left(known, weight), len(known) - 1)
        below = max(above - 1, 0)
        between = np.log1p([known[below], known[above]])
        share = float(np.interp(math.log1p(weight), between, [0.0, 1.0]))
        return torch.lerp(fitted[known[below]], fitted[known[above]], share)

    def rate(self, layer: int, codes: Int[Tensor, "B *S"]) -> Float[Tensor, "B"]:
        """−log p of codes, summed over the positions of each sample."""
        return self.nats(layer)[codes].reshape(len(codes), -1).sum(1)

    def relaxed_rate(self, mixed: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """−log p of a relaxed sample, which is what it mixes; w times its gradient."""
        return mixed.detach() + self.weight * (mixed - mixed.detach())

    def prices(self, s2: Tensor, weight: float | None = None) -> Sequence[Tensor | None]:
        """2s² w (−log p_k) [K] of every layer; None where nothing is to be paid.

        Args:
            s2: the level's variance
            weight: in place of the prior's own
        """
        w = self.weight if weight is None else check_weight(weight)
        if w == 0:
            return [None] * len(self.counts)
        other = None if w == self.weight else w  # at its own, evaluation chooses as training does
        return [2 * s2 * w * self.nats(layer, other) for layer in range(len(self.counts))]

    def charge(
        self, layer: int, rows: Float[Tensor, "N D"], vectors: Float[Tensor, "K D"], s2: Tensor
    ) -> tuple[Float[Tensor, "N D2"], Float[Tensor, "K D2"], Tensor]:
        """(rows, codes, c): two more dimensions, by which P̂_{s²} of a kernel is that of the prior.

        The last one carries c · (−log p_k), so that a mixture of codes holds that of their nats.
        What it adds to the distance is taken off the price. All codes pay one nat more, which
        changes no P̂ and keeps √price real.
        """
        nats = self.nats(layer)
        scale = _CARRIED * s2.detach().sqrt() / nats.max().clamp(min=1)
        carried = scale * nats
        price = 2 * s2 * (1 + self.weight * nats) - carried.square()
        columns = torch.stack([price.sqrt(), carried], 1).to(vectors)
        zeros = rows.new_zeros(len(rows), 2)
        return torch.cat([rows, zeros], 1), torch.cat([vectors, columns], 1), scale

    @torch.no_grad()
    def start(
        self, codes: Int[Tensor, "B L *S"], error: Float[Tensor, "B D *S"], steps: int
    ) -> None:
        """p becomes the share of codes of `steps` steps, s² that of the error; changes state."""
        self.counts.copy_(self.count(codes) / steps)
        self.s2.copy_(error.float().square().mean())

    @torch.no_grad()
    def fit(self, weight: float, counts: Float[Tensor, "L K"]) -> None:
        """p of a weight becomes the share of every layer's codes there; changes state.

        Raises ValueError for a weight that is none of RATE_WEIGHTS.
        """
        if weight not in RATE_WEIGHTS:
            raise ValueError(f"a rate weight of {weight:g}; expected one of {RATE_WEIGHTS}")
        for layer, of_layer in enumerate(counts):
            shift = _log_share(of_layer) + self.nats(layer)
            self.shifts[RATE_WEIGHTS.index(weight), layer] = shift

    @torch.no_grad()
    def begin_fit(self, weight: float, other: float) -> None:
        """p of a weight becomes that of another one, which is near it; changes state."""
        self.shifts[RATE_WEIGHTS.index(weight)] = self._shift(other)

    @torch.no_grad()
    def track(self, codes: Int[Tensor, "B L *S"], error: Float[Tensor, "B D *S"]) -> None:
        """Move p towards the share of these codes, and s² towards the mean square of the error.

        Of all processes together; changes state.
        """
        self.counts.lerp_(all_sum(self.count(codes)), 1 - _DECAY)
        self.s2.lerp_(all_mean(error.float().square().mean()).to(self.s2), 1 - _DECAY)

    def count(self, codes: Int[Tensor, "B L *S"]) -> Float[Tensor, "L K"]:
        """How often each code is among these."""
        size = self.counts.shape[1]
        counted = [torch.bincount(own.flatten(), minlength=size) for own in codes.unbind(1)]
        return torch.stack(counted).to(self.counts)


def _log_share(counts: Float[Tensor, "K"], steps: float = 1.0) -> Float[Tensor, "K"]:
    """log p_k of counts that are those of one of so many steps (Krichevsky and Trofimov, 1981)."""
    return (counts.float() * steps + _SPARE).log().log_softmax(0)


def priced(
    rows: Float[Tensor, "N D"],
    vectors: Sequence[Float[Tensor, "K D"]],
    prices: Sequence[Float[Tensor, "K"]],
) -> tuple[Float[Tensor, "N DL"], list[Float[Tensor, "K DL"]]]:
    """Rows and codes such that ‖row − Σ code‖² is greater by the prices of the codes in the sum.

    Each layer pays in a dimension of its own: 0 in rows and in other layers' codes.
    """
    layers = len(vectors)
    wide = [_widen(of_layer, layers) for of_layer in vectors]
    dim = rows.shape[1]
    for layer, price in enumerate(prices):
        wide[layer][:, dim + layer] = price.sqrt().to(wide[layer])
    return _widen(rows, layers), wide


def _widen(rows: Tensor, columns: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(len(rows), columns)], 1)
