"""Rows shared between torch's threads: nothing changes, and errors come out."""

import pytest
import torch
from kernel_backends import BLOCKED, backends, inputs, set_rows_per_block, with_gradients

from hqvae.quantize.kernels import blocked, quantize, threads

HAS_THREADS = threads._gomp_parallel() is not None


@backends(*BLOCKED)
@pytest.mark.parametrize("count", [2, 5])
def test_threads_share_the_rows_and_change_nothing(count, backend, monkeypatch):
    set_rows_per_block(monkeypatch, 16)
    leaves = inputs(333, 33, 5, dtype=backend.dtype)
    alone = with_gradients(quantize, leaves, 0.6, 5)
    torch.set_num_threads(count)
    try:
        parts = blocked._parts(leaves[0])
        shared = with_gradients(quantize, leaves, 0.6, 5)
    finally:
        torch.set_num_threads(1)
    assert len(parts) == (count if HAS_THREADS else 1)
    assert [parts[0].start, parts[-1].stop] == [0, 333]
    for ours, theirs in zip([*shared[0], *shared[1]], [*alone[0], *alone[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not HAS_THREADS, reason="torch's OpenMP offers no parallel region here")
def test_an_error_in_a_thread_comes_out_and_every_part_runs_once():
    done = []
    threads.parallel_for(done.append, 7)
    assert sorted(done) == list(range(7))

    def fail(part):
        if part == 3:
            raise KeyError(part)
        done.append(part)

    with pytest.raises(KeyError, match="3"):
        threads.parallel_for(fail, 7)
