"""Stochastic quantization and nearest codes in blocks of rows: memory does not grow with N x K.

    scores = z·b − ‖b‖²/2    one product
    y, H, codes              one pass: `passes_numba.py`, or `passes_torch.py`
    z = y B                  one product

with logits = scores / s², where the dropped ‖z‖² cancels in every softmax;

and backwards, with scores and noise computed again, as attention kernels do with their dropout
mask: two products, one pass that makes ∂L/∂scores, and three products that carry it to z and to the
codebook. A block of scores stays in a core's cache, every thread has its own rows, and the arrays
of a block are all that is kept. The formulas are in `reference.py`.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import passes_torch
from .passes_torch import Hashes, RowGrads, RowStats, Scale
from .threads import parallel_for, split_rows

BLOCK_ELEMENTS = 1 << 18  # rows x codes of one block: what a core's cache holds
GPU_BLOCK_ELEMENTS = 1 << 26  # a GPU has to be kept busy; some arrays of 256 MB
MIN_ROWS = 64  # of a block: fewer make the products slow, at K = 65 536 too
_MIN_PRODUCT_ROWS = 4  # libraries round products of fewer rows in ways of their own


@cache
def _numba_passes() -> ModuleType | None:
    try:
        return importlib.import_module("hqvae.quantize.kernels.passes_numba")
    except (ImportError, RuntimeError):  # no Numba for this platform, or no folder for its cache
        return None


def _passes(z: Tensor) -> ModuleType:
    """The passes for z's device and dtype."""
    compiled = z.dtype == torch.float32 and z.device.type == "cpu"
    return (_numba_passes() if compiled else None) or passes_torch


@cache
def _onednn_linear() -> Any:
    """oneDNN's linear layer, or None. On processors that are not Intel's, MKL is slower."""
    vectors = torch.backends.cpu.get_cpu_capability()
    if not (torch.backends.mkldnn.is_available() and vectors.startswith("AVX")):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias; x and weight may be transposed views.

    A row's product does not depend on the rows beside it, and the bias is added when the product is
    rounded: the backward pass computes the scores again, with other rows, to the same bits.
    """
    if 0 < len(x) < _MIN_PRODUCT_ROWS:
        padding = x.new_zeros(_MIN_PRODUCT_ROWS - len(x), x.shape[1])
        return _linear(torch.cat([x, padding]), weight, bias)[: len(x)]
    onednn = _onednn_linear() if x.dtype == torch.float32 and x.device.type == "cpu" else None
    if onednn is not None and x.numel() and weight.numel():
        return onednn(x, weight, bias, "none", [], "")
    product = torch.mm(x, weight.T)
    return product if bias is None else product.add_(bias)


def _bias(codebook: Tensor) -> Tensor:
    """−‖b‖²/2 [K]: with it, scores are a linear layer of z."""
    return -codebook.square().sum(1) / 2


def _blocks(part: slice, codes: int, device: torch.device, beam_size: int = 1) -> Iterator[slice]:
    elements = GPU_BLOCK_ELEMENTS if device.type == "cuda" else BLOCK_ELEMENTS
    # A row with many partial sums makes a large product by itself.
    least = max(1, min(MIN_ROWS, MIN_ROWS**2 // beam_size))
    step = max(least, elements // codes)
    for start in range(part.start, part.stop, step):
        yield slice(start, min(start + step, part.stop))


def _parts(z: Tensor) -> list[slice]:
    return split_rows(len(z), MIN_ROWS) if z.device.type == "cpu" else [slice(0, len(z))]


def _for_each_block(z: Tensor, codebook: Tensor, work: Callable[[slice, Tensor], None]) -> None:
    """work(rows, scores) for every block, the parts in parallel."""
    parts = _parts(z)
    bias = _bias(codebook)

    def over_part(part: int) -> None:
        for rows in _blocks(parts[part], len(codebook), z.device):
            work(rows, _linear(z[rows], codebook, bias))

    if len(z):
        parallel_for(over_part, len(parts))


def _empty_codes(z: Tensor, *shape: int) -> Tensor:
    return torch.empty(len(z), *shape, dtype=torch.long, device=z.device)


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k ‖z − b_k‖², int64 [N]."""
    passes = _passes(z)
    codes = _empty_codes(z)
    _for_each_block(z, codebook, lambda rows, scores: passes.nearest(scores, codes[rows]))
    return codes


def beam_search(
    z: Tensor,
    codebooks: Sequence[Tensor],
    centres: Sequence[Tensor],
    beam_size: int,
    count: int = 1,
) -> Tensor:
    """Beam search for argmin ‖z − Σ_l b^l‖², int64 [N, count, L]; keeps `beam_size` partial sums.

    The best `count` sums come back, which must be no more than are kept. Each codebook comes less
    its centre, and z is moved by the centres on the way.
    """
    codes = _empty_codes(z, count, len(codebooks))
    passes = _passes(z)
    parts = _parts(z)
    layers = [(codebook, _bias(codebook), c) for codebook, c in zip(codebooks, centres)]
    widest = beam_size * max(len(codebook) for codebook in codebooks)

    def over_part(part: int) -> None:
        for rows in _blocks(parts[part], widest, z.device, beam_size):
            codes[rows] = _beam_search_block(passes, z[rows], layers, beam_size)[:, :count]

    if len(z):
        parallel_for(over_part, len(parts))
    return codes


def _beam_search_block(
    passes: ModuleType, z: Tensor, layers: Sequence[tuple[Tensor, Tensor, Tensor]], beam_size: int
) -> Tensor:
    """The codes of all sums that are kept at the end, best first."""
    # With r less the codebook's centre, −‖r − b‖²/2 = score − ‖r‖²/2; of ‖r‖²/2 only what the
    # sums differ by is subtracted, which is nothing where there is one.
    residual = z.unsqueeze(1)  # [n, beam, D]
    codes = _empty_codes(z, 1, 0)  # [n, beam, layers so far]
    for codebook, bias, centre in layers:
        residual = residual - centre
        half_square = residual.square().sum(2, keepdim=True) / 2
        scores = _linear(residual.flatten(0, 1), codebook, bias).view(len(z), -1, len(codebook))
        scores = scores.sub_(half_square - half_square.amin(1, keepdim=True)).flatten(1)
        best = _empty_codes(z, min(beam_size, scores.shape[1]))
        passes.largest(scores, best)
        parent = (best // len(codebook)).unsqueeze(2)
        code = best % len(codebook)
        parent_codes = codes.gather(1, parent.expand(-1, -1, codes.shape[2]))
        codes = torch.cat([parent_codes, code.unsqueeze(2)], 2)
        residual = residual.gather(1, parent.expand(-1, -1, z.shape[1])) - codebook[code]
    return codes


def assign(z: Tensor, codebook: Tensor, log_s2: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest codes [N], exact entropy [N] in nats)."""
    passes = _passes(z)
    precision = math.exp(-float(log_s2))
    codes = _empty_codes(z)
    entropy = z.new_empty(len(z))

    def work(rows: slice, scores: Tensor) -> None:
        passes.assign(scores, precision, codes[rows], entropy[rows])

    _for_each_block(z, codebook, work)
    return codes, entropy


def sample(z: Tensor, codebook: Tensor, log_s2: Tensor, hashes: Hashes) -> Tensor:
    """One hard sample per row from P̂ (Gumbel-max), int64 [N]."""
    passes = _passes(z)
    precision = math.exp(-float(log_s2))
    codes = _empty_codes(z)

    def work(rows: slice, scores: Tensor) -> None:
        passes.sample(scores, precision, _hashes_of(hashes, rows), codes[rows])

    _for_each_block(z, codebook, work)
    return codes


def forward(
    z: Tensor, codebook: Tensor, log_s2: Tensor, temperature: Tensor, hashes: Hashes
) -> tuple[Tensor, RowStats]:
    """(relaxed sample [N, D], what the backward pass needs of the rows)."""
    passes = _passes(z)
    scale = _scale(log_s2, temperature)
    out = torch.empty_like(z)
    stats = RowStats(_empty_codes(z), *(z.new_empty(len(z)) for _ in RowStats._fields[1:]))

    def work(rows: slice, scores: Tensor) -> None:
        passes.forward(scores, scale, _hashes_of(hashes, rows), _stats_of(stats, rows))
        out[rows] = _linear(scores, codebook.T)

    _for_each_block(z, codebook, work)
    return out, stats


def backward(
    grads: tuple[Tensor, Tensor],
    z: Tensor,
    codebook: Tensor,
    log_s2: Tensor,
    temperature: Tensor,
    hashes: Hashes,
    output: tuple[Tensor, RowStats],  # of `forward`
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, codebook and log_s2, from those of the relaxed sample and the entropy."""
    grad_out, grad_entropy = grads
    out, stats = output
    delta = (grad_out * out).sum(1)
    grad_z = torch.empty_like(z)
    grad_log_s2 = z.new_zeros(len(z))
    passes = _passes(z)
    scale = _scale(log_s2, temperature)
    bias = _bias(codebook)
    parts = _parts(z)
    grad_biases = [torch.zeros_like(bias) for _ in parts]
    grad_codebooks = [z.new_zeros(z.shape[1], len(codebook)) for _ in parts]

    def over_part(part: int) -> None:
        for rows in _blocks(parts[part], len(codebook), z.device):
            # One product each way for both: [z; ∂L/∂z] makes the arrays, and [y; ∂L/∂scores]
            # carries them to the codebook.
            both = _linear(torch.cat([z[rows], grad_out[rows]]), codebook)
            scores, grad_scores = both.chunk(2)
            sums = RowGrads(delta[rows], grad_entropy[rows], grad_log_s2[rows], grad_biases[part])
            known = (_hashes_of(hashes, rows), _stats_of(stats, rows))
            passes.backward(scores, grad_scores, bias, scale, *known, sums)
            grad_z[rows] = _linear(grad_scores, codebook.T)
            factors = torch.cat([grad_out[rows], z[rows]]).T.contiguous()
            grad_codebooks[part] += _linear(factors, both.T)

    if len(z):
        parallel_for(over_part, len(parts))
    grad_codebook = torch.stack(grad_codebooks).sum(0).T.contiguous()
    grad_bias = torch.stack(grad_biases).sum(0).unsqueeze(1)
    return grad_z, grad_codebook.addcmul_(codebook, grad_bias, value=-1), grad_log_s2.sum()


def _scale(log_s2: Tensor, temperature: Tensor) -> Scale:
    return Scale(math.exp(-float(log_s2)), 1 / float(temperature))


def _hashes_of(hashes: Hashes, rows: slice) -> Hashes:
    return Hashes(hashes.rows[rows], hashes.codes)


def _stats_of(stats: RowStats, rows: slice) -> RowStats:
    return RowStats(*(values[rows] for values in stats))
