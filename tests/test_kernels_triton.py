"""The Triton kernels compile for real GPUs, though none is here, and fit into their memory.

What they compute: `test_kernels.py`.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hqvae.quantize.kernels import triton_gpu, triton_kernels as kernels

capability, limit, *dims = map(int, sys.argv[1:])
backward = [kernels.backward_rows, kernels.backward_codes]
cases = {
    1: [kernels.backward_codes],  # the smallest product there is, in every orientation
    64: [kernels.forward, *backward],  # the widest codes of each size of tiles
    128: [kernels.forward, *backward],
    256: [kernels.search, kernels.forward, *backward],
}
pointers = {"row_hashes_ptr": "*i32", "code_hashes_ptr": "*i32", "codes_ptr": "*i64"}
for dim in dims:
    for kernel in cases[dim]:
        constants = {**triton_gpu._sizes(dim), "NOISE": True, "RELAX": True}
        options = {"num_stages": constants.pop("num_stages")}
        constants = {k: value for k, value in constants.items() if k in kernel.arg_names}
        types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
        types |= {name: kind for name, kind in pointers.items() if name in types}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, types, constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert 0 < built.metadata.shared <= limit, (kernel, dim, built.metadata.shared)
        assert len(built.asm["cubin"]) > 1000, (kernel, dim)
        print(kernel.__name__, dim)
"""


@pytest.mark.parametrize(("dims", "kernels"), [((1, 64), 4), ((128, 256), 7)], ids=str)
def test_kernels_compile_for_small_gpus(dims, kernels):
    """Compute capability 8.6: 99 KiB for a block."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "86", str(99 * 1024), *map(str, dims)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == kernels
