"""Stochastic quantization and the nearest-code search in blocks of rows: memory does not grow with positions x K.

    scores = z·b − ‖b‖²/2                  one product          logits = scores / s²; the dropped ‖z‖² cancels in every softmax
    y, H, codes                            one pass             `compiled.py`, or `passes.py` in plain torch
    z = y B                                one product

and backwards, with scores and noise computed again, as attention kernels do with their dropout mask: two products, one pass that
makes ∂L/∂scores, and three products that carry it to z and to the codebook. A block of scores stays in a core's cache, every
thread has its own rows, and the arrays of a block are all that is kept. The formulas are in `reference.py`.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import passes
from .passes import Bits, Rows, Scale, Slopes
from .processor import in_parallel, linear, shares

BLOCK_ELEMENTS = 1 << 18  # rows x codes of one block
FEWEST_ROWS = 64  # of a block: fewer make the products slow, at K = 65 536 too


@cache
def _compiled() -> ModuleType | None:
    try:
        return importlib.import_module("hqvae.quantize.compiled")
    except (ImportError, RuntimeError):  # no Numba for this platform, or no folder where it may keep what it compiled
        return None


def _passes(z: Tensor) -> ModuleType:
    fast = _compiled() if z.dtype == torch.float32 and z.device.type == "cpu" else None
    return fast or passes


def _call(function: Any, *arguments: Any) -> None:
    """Call a pass, with NumPy's views of the tensors if it is a compiled one."""
    function(*(_arrays(a) for a in arguments) if hasattr(function, "py_func") else arguments)


def _arrays(value: Any) -> Any:
    if isinstance(value, tuple):
        return type(value)(*map(_arrays, value))
    return value.numpy() if isinstance(value, Tensor) else value


def _blocks(share: slice, codes: int) -> Iterator[slice]:
    step = max(FEWEST_ROWS, BLOCK_ELEMENTS // codes)
    return (slice(start, min(start + step, share.stop)) for start in range(share.start, share.stop, step))


def _shares(z: Tensor) -> list[slice]:
    return shares(len(z), FEWEST_ROWS) if z.device.type == "cpu" else [slice(0, len(z))]


def _over_blocks(z: Tensor, codebook: Tensor, work: Any) -> None:
    """work(rows, scores) for every block, the shares in parallel."""
    parts, bias = _shares(z), -codebook.square().sum(1) / 2

    def share(part: int) -> None:
        for rows in _blocks(parts[part], len(codebook)):
            work(rows, linear(z[rows], codebook, bias))

    if len(z):
        in_parallel(share, len(parts))


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k ‖z − b_k‖², int64 [N]."""
    run, codes = _passes(z), torch.empty(len(z), dtype=torch.long, device=z.device)
    _over_blocks(z, codebook, lambda rows, scores: _call(run.nearest, scores, codes[rows]))
    return codes


def nearest_sum(z: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    """Beam search for argmin ‖z − Σ_l b^l‖², int64 [N, L]: after each codebook the `width` best partial sums are kept."""
    codes = torch.empty(len(z), len(codebooks), dtype=torch.long, device=z.device)
    parts, biases = _shares(z), [-codebook.square().sum(1) / 2 for codebook in codebooks]

    def share(part: int) -> None:
        for rows in _blocks(parts[part], width * max(len(codebook) for codebook in codebooks)):
            codes[rows] = _best_sum(z[rows], codebooks, biases, width)

    if len(z):
        in_parallel(share, len(parts))
    return codes


def _best_sum(z: Tensor, codebooks: Sequence[Tensor], biases: Sequence[Tensor], width: int) -> Tensor:
    # ‖r − b‖² = ‖r‖² − 2 score: what a sum has gained is twice its scores, whatever its first rest was.
    rest, gain = z.unsqueeze(1), z.new_zeros(len(z), 1)
    codes = torch.empty(len(z), 1, 0, dtype=torch.long, device=z.device)
    for codebook, bias in zip(codebooks, biases):
        scores = linear(rest.flatten(0, 1), codebook, bias).view(len(z), -1, len(codebook)).add_(gain.unsqueeze(2)).flatten(1)
        gain, places = scores.topk(min(width, scores.shape[1]), 1)
        parent, code = places // len(codebook), places % len(codebook)
        codes = torch.cat([codes.gather(1, parent.unsqueeze(2).expand(-1, -1, codes.shape[2])), code.unsqueeze(2)], 2)
        rest = rest.gather(1, parent.unsqueeze(2).expand(-1, -1, z.shape[1])) - codebook[code]
    return codes[:, 0]


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats)."""
    run, precision = _passes(z), math.exp(-float(log_s2))
    codes, entropy = torch.empty(len(z), dtype=torch.long, device=z.device), z.new_empty(len(z))
    _over_blocks(z, codebook, lambda rows, scores: _call(run.assign, scores, precision, codes[rows], entropy[rows]))
    return codes, entropy


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, bits: Bits) -> Tensor:
    """One hard draw per row from P̂ (Gumbel-max), int64 [N]."""
    run, precision = _passes(z), math.exp(-float(log_s2))
    codes = torch.empty(len(z), dtype=torch.long, device=z.device)
    _over_blocks(z, codebook, lambda rows, scores: _call(run.sample, scores, precision, _of(bits, rows), codes[rows]))
    return codes


def forward(z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, bits: Bits) -> tuple[Tensor, Rows]:
    """(relaxed sample [N, D], what is known of the rows)."""
    run, scale, out = _passes(z), _scale(log_s2, temperature), torch.empty_like(z)
    known = Rows(torch.empty(len(z), dtype=torch.long, device=z.device), *(z.new_empty(len(z)) for _ in range(4)))

    def work(rows: slice, scores: Tensor) -> None:
        _call(run.forward, scores, scale, _of(bits, rows), Rows(*(values[rows] for values in known)))
        out[rows] = linear(scores, codebook.T)

    _over_blocks(z, codebook, work)
    return out, known


def backward(
    grads: tuple[Tensor, Tensor], z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, bits: Bits, output: tuple[Tensor, Rows]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, codebook and log_s2 from those of the relaxed sample and the entropy; `output` is what `forward` gave."""
    (out, known), scale = output, _scale(log_s2, temperature)
    run, parts, bias, grad_out = _passes(z), _shares(z), -codebook.square().sum(1) / 2, grads[0]
    inner, grad_z, grad_log_s2 = (grad_out * out).sum(1), torch.empty_like(z), z.new_zeros(len(z))
    totals = [(z.new_zeros(len(codebook)), z.new_zeros(z.shape[1], len(codebook))) for _ in parts]

    def share(part: int) -> None:
        column, total = totals[part]
        for rows in _blocks(parts[part], len(codebook)):
            # One product each way for both: [z; ∂L/∂z] makes the arrays, [y; ∂L/∂scores] carries them to the codebook.
            both = linear(torch.cat([z[rows], grad_out[rows]]), codebook)
            scores, pull = both.chunk(2)
            slopes = Slopes(inner[rows], grads[1][rows], grad_log_s2[rows], column)
            _call(run.backward, scores, pull, bias, scale, _of(bits, rows), Rows(*(values[rows] for values in known)), slopes)
            grad_z[rows] = linear(pull, codebook.T)
            total += linear(torch.cat([grad_out[rows], z[rows]]).T.contiguous(), both.T)

    if len(z):
        in_parallel(share, len(parts))
    column, total = (torch.stack(values).sum(0) for values in zip(*totals))
    return grad_z, torch.addcmul(total.T.contiguous(), codebook, column.unsqueeze(1), value=-1), grad_log_s2.sum()


def _scale(log_s2: Tensor, temperature: Tensor) -> Scale:
    return Scale(math.exp(-float(log_s2)), 1 / float(temperature))


def _of(bits: Bits, rows: slice) -> Bits:
    return Bits(bits.rows[rows], bits.codes)
