"""torch.compile of whole models: one graph for every step, with the uncompiled model's results.

In a process of its own: torch cannot compile the checks of shapes that the other tests run with.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import IMAGE_PRESETS

SCRIPT = """
import sys
from dataclasses import replace
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from hqvae.config import preset
from hqvae.model import HQVAE
from hqvae.quantize import Noise

def small(config):
    # All that a preset's graph has, but fewer repetitions of it.
    net = replace(config.net, blocks=1, inner_blocks=min(1, config.net.inner_blocks))
    levels = [replace(x, layers=min(2, x.layers), codebook_size=16, dim=8) for x in config.levels]
    return replace(config, net=net, levels=tuple(levels))

def signals(model, step):
    shape = (2, 3, 16, 16) if model.config.axes == 2 else (2, 1, 2560)
    return torch.rand(shape, generator=torch.Generator().manual_seed(step)) * 2 - 1

def terms(model, step):
    x = signals(model, step)
    out = model(x, torch.tensor(0.9**step), Noise.of(0, step))
    tensors = [out.loss, out.distortion, out.fit, out.entropy, out.reconstruction, *out.codes]
    if model.training:
        out.loss.backward()
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    return tensors

for name in sys.argv[1:]:
    torch.manual_seed(0)
    model = HQVAE(small(preset(name).model))
    model.scale_from(signals(model, 5))
    model.start_from(signals(model, 5), Noise(5))
    for training in (True, False):
        model.train(training)
        torch._dynamo.reset()
        model._compiled_call_impl = None
        expected = [terms(model, step) for step in range(3)]
        counter = CompileCounterWithBackend("aot_eager")
        model.compile(backend=counter, fullgraph=True)
        for step in range(3):
            for ours, theirs in zip(terms(model, step), expected[step], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert counter.frame_count == 1, f"{name}: {counter.frame_count} graphs"
        print(name, "training" if training else "evaluation", "one graph")
"""


@pytest.mark.parametrize("names", [IMAGE_PRESETS, ["rsqvae-audio"]], ids=["images", "audio"])
def test_a_model_is_one_graph_for_all_steps(names):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    modes = ("training", "evaluation")
    expected = [f"{name} {mode} one graph" for name in names for mode in modes]
    assert done.stdout.splitlines() == expected


def train(data, run, *flags):
    """The losses of three steps, the first of samples, the others of nearest codes."""
    # One level and no residual blocks: every kernel is seconds of a C++ compiler.
    settings = [
        "model.net.widths=[8]",
        "model.net.blocks=0",
        "model.levels=[{stride: 2, codebook_size: 16, dim: 8}]",
        "train.batch_size=8",
        "train.steps=3",
        "train.precision=32-true",
        "train.log_every=1",
    ]
    program = "from hqvae.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "sqvae", "--data", str(data), "--out", str(run), "--accelerator", "cpu"]
    command = [sys.executable, "-c", program, *arguments, *flags, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"train"' in line]


def test_the_command_trains_compiled_as_it_does_uncompiled(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    expected = train(tmp_path / "images.npz", tmp_path / "uncompiled")
    losses = train(tmp_path / "images.npz", tmp_path / "compiled", "--compile")
    assert len(expected) == 3
    assert losses == pytest.approx(expected, rel=1e-3)
