"""The loop: what a task is asked, that a stop changes nothing, what it refuses to save.

It knows a task, not what the task trains. The proof is a task of two weights.
"""

import json
import math
import multiprocessing
import os
import re
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from PIL import Image
from processes import start
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import SETTINGS, level_settings, same, tiny, trained, weights, without_speed

import hqvae.train
from hqvae.config import TrainConfig
from hqvae.errors import InputError
from hqvae.presets import preset
from hqvae.run import Run
from hqvae.train import loop as loop_module
from hqvae.train.loop import loop
from hqvae.train.state import TrainState
from hqvae.train.task import Task, Validation

TRAIN = Path(hqvae.train.__file__).parent


@pytest.mark.parametrize("name", ["loop.py", "task.py", "state.py", "monitor.py"])
def test_the_loop_has_no_word_of_what_is_trained(name):
    source = (TRAIN / name).read_text()
    imported = set(re.findall(r"^from (?:hqvae)?\.(\w+) import", source, re.MULTILINE))
    known = {"checkpoints", "config", "console", "errors", "monitor", "ranks", "run", "state"}
    assert imported <= known | {"task"}
    own_words = re.sub(r"^from hqvae\.\w+", "", source, flags=re.MULTILINE)
    found = re.findall(r"HQ-?VAE|(?i:levels?\b|codebook|quantiz|posterior|layer)", own_words)
    assert not found


# -------------------------------------------------------------------- another task


class LineTerms(NamedTuple):
    loss: Tensor


class FitLine(Task[LineTerms]):
    """Finds the weight and bias of y = 2x − 1. Half way its steps become shorter: a phase."""

    def __init__(self, total):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(1, 1)
        self.total = total
        self.step_size = 1.0
        self.counted = 0

    def parameter_groups(self):
        return [{"params": list(self.model.parameters()), "lr": 0.1}]

    def batches(self, start):
        for step in range(start, self.total):
            x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
            yield [x[:8], x[8:]]

    def enter(self, step, average):
        if step != self.total // 2:
            return None
        self.step_size = 0.5
        return "shorter steps"

    def share(self, model, batches, step):
        return torch.cat(list(batches)).std()

    def loss(self, model, batches, part, step, shared):
        error = model(batches[part]) - (2 * batches[part] - 1)
        return LineTerms(self.step_size * (error / shared).square().mean())

    def after_step(self, terms, step):
        self.counted += len(terms)

    def log(self, terms, step):
        loss = float(terms[-1].loss.detach())
        return {"loss": loss, "counted": self.counted}, f"loss {loss:.3f}"

    def clear_counters(self):
        self.counted = 0

    def finish(self, model):
        pass

    def validate(self, model, step):
        slope = float(model.weight.detach())
        alarm = {"where": "the line", "finding": "flat", "sentence": "the line is flat: tilt it"}
        alarms = [alarm] if slope < 1 else []
        return Validation(abs(slope - 2), {"slope": slope}, f"slope {slope:.2f}", alarms)

    def history(self, entries):
        return {}

    def can_save(self, step):
        return step > 4

    def save_weights(self, run, model):
        run.write_json("line.json", {name: w.tolist() for name, w in model.state_dict().items()})

    def state(self):
        return {"step_size": self.step_size, "counted": self.counted}

    def load_state(self, state, average):
        self.step_size = state["step_size"]
        self.counted = state["counted"]

    def describe(self):
        return "a line"


def fit_line(folder, resume=False, steps=60):
    """(whether the loop came to its end, the run)."""
    config = TrainConfig(log_every=5, weight_ema=0.5)
    task = FitLine(steps)
    run = Run.open(folder) if resume else Run.create(folder, preset("sqvae"))
    state = TrainState(task, config, Fabric(accelerator="cpu", devices=1), steps)
    if resume:
        state.restore(run)
    return loop(task, state, config, run, interval=10), run


def test_the_loop_trains_another_task(tmp_path, capsys):
    finished, run = fit_line(tmp_path / "line")
    assert finished
    line = json.loads((run.path / "line.json").read_text())
    assert line["weight"] == [[pytest.approx(2, abs=0.15)]]
    assert line["bias"] == [pytest.approx(-1, abs=0.15)]
    entries = run.entries("train")
    assert [entry["step"] for entry in entries] == list(range(5, 61, 5))
    assert all(entry["counted"] == 10 for entry in entries)  # since the line before
    assert entries[-1]["loss"] < entries[0]["loss"] / 10
    assert [entry["step"] for entry in run.entries("validation")] == list(range(10, 61, 10))
    alarms = run.entries("alarm")
    assert alarms and alarms[0]["finding"] == "flat" and alarms[0]["step"] == 10
    screen = capsys.readouterr().err
    assert screen.startswith("a line → ") and screen.count("shorter steps") == 1
    assert screen.count("ALARM, on validation data: the line is flat: tilt it") == 1


@pytest.mark.parametrize("step", [15, 30, 45])
def test_the_loop_resumes_another_task(step, tmp_path, monkeypatch, capsys):
    """Stopped before, at and after the phase; the counters of a log line go on too."""
    _, whole = fit_line(tmp_path / "whole")
    after_step = FitLine.after_step

    def press(self, terms, done):
        after_step(self, terms, done)
        if done == step - 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(FitLine, "after_step", press)
    finished, stopped = fit_line(tmp_path / "stopped")
    assert not finished and stopped.load_checkpoint()["step"] == step - 2
    assert f"stopped at step {step - 2} of 60" in capsys.readouterr().err
    monkeypatch.undo()
    finished, resumed = fit_line(tmp_path / "stopped", resume=True)
    assert finished
    assert (resumed.path / "line.json").read_bytes() == (whole.path / "line.json").read_bytes()
    for kind in ("train", "validation", "alarm"):
        assert without_speed(resumed.entries(kind)) == without_speed(whole.entries(kind))


# ------------------------------------------------------------------------- stopping


def words_of(source, out, steps):
    """The command that trains eight codes on a source."""
    words = ["train", "rsqvae", "--data", source, "--out", out, "--accelerator", "cpu"]
    return [*words, *SETTINGS, *level_settings(1), f"train.steps={steps}"]


@pytest.fixture(scope="module")
def whole(image_file, tmp_path_factory):
    """The weights of 24 steps that nobody stopped."""
    config = tiny("rsqvae", image_file, "train.steps=24")
    return weights(trained(config, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_process_resumes_bitwise(how, whole, image_file, tmp_path):
    stopped, log = tmp_path / "stopped", tmp_path / "log"
    words = words_of(image_file, stopped, 24)
    process = start(*words, log=log)
    deadline = time.time() + 100
    while len(list((stopped / "checkpoints").glob("*.pt"))) < 2 and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    code = process.wait(60)
    assert code == (-9 if how == signal.SIGKILL else 130), log.read_text()
    assert Run.open(stopped).load_checkpoint()["step"] < 24
    if how != signal.SIGKILL:
        assert "--resume" in log.read_text()
    assert start(*words, "--resume", log=log).wait(120) == 0, log.read_text()
    assert same(whole, weights(Run.open(stopped)))
    assert not list(stopped.rglob("*.partial"))


@pytest.fixture
def image_folder(tmp_path):
    """Twelve files that take a while to decode."""
    generator = np.random.default_rng(0)
    (tmp_path / "d").mkdir()
    for i in range(12):
        pixels = generator.integers(0, 256, (900, 900, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "d" / f"{i}.png")
    return str(tmp_path / "d")


def test_ctrl_c_in_a_terminal_reaches_workers_that_decode_too(image_folder, tmp_path):
    """They are in the terminal's group; the step that waits for them must be finished."""
    settings = ["data.cache_mb=0", "data.workers=2", "train.validate_every=5000"]
    words = words_of(image_folder, tmp_path / "r", 5000)
    process = start(*words, *settings, "train.validation_items=1", log=tmp_path / "log", group=True)
    log, deadline = tmp_path / "r" / "log.jsonl", time.time() + 100
    while not log.exists() and time.time() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    screen = tmp_path / "log"
    assert process.wait(60) == 130 and "--resume" in screen.read_text(), screen.read_text()
    assert Run.open(tmp_path / "r").load_checkpoint()["step"] >= 2


@pytest.mark.parametrize(("step", "says"), [(4, True), (5, False)])
def test_a_stop_before_there_are_weights_says_so(
    step, says, image_file, tmp_path, monkeypatch, capsys
):
    log = Run.log

    def press(self, entry):
        log(self, entry)
        if entry["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", press)
    phases = ["phases.pretrain_fraction=0.5", "phases.nearest_fraction=0", "train.log_every=1"]
    config = tiny("rsqvae", image_file, *phases)
    assert trained(config, tmp_path) is None
    screen = capsys.readouterr().err
    assert f"stopped at step {step} of 8" in screen
    assert ("before there are weights of use" in screen) == says
    if says:  # and leaves no weights that would encode by codebooks of noise
        with pytest.raises(InputError, match="before codebooks started"):
            Run.open(tmp_path / "run").load_model()
    else:
        Run.open(tmp_path / "run").load_model()
    monkeypatch.undo()
    assert trained(config, tmp_path, resume=True) is not None


# ------------------------------------------------------------------ what breaks a run


def test_no_worker_outlives_a_training_that_ends_in_an_error(image_folder, tmp_path):
    """Also where somebody keeps the error, and with its traceback all that was at work."""
    settings = ["data.cache_mb=0", "data.workers=2", "train.lr=1e20", "train.precision=32-true"]
    with pytest.raises(InputError, match="not finite at step 2") as kept:
        trained(tiny("sqvae", image_folder, *settings), tmp_path)
    assert kept.tb is not None and active_children() == []


def test_a_worker_does_not_hold_its_parents_lock(tmp_path):
    """A killed training can be resumed at once, however long its workers take to notice."""
    run = Run.create(tmp_path / "run", preset("sqvae"))
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    worker = context.Process(target=lambda: (begun.set(), time.sleep(300)), daemon=True)
    with run.locked():
        worker.start()
        assert begun.wait(60)
    # The lock of this process has ended with its block; only a worker's copy could be left.
    try:
        with run.locked():
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_loss_that_is_not_finite_stops_with_a_sentence(image_file, tmp_path):
    config = tiny("sqvae", image_file, "train.lr=1e20", "train.precision=32-true")
    with pytest.raises(InputError, match="not finite at step 2; start again"):
        trained(config, tmp_path)


@pytest.mark.parametrize(
    ("step", "asked"), [(5, True), (7, False)], ids=["asked to stop", "at a validation"]
)
def test_weights_that_are_not_finite_are_never_saved(
    step, asked, image_file, tmp_path, monkeypatch
):
    """The loss of the step that broke them was fine still."""
    optimizer_step = loop_module.optimizer_step

    def broken(state, clip):
        optimizer_step(state, clip)
        if state.step == step:
            next(state.task.model.decoder.parameters()).data.fill_(math.nan)
            if asked:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop_module, "optimizer_step", broken)
    with pytest.raises(InputError, match=f"weights are not finite at step {step + 1}"):
        trained(tiny("vqvae", image_file), tmp_path)
    run = Run.open(tmp_path / "run")
    assert run.load_checkpoint()["step"] == 4
    assert all(values.isfinite().all() for values in weights(run).values())


@pytest.mark.parametrize("name", ["sqvae", "vqvae"])
def test_the_gradient_is_clipped_in_every_phase(name, image_file, tmp_path):
    norms = []

    def look(optimizer, *arguments):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.norm() for p in parameters if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))

    settings = ["train.clip=1e-6", "train.precision=32-true"]
    hook = register_optimizer_step_pre_hook(look)
    try:
        trained(tiny(name, image_file, *settings), tmp_path)
    finally:
        hook.remove()
    assert norms == pytest.approx([1e-6] * 8, rel=1e-2)
