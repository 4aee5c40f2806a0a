"""What happens to one block of rows between the matrix products, in plain torch: any dtype, any device.

    scores [n, K] = z·b − ‖b‖²/2, so that logits = scores / s² up to a constant per row; x = logits less their row's largest

Each function reads and overwrites the block's arrays, and fills the rows' results. `compiled.py` has the same functions in one
pass each, for float32 on a CPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .noise import log_exponential


class Scale(NamedTuple):
    """precision = 1/s², sharpness = 1/τ."""

    precision: float
    sharpness: float


class Bits(NamedTuple):
    """The hashes that the noise is made of, int32 [n] and [K]."""

    rows: Any  # tensors here, NumPy's arrays in compiled.py
    codes: Any


class Rows(NamedTuple):
    """What is known of the rows after the forward pass, each [n]."""

    codes: Any  # argmax of the scores
    top: Any  # the largest score
    entropy: Any
    log_norm: Any  # log Σ exp x
    log_mass: Any  # log Σ exp((x + g) / τ)


class Slopes(NamedTuple):
    """Gradients beside the two big arrays: of the rows [n] what is given (inner = ∂L/∂z · z, entropy) and made (log_s2), and
    `column` [K], to which the sums of ∂L/∂scores over rows are added."""

    inner: Any
    entropy: Any
    log_s2: Any
    column: Any


FLOOR = -1e30  # of x: an infinite one would meet a zero probability


def nearest(scores: Tensor, codes: Tensor) -> None:
    torch.argmax(scores, 1, out=codes)


def _relative(scores: Tensor, precision: float, top: Tensor) -> Tensor:
    # Relative to the largest: log Σ exp and −Σ p·x are then both ≥ 0, and so is the entropy in any precision.
    return scores.sub_(top.unsqueeze(1)).mul_(precision).clamp_(FLOOR, 0.0)


def assign(scores: Tensor, precision: float, codes: Tensor, entropy: Tensor) -> None:
    nearest(scores, codes)
    x = _relative(scores, precision, scores.amax(1))
    p = torch.exp(x)
    total = p.sum(1)
    entropy.copy_(total.log() - p.mul_(x).sum(1) / total)


def sample(scores: Tensor, precision: float, bits: Bits, codes: Tensor) -> None:
    torch.argmax(_relative(scores, precision, scores.amax(1)).sub_(_noise(bits, scores)), 1, out=codes)


def forward(scores: Tensor, scale: Scale, bits: Bits, rows: Rows) -> None:
    """scores become y."""
    nearest(scores, rows.codes)
    rows.top.copy_(scores.amax(1))
    x = _relative(scores, scale.precision, rows.top)
    p = torch.exp(x)
    total = p.sum(1)
    rows.log_norm.copy_(total.log())
    rows.entropy.copy_(rows.log_norm - p.mul_(x).sum(1) / total)
    w = torch.sub(x, _noise(bits, x), out=p).mul_(scale.sharpness)
    rows.log_mass.copy_(torch.logsumexp(w, 1))
    torch.exp(w.sub_(rows.log_mass.unsqueeze(1)), out=scores)


def backward(scores: Tensor, pull: Tensor, bias: Tensor, scale: Scale, bits: Bits, rows: Rows, slopes: Slopes) -> None:
    """scores, here without their `bias`, become y, and `pull` [n, K] = ∂L/∂z · b_k becomes ∂L/∂scores.

    ∂H/∂logit_k = −p_k (log p_k + H)        ∂L/∂logit_k = y_k (∂L/∂z · b_k − ∂L/∂z · z) / τ
    """
    x = _relative(scores.add_(bias), scale.precision, rows.top)
    log_p = x - rows.log_norm.unsqueeze(1)
    slope = (log_p + rows.entropy.unsqueeze(1)).mul_(log_p.exp_()).mul_(-slopes.entropy.unsqueeze(1))
    w = torch.sub(x, _noise(bits, x), out=log_p).mul_(scale.sharpness)
    y = w.sub_(rows.log_mass.unsqueeze(1)).exp_()
    slope.addcmul_(y, pull.sub_(slopes.inner.unsqueeze(1)), value=scale.sharpness)
    torch.neg((slope * x).sum(1), out=slopes.log_s2)
    torch.mul(slope, scale.precision, out=pull)
    slopes.column.add_(pull.sum(0))
    scores.copy_(y)


def _noise(bits: Bits, like: Tensor) -> Tensor:
    return log_exponential(*bits).to(like.dtype)
