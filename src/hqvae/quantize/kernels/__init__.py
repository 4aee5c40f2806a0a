"""Stochastic quantization and nearest codes of rows, fast on CPUs and GPUs.

functional.py      the functions below: shapes, dtypes, checks
operators.py       torch's operators behind them: backend, gradient, torch.compile
reference.py       the formulas as they read, for tests and benchmarks
blocked.py         in blocks of rows, with `passes_torch.py` or `passes_numba.py` on each block
threads.py         rows shared between torch's threads
triton_gpu.py      in Triton, for CUDA
"""

from .functional import LOG_S2_RANGE, assign, beam_search, candidates, nearest, quantize, sample

__all__ = ["LOG_S2_RANGE", "assign", "beam_search", "candidates", "nearest", "quantize", "sample"]
