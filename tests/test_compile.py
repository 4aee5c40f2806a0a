"""torch.compile of whole models: one graph for every step, in training and in evaluation, with the results of the uncompiled one.

In a process of its own: the checks of shapes that the other tests run with are nothing that torch can compile.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import IMAGE_PRESETS

SCRIPT = """
import sys
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from hqvae.config import preset
from hqvae.model import HQVAE
from hqvae.quantize import Noise

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
    model = HQVAE(preset(name).model)
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


@pytest.mark.parametrize(
    "names", [IMAGE_PRESETS[::2], IMAGE_PRESETS[1::2], ["rsqvae-audio"]], ids="-".join
)
def test_a_model_is_one_graph_for_all_steps(names):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        f"{name} {mode} one graph" for name in names for mode in ("training", "evaluation")
    ]


def test_the_command_trains_compiled_as_it_does_uncompiled(tmp_path):
    settings = [
        "model.net.widths=[8]",
        "model.net.blocks=1",
        "train.batch_size=8",
        "train.steps=3",
        "train.precision=32-true",
    ]
    data, losses = tmp_path / "pictures.npz", []
    np.savez(data, x=np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8))
    for flags in ([], ["--compile"]):
        run = tmp_path / f"run{len(flags)}"
        command = [
            sys.executable,
            "-c",
            "from hqvae.cli import main; import sys; sys.exit(main(sys.argv[1:]))",
        ]
        arguments = [
            "train",
            "hqvae",
            "--data",
            str(data),
            "--out",
            str(run),
            "--accelerator",
            "cpu",
            *flags,
            *settings,
            "train.log_every=1",
        ]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(
            [
                json.loads(line)["loss"]
                for line in (run / "log.jsonl").read_text().splitlines()
                if '"train"' in line
            ]
        )
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-3)
