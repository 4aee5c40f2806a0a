"""What torch does around the quantizers: checkpoints that compute again, and exported graphs."""

import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hqvae.quantize import GumbelSoftmaxConfig, NearestCodeConfig, ResidualQuantizer


@pytest.mark.parametrize("config", [GumbelSoftmaxConfig(), NearestCodeConfig()], ids=type)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_through_a_checkpoint_are_those_without(reentrant, config):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(dim=5, codebook_size=8, layers=2, config=config)

    def loss(z_e):
        out = quantizer(z_e, 0.7)
        return out.z.square().sum() + (out.latent_loss - out.entropy.sum(1)).sum()

    gradients = []
    for run in (loss, lambda z_e: checkpoint(loss, z_e, use_reentrant=reentrant)):
        torch.manual_seed(3)
        quantizer.zero_grad()
        z_e = torch.linspace(-1, 1, 2 * 5 * 7).reshape(2, 5, 7).requires_grad_()
        run(z_e).backward()
        gradients.append([z_e.grad, *(p.grad for p in quantizer.parameters() if p.requires_grad)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.abs().sum() > 0


SCRIPT = """
from dataclasses import replace
import torch
from hqvae.model import HQVAE
from hqvae.presets import preset
from hqvae.quantize import Codebook, NearestCodeConfig, ResidualQuantizer, VectorQuantize
from torch._dynamo.testing import CompileCounterWithBackend

class Verb(torch.nn.Module):
    def __init__(self, module, verb, **options):
        super().__init__()
        self.module = module
        self.verb = verb
        self.options = options
    def forward(self, *given):
        return getattr(self.module, self.verb)(*given, **self.options)

def check(module, verb, *given, **options):
    module = Verb(module.eval(), verb, **options)
    graph = torch.export.export(module, given).module()
    torch.testing.assert_close(graph(*given), module(*given))
    print(type(module.module).__name__, verb, flush=True)
    return graph

torch.manual_seed(0)
z_e = torch.randn(2, 8, 4, 4)
codebook = Codebook(8, 16)
check(codebook, "nearest", z_e)
for options in ({"check": False}, {}):
    graph = check(codebook, "lookup", codebook.nearest(z_e), **options)
    try:
        graph(torch.full((2, 4, 4), 16))
        raise AssertionError("a code out of range was looked up")
    except IndexError:  # the look-up's own check
        pass
for config in (None, NearestCodeConfig()):
    for beam_size in (1, 3):
        chosen = {} if config is None else {"config": config}
        stack = ResidualQuantizer(8, 16, 3, beam_size=beam_size, **chosen)
        check(stack, "encode", z_e)
        check(stack, "lookup", stack.encode(z_e))
config = preset("hqvae").model
model = HQVAE(replace(config, net=replace(config.net, widths=(8, 8), blocks=1, inner_blocks=0)))
x = torch.rand(2, 3, 32, 32) * 2 - 1
check(model, "encode", x)
check(model, "decode", model.eval().encode(x))
check(VectorQuantize(8, 16), "forward", z_e.movedim(1, -1))

quantize = VectorQuantize(8, 16)
counter = CompileCounterWithBackend("eager")
compiled = torch.compile(quantize, backend=counter)
graphs = []
for step in range(4):
    compiled(z_e.movedim(1, -1))
    graphs.append(counter.frame_count)
assert quantize.steps == 4 and graphs[1] == graphs[3], graphs
"""


def test_what_encodes_and_what_decodes_can_be_exported():
    """In a process of its own: torch cannot export the checks of shapes that tests run with."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = ["Codebook nearest", "Codebook lookup", "Codebook lookup"]
    expected += ["ResidualQuantizer encode", "ResidualQuantizer lookup"] * 4
    expected += ["HQVAE encode", "HQVAE decode", "VectorQuantize forward"]
    assert done.stdout.splitlines() == expected
