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
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.ranks import all_mean

_DECAY = 0.99  # of the running mean of squared errors
_CARRIED = 0.1  # of s: what the most nats are in the dimension that carries them to the sample


def check_weight(weight: float) -> float:
    """The weight. Raises ValueError where it is below 0 or not finite."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"a rate weight of {weight:g}; expected a number from 0 up")
    return weight


class LearnedPrior(nn.Module):
    """log p_k of every layer of a stack, by gradient; and s² where codes are the nearest ones.

    The bound has −E log p(Z) in it. Its gradient moves p to how often codes are drawn, whatever w
    is. With relaxed samples it moves features towards codes of few bits too, w times. Nearest codes
    have no s² of their own. Theirs is the mean squared error of a dimension, the maximum-likelihood
    variance of p(z̃ | z).

    Args:
        layers: L
        codebook_size: K
        weight: w, of −log p where codes are chosen; 1 is the bound, 0 a prior that nothing pays

    Shape:
        logits [L, K], a parameter; s2 [], a running mean

    >>> prior = LearnedPrior(layers=2, codebook_size=16)
    >>> prior.nats(0).shape, round(float(prior.nats(0)[3]) / math.log(2), 4)
    (torch.Size([16]), 4.0)
    """

    s2: Tensor

    def __init__(self, layers: int, codebook_size: int, weight: float = 1.0):
        super().__init__()
        self.weight = check_weight(weight)
        self.logits = nn.Parameter(torch.zeros(layers, codebook_size))
        self.register_buffer("s2", torch.ones(()))

    def check_fits(self, layers: int, codebook_size: int) -> None:
        """Raises ValueError where it is of other layers and codes than a stack's."""
        if tuple(self.logits.shape) != (layers, codebook_size):
            raise ValueError(
                f"the prior is of {' × '.join(map(str, self.logits.shape))} codes; "
                f"expected {layers} × {codebook_size}"
            )

    def nats(self, layer: int) -> Float[Tensor, "K"]:
        """−log p_k of a layer's codes, float32 under any autocast."""
        return -self.logits[layer].float().log_softmax(0)

    def rate(self, layer: int, codes: Int[Tensor, "B *S"]) -> Float[Tensor, "B"]:
        """−log p of codes, summed over the positions of each sample; its gradient moves p."""
        return self.nats(layer)[codes].reshape(len(codes), -1).sum(1)

    def relaxed_rate(
        self, layer: int, mixed: Float[Tensor, "B"], drawn: Int[Tensor, "B *S"]
    ) -> Float[Tensor, "B"]:
        """−log p of a relaxed sample: w times the gradient of its mixture, and that of p.

        Args:
            layer: of the stack
            mixed: what the sample mixes of −log p, p held
            drawn: hard draws from the same P̂, which p is to fit
        """
        fit = self.rate(layer, drawn)
        return mixed.detach() + self.weight * (mixed - mixed.detach()) + fit - fit.detach()

    def prices(self, s2: Tensor, weight: float | None = None) -> Sequence[Tensor | None]:
        """2s² w (−log p_k) [K] of every layer; None where nothing is to be paid.

        Args:
            s2: the level's variance
            weight: in place of the prior's own
        """
        w = self.weight if weight is None else check_weight(weight)
        if w == 0:
            return [None] * len(self.logits)
        return [2 * s2 * w * self.nats(layer) for layer in range(len(self.logits))]

    def charge(
        self, layer: int, rows: Float[Tensor, "N D"], vectors: Float[Tensor, "K D"], s2: Tensor
    ) -> tuple[Float[Tensor, "N D2"], Float[Tensor, "K D2"], Tensor]:
        """(rows, codes, c): two more dimensions, by which P̂_{s²} of a kernel is that of the prior.

        The last one carries c · (−log p_k), so that a mixture of codes holds that of their nats.
        What it adds to the distance is taken off the price. All codes pay one nat more, which
        changes no P̂ and keeps √price real. p is held: how it fits is `relaxed_rate`'s.
        """
        nats = self.nats(layer).detach()
        scale = _CARRIED * s2.detach().sqrt() / nats.max().clamp(min=1)
        carried = scale * nats
        price = 2 * s2 * (1 + self.weight * nats) - carried.square()
        columns = torch.stack([price.sqrt(), carried], 1).to(vectors)
        zeros = rows.new_zeros(len(rows), 2)
        return torch.cat([rows, zeros], 1), torch.cat([vectors, columns], 1), scale

    @torch.no_grad()
    def start(self, codes: Sequence[Int[Tensor, "B *S"]], error: Float[Tensor, "B D *S"]) -> None:
        """p becomes the share of every layer's codes, and s² that of the error; changes state.

        No code begins below 1/41 of an even share.
        """
        size = self.logits.shape[1]
        for layer, of_layer in enumerate(codes):
            counts = torch.bincount(of_layer.flatten(), minlength=size).to(self.logits)
            even = counts.sum() / size
            self.logits[layer] = (counts + even / 40).log()
            self.logits[layer] -= self.logits[layer].logsumexp(0)
        self.s2.copy_(error.float().square().mean())

    @torch.no_grad()
    def track(self, error: Float[Tensor, "B D *S"]) -> None:
        """Move s² towards the mean square of what codes miss, over all processes."""
        self.s2.lerp_(all_mean(error.float().square().mean()), 1 - _DECAY)


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
