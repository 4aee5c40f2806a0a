"""What happens to one block of rows between the matrix products, in plain torch.

    scores [n, K] = z·b − ‖b‖²/2     logits = scores / s², up to a constant per row
    x [n, K]                         logits less the largest of their row

Each function reads and overwrites the block's arrays, and fills the results of its rows. Any dtype,
any device. `passes_numba.py` has the same functions in one pass each, for float32 on a CPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import log_exponential

MIN_LOGIT = -1e30  # of x: an infinite one would meet a zero probability


class Scale(NamedTuple):
    """What scores are multiplied by: precision = 1/s², inv_temperature = 1/τ."""

    precision: float
    inv_temperature: float


class Hashes(NamedTuple):
    """The hashes that the noise is made of, int32. Tensors here, NumPy's arrays for Numba."""

    rows: Any  # [n]
    codes: Any  # [K]


class RowStats(NamedTuple):
    """What the forward pass leaves of the rows, each [n]."""

    codes: Any  # argmax of the scores
    max_score: Any
    entropy: Any
    log_norm_p: Any  # log Σ exp x
    log_norm_y: Any  # log Σ exp((x + g) / τ)


class RowGrads(NamedTuple):
    """The small arrays of the backward pass, beside the two that are [n, K]."""

    delta: Any  # [n] given: ∂L/∂z · z, as flash attention calls it
    entropy: Any  # [n] given: ∂L/∂H
    log_s2: Any  # [n] filled: ∂L/∂log s²
    bias: Any  # [K] added to: Σ ∂L/∂scores over the rows


def nearest(scores: Tensor, codes: Tensor) -> None:
    torch.argmax(scores, 1, out=codes)


def largest(scores: Tensor, places: Tensor) -> None:
    """Where the largest of each row are, largest first: places [n, count]. Of equals any may do."""
    places.copy_(scores.topk(places.shape[1], 1).indices)


def assign(scores: Tensor, precision: float, codes: Tensor, entropy: Tensor) -> None:
    nearest(scores, codes)
    x = _relative_logits(scores, precision, scores.amax(1))
    p = torch.exp(x)
    norm = p.sum(1)
    entropy.copy_(norm.log() - p.mul_(x).sum(1) / norm)


def sample(scores: Tensor, precision: float, hashes: Hashes, codes: Tensor) -> None:
    x = _relative_logits(scores, precision, scores.amax(1))
    torch.argmax(x.sub_(_log_exponential(hashes, scores)), 1, out=codes)


def forward(scores: Tensor, scale: Scale, hashes: Hashes, stats: RowStats) -> None:
    """scores become y."""
    nearest(scores, stats.codes)
    stats.max_score.copy_(scores.amax(1))
    x = _relative_logits(scores, scale.precision, stats.max_score)
    p = torch.exp(x)
    norm = p.sum(1)
    stats.log_norm_p.copy_(norm.log())
    stats.entropy.copy_(stats.log_norm_p - p.mul_(x).sum(1) / norm)
    w = torch.sub(x, _log_exponential(hashes, x), out=p).mul_(scale.inv_temperature)
    stats.log_norm_y.copy_(torch.logsumexp(w, 1))
    torch.exp(w.sub_(stats.log_norm_y.unsqueeze(1)), out=scores)


def backward(
    scores: Tensor,
    grad_scores: Tensor,
    bias: Tensor,
    scale: Scale,
    hashes: Hashes,
    stats: RowStats,
    grads: RowGrads,
) -> None:
    """scores, here without their `bias`, become y; grad_scores go from ∂L/∂y to ∂L/∂scores.

    ∂L/∂y_k = ∂L/∂z · b_k        ∂L/∂logit_k = y_k (∂L/∂y_k − ∂L/∂z · z) / τ
    ∂H/∂logit_k = −p_k (log p_k + H)
    """
    x = _relative_logits(scores.add_(bias), scale.precision, stats.max_score)
    log_p = x - stats.log_norm_p.unsqueeze(1)
    grad_logits = (log_p + stats.entropy.unsqueeze(1)).mul_(log_p.exp_())
    grad_logits.mul_(-grads.entropy.unsqueeze(1))
    w = torch.sub(x, _log_exponential(hashes, x), out=log_p).mul_(scale.inv_temperature)
    y = w.sub_(stats.log_norm_y.unsqueeze(1)).exp_()
    grad_y = grad_scores.sub_(grads.delta.unsqueeze(1))
    grad_logits.addcmul_(y, grad_y, value=scale.inv_temperature)
    torch.neg((grad_logits * x).sum(1), out=grads.log_s2)
    torch.mul(grad_logits, scale.precision, out=grad_scores)
    grads.bias.add_(grad_scores.sum(0))
    scores.copy_(y)


def _relative_logits(scores: Tensor, precision: float, max_score: Tensor) -> Tensor:
    # With x ≤ 0 both log Σ exp x and −Σ p·x are ≥ 0, and so is the entropy in any precision.
    return scores.sub_(max_score.unsqueeze(1)).mul_(precision).clamp_(MIN_LOGIT, 0.0)


def _log_exponential(hashes: Hashes, like: Tensor) -> Tensor:
    return log_exponential(*hashes).to(like.dtype)
