"""The Triton kernels compile for real GPUs, though none is here, and fit into their memory. What they compute: test_quantize_ops.py."""

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
from hqvae.quantize import kernels

width, capability, limit = map(int, sys.argv[1:])
for kernel in (kernels._forward, kernels._pull_rows, kernels._pull_codes):
    sizes = kernels._sizes(width)
    options = {"num_stages": sizes.pop("num_stages")}
    constants = {name: size for name, size in {**sizes, "MODE": 3}.items() if name in kernel.arg_names}
    kinds = {"row_bits_ptr": "*i32", "code_bits_ptr": "*i32", "codes_ptr": "*i64"}
    kinds |= {name: "constexpr" for name in constants}
    signature = {name: kinds.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in kernel.arg_names}
    built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32), options=options)
    assert 0 < built.metadata.shared <= limit, (kernel, built.metadata.shared)
    assert len(built.asm["cubin"]) > 1000
"""


@pytest.mark.parametrize("width", [1, 64, 128, 256])
def test_kernels_compile_for_small_gpus(width):
    """Compute capability 8.6: 99 KiB for a block."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, str(width), "86", str(99 * 1024)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
