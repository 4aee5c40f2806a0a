"""torch.compile of whole models: one graph for every step of a phase, with the same results.

In processes of their own: the checks of shapes that the other tests run with are nothing that
torch can compile.
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
from hqvae.model import HQVAE
from hqvae.presets import preset
from hqvae.quantize import Noise

def signals(model, step):
    shape = (2, 3, 16, 16) if model.config.axes == 2 else (2, 1, 2560)
    return torch.rand(shape, generator=torch.Generator().manual_seed(step)) * 2 - 1

def terms(model, step):
    out = model(signals(model, step), torch.tensor(0.9**step), Noise.of(0, step))
    tensors = [out.loss, out.distortion, out.latent_loss, out.entropy, out.reconstruction]
    tensors += out.codes
    if model.training:
        out.loss.backward()
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    return tensors

def small(title):
    # The quantizers are the preset's own; of the networks a few layers are enough.
    name, *prior = title.split("+")
    prior = prior[0] if prior else "uniform"
    config = preset(name).model
    net = replace(config.net, blocks=1, inner_blocks=0, dilations=config.net.dilations[-1:])
    return HQVAE(replace(config, net=net, prior=prior))

def check(name, model, phase):
    torch._dynamo.reset()
    model._compiled_call_impl = None
    expected = [terms(model, step) for step in range(3)]
    counter = CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter, fullgraph=True)
    for step in range(3):
        for ours, theirs in zip(terms(model, step), expected[step], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert counter.frame_count == 1, f"{name}: {counter.frame_count} graphs"
    print(name, phase, "one graph", flush=True)

for name in sys.argv[1:]:
    torch.manual_seed(0)
    model = small(name)
    model.init_scale(signals(model, 5))
    model.init_codebooks(signals(model, 5), Noise(5))
    check(name, model.train(), "training")
    check(name, model.eval(), "evaluation")
    if name.split("+")[0] == "hqvae":
        model.use_nearest()
        check(name, model.train(), "nearest codes")
"""


# What the papers' other presets are made of is in these two.
NAMES = [name for name in IMAGE_PRESETS if not name.endswith("-paper")]
NAMES += ["hqvae-paper", "rqvae-paper", "rsqvae-audio", "hqvae+learned"]
HARDENED = ("hqvae", "hqvae+learned")  # of these the nearest-code phase is compiled too


@pytest.mark.parametrize("names", [NAMES[::2], NAMES[1::2]], ids="-".join)
def test_a_model_is_one_graph_for_all_steps_of_a_phase(names):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = []
    for name in names:
        phases = ["training", "evaluation"] + ["nearest codes"] * (name in HARDENED)
        expected += [f"{name} {phase} one graph" for phase in phases]
    assert done.stdout.splitlines() == expected


COMMANDS = """
import sys
from hqvae.cli import main
data, folder, *settings = sys.argv[1:]
words = ["train", "sqvae", "--data", data, "--accelerator", "cpu", *settings]
for name, flags in {"plain": [], "compiled": ["--compile"]}.items():
    assert main([*words, "--out", folder + "/" + name, *flags]) == 0
"""


def test_the_command_trains_compiled_as_it_does_uncompiled(tmp_path):
    """Over samples and nearest codes, each of which is compiled."""
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    settings = [
        "model.net.widths=[8]",
        "model.net.blocks=0",
        "train.batch_size=8",
        "train.steps=4",
        "train.precision=32-true",
        "train.log_every=1",
        "phases.pretrain_fraction=0",
        "phases.nearest_fraction=0.5",
    ]
    command = [sys.executable, "-c", COMMANDS, tmp_path / "images.npz", tmp_path, *settings]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("plain", "compiled")]
    entries = [[json.loads(line) for line in log.splitlines()] for log in logs]
    plain, compiled = ([e["loss"] for e in log if e["kind"] == "train"] for log in entries)
    assert len(plain) == 4 and plain == pytest.approx(compiled, rel=1e-3)
