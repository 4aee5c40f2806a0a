"""The loop: what it takes, that a stop changes nothing, that accumulation and clipping do what they say, what it reports."""

import copy
import json
import math
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import IMAGE_PRESETS
from hqvae.train.assemble import make_schedule
from PIL import Image
from processes import start
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hqvae.cli import main
from hqvae.config import TrainConfig, from_dict, override, preset, refuse_contradictions
from hqvae.data import ShuffledBatches, open_data, sequential_batches
from hqvae.errors import InputError
from hqvae.model import HQVAE
from hqvae.run import Run
from hqvae.train import loop as loop_module
from hqvae.train import my_parts, train
from hqvae.train.loop import refuse_unfit

TINY = [
    "model.net.widths=[8]", "model.net.blocks=1", "data.size=16", "train.batch_size=8", "train.log_every=2", "train.validate_every=4",
    "train.validation_images=8", "train.steps=8",
]  # fmt: skip
ROTATION = ["model.quantizer.kind=other", "model.quantizer.name=rotation"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Sixty images of one colour each, in an .npz."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (60, 1, 1, 3))
    path = tmp_path_factory.mktemp("data") / "smooth.npz"
    np.savez(path, x=coarse.repeat(16, 1).repeat(16, 2).astype(np.uint8))
    return str(path)


def tiny(name, pictures, *settings):
    levels = [
        f"model.levels.{i}.{key}"
        for i in range(len(preset(name).model.levels))
        for key in ("codebook_size=8", "dim=4")
    ]
    return override(preset(name), [f"data.source={pictures}", *TINY, *levels, *settings])


def weights(run):
    return load_file(str(run.path / "model.safetensors"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_every_preset_trains_and_leaves_a_whole_run(name, pictures, tmp_path):
    run = train(tiny(name, pictures), str(tmp_path / "run"), accelerator="cpu")
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert names == {
        "config.json", "model.safetensors", "log.jsonl", "checkpoints/000000004.pt", "checkpoints/000000008.pt",
        "report/training-layers.png", "report/training-reconstructions.png",
    }  # fmt: skip
    assert [entry["step"] for entry in run.entries("train")] == [2, 4, 6, 8]
    assert [entry["step"] for entry in run.entries("validation")] == [4, 8]
    saved = json.loads((run.path / "config.json").read_text())
    saved.pop("versions")
    saved.pop("format")
    assert saved.pop("fingerprints").keys() == {"train", "validation", "test"}
    assert from_dict(saved) == run.config
    model = run.load_model()
    assert model.encode(torch.zeros(1, 3, 16, 16))[0].shape == (
        1,
        16 // model.stride,
        16 // model.stride,
    )


def test_training_lowers_the_distortion(pictures, tmp_path):
    settings = [
        "train.steps=150",
        "train.lr=2e-3",
        "model.net.widths=[32,64]",
        "model.levels.0.codebook_size=32",
        "model.levels.0.dim=64",
    ]
    run = train(
        tiny("rsqvae", pictures, *settings, "train.validate_every=150"),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    first, last = run.entries("train")[0], run.entries("train")[-1]
    assert last["psnr"] > first["psnr"] + 4
    assert last["bits_per_dim"] < first["bits_per_dim"] - 0.5
    assert "collapsed" not in [entry["finding"] for entry in run.entries("alarm")]


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("name", "settings"),
    [("hqvae", []), ("rqvae", ["model.quantizer.restart=true"]), ("sqvae2", ["train.ema=0.9", "train.schedule=plateau", "data.flip=true"]),
     ("rsqvae", ["train.accumulate=2", "model.progressive=0.5", "train.clip=1"]),
     ("hqvae", ["train.unquantized=0.3", "train.hard=0.5", "train.ema=0.9"]),
     ("rsqvae", ["train.unquantized=0.5", "train.hard=0", "train.accumulate=2"]),
     ("hqvae", ["train.hard=0.5", "train.accumulate=2", "train.unquantized=0"]),
     ("rsqvae", ["train.hard=0.75", "train.ema=0.9", "model.levels.0.shared=true", "train.schedule=plateau"]),
     ("vqvae", [*ROTATION, "model.levels.0.codebook_size=64"])],
)  # fmt: skip
def test_resuming_is_bitwise(name, settings, pictures, tmp_path, monkeypatch):
    """N steps, an abrupt end after the checkpoint, resume, N steps = 2N steps: weights, optimiser, log."""
    if settings[:2] == ROTATION:
        pytest.importorskip(
            "vector_quantize_pytorch", reason="their quantizers come with the extra compare"
        )
    config = tiny(name, pictures, *settings)
    whole = train(config, str(tmp_path / "whole"), accelerator="cpu")

    log = Run.log

    def cut(self, entry):
        if entry["kind"] == "train" and entry["step"] == 6:
            raise Cut
        log(self, entry)

    monkeypatch.setattr(Run, "log", cut)
    with pytest.raises(Cut):
        train(config, str(tmp_path / "cut"), accelerator="cpu")
    monkeypatch.undo()
    resumed = train(config, str(tmp_path / "cut"), resume=True, accelerator="cpu")
    assert same(weights(whole), weights(resumed))
    one, other = whole.load_checkpoint(), resumed.load_checkpoint()
    for key, moment in one["optimizer"]["state"].items():
        assert same(moment, other["optimizer"]["state"][key])
    without_speed = [
        {k: v for k, v in e.items() if k != "images_per_second"} for e in whole.entries("train")
    ]
    assert without_speed == [
        {k: v for k, v in e.items() if k != "images_per_second"} for e in resumed.entries("train")
    ]


def command(*arguments, group=False):
    words, environment = (
        [sys.executable, "-m", "hqvae.cli", *arguments],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=group
    )


def arguments_of(pictures, out, steps):
    levels = [f"model.levels.0.{s}" for s in ("codebook_size=8", "dim=4")]
    return [
        "train",
        "rsqvae",
        "--data",
        pictures,
        "--out",
        str(out),
        "--accelerator",
        "cpu",
        *TINY,
        *levels,
        f"train.steps={steps}",
    ]


@pytest.fixture(scope="module")
def never_stopped(pictures, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(killable(pictures, run)) == 0
    return run


def killable(pictures, out):
    return [*arguments_of(pictures, out, 40), "train.validate_every=8"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_process_resumes_bitwise(how, never_stopped, pictures, tmp_path):
    stopped, log = tmp_path / "stopped", tmp_path / "log"
    process = start(*killable(pictures, stopped), log=log)
    deadline = time.time() + 100
    while len(list((stopped / "checkpoints").glob("*.pt"))) < 2 and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    code = process.wait(60)
    assert code == (-9 if how == signal.SIGKILL else 130), log.read_text()
    assert Run.open(stopped).load_checkpoint()["step"] < 40
    if how != signal.SIGKILL:
        assert "--resume" in log.read_text()
    assert main([*killable(pictures, stopped), "--resume"]) == 0
    assert same(weights(Run.open(never_stopped)), weights(Run.open(stopped)))
    assert not list(stopped.rglob("*.partial"))


def test_ctrl_c_in_a_terminal_reaches_workers_that_decode_too(tmp_path):
    """They are in the terminal's group. Were they to die, the step that waits for them could not end."""
    generator = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(
            tmp_path / "d" / f"{i}.png"
        )
    words = arguments_of(str(tmp_path / "d"), tmp_path / "r", 5000)
    process = command(
        *words,
        "data.cache_mb=0",
        "data.workers=2",
        "train.validate_every=5000",
        "train.validation_images=1",
        group=True,
    )
    log, deadline = tmp_path / "r" / "log.jsonl", time.time() + 100
    while not log.exists() and time.time() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    code, output = process.wait(60), (tmp_path / "log").read_text()
    assert code == 130 and "--resume" in output, output
    assert Run.open(tmp_path / "r").load_checkpoint()["step"] >= 2


@pytest.mark.parametrize(("step", "says"), [(4, True), (5, False)])
def test_a_stop_before_codebooks_start_says_so(step, says, pictures, tmp_path, monkeypatch, capsys):
    log = Run.log

    def press(self, entry):
        log(self, entry)
        if entry["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", press)
    config = tiny("rsqvae", pictures, "train.unquantized=0.5", "train.hard=0", "train.log_every=1")
    assert train(config, str(tmp_path / "r"), accelerator="cpu") is None
    said = capsys.readouterr().err
    assert f"stopped at step {step} of 8" in said and ("codebooks have not started" in said) == says
    if says:  # and leaves no weights that would encode by codebooks of noise
        with pytest.raises(InputError, match="before codebooks started"):
            Run.open(tmp_path / "r").load_model()
    else:
        Run.open(tmp_path / "r").load_model()
    monkeypatch.undo()
    assert train(config, str(tmp_path / "r"), resume=True, accelerator="cpu") is not None


def test_two_processes_train_as_one(pictures, tmp_path):
    """Over the start of the codebooks and over their hardening, after which DDP has other weights to wait for."""
    settings = [
        "train.unquantized=0.25", "train.hard=0.5", "train.precision=32-true", "train.lr=1e-4", "train.ema=0.5",
        "model.net.widths=[8]", "model.levels.0.dim=4",
    ]  # fmt: skip
    for count in ("1", "2"):
        process = command(
            *arguments_of(pictures, tmp_path / count, 8), *settings, "--devices", count
        )
        assert process.wait(120) == 0, process.stderr.read()
    one, two = (weights(Run.open(tmp_path / count)) for count in ("1", "2"))
    assert one.keys() == two.keys() and any(name.endswith("counts") for name in one)
    for key in one:
        assert torch.allclose(one[key], two[key], atol=2e-4), key


@pytest.mark.parametrize("name", ["sqvae2", "rsqvae"])
def test_hardening_is_the_limit_of_the_posterior(name, pictures, tmp_path, monkeypatch):
    """Codes stay what they were, the log says s² = 0 and entropy 0, the optimiser forgets the codebooks and keeps its pace.

    Then codebooks go to the means of what is nearest to them, in the average too.
    """
    seen, harden = [], loop_module.harden
    moved, begin = [], loop_module.start_codebooks

    def started(training, order):
        before = [layer.quantizer.codebook.clone() for layer in training.model.layers]
        begin(training, order)
        after = [layer.quantizer.codebook for layer in training.model.layers]
        same_in_average = all(
            torch.equal(a, layer.quantizer.codebook)
            for a, layer in zip(after, training.evaluated.layers)
        )
        moved.append(
            (
                training.progress.step,
                any(torch.equal(a, b) for a, b in zip(before, after)),
                same_in_average,
            )
        )

    def watched(training, sigma2):
        model, items = training.model, training.splits["train"]
        x = items.signal(next(sequential_batches(items, 8, 8)))

        def moments():
            return [
                training.optimizer.state[p]["exp_avg"].clone() for p in model.decoder.parameters()
            ]

        before, codes = moments(), model.encode(x)
        harden(training, sigma2)
        assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(x)))
        scales = [float((a.norm() / b.norm()).log()) for a, b in zip(moments(), before)]
        pairs = [
            (a.quantizer.codebook.clone(), b.quantizer.codebook.clone())
            for a, b in zip(training.evaluated.layers, model.layers)
        ]
        left = [p for group in training.optimizer.param_groups for p in group["params"]]
        seen.append(
            (sigma2, scales, pairs, {id(p) for p in left} == {id(p) for p in model.parameters()})
        )

    monkeypatch.setattr(loop_module, "harden", watched)
    monkeypatch.setattr(loop_module, "start_codebooks", started)
    settings = ["train.unquantized=0.25", "train.hard=0.5", "train.ema=0.9"]
    run = train(tiny(name, pictures, *settings), str(tmp_path / "r"), accelerator="cpu")

    assert moved == [(2, False, True), (4, False, True)]
    ((sigma2, scales, codebooks, exactly_the_models),) = seen
    assert exactly_the_models
    assert scales == pytest.approx([math.log(2 * sigma2 / (3 * 16 * 16))] * len(scales), abs=1e-4)
    entries = {entry["step"]: entry for entry in run.entries("train")}
    assert all(entries[4]["s2"]) and all(entries[4]["entropy"])
    for step in (6, 8):
        assert (
            not any(entries[step]["s2"])
            and not any(entries[step]["entropy"])
            and all(entries[step]["fit"])
        )
    assert codebooks and not any(
        torch.equal(average, own) for average, own in codebooks
    )  # each its own
    last = run.entries("validation")[-1]
    assert last["bits_per_dim"] == pytest.approx(
        last["bits_per_dim_nearest"], abs=0.02
    )  # its draws are its nearest codes

    loaded = run.load_model()
    assert run.config.model.quantizer.kind == "stochastic" and loaded.config.quantizer.kind == "ema"
    loaded.save_pretrained(tmp_path / "p")
    again, x = HQVAE.from_pretrained(tmp_path / "p"), torch.rand(2, 3, 16, 16)
    assert again.config == loaded.config and torch.equal(
        again(x).reconstruction, loaded(x).reconstruction
    )


def test_only_a_posterior_hardens(pictures):
    with pytest.raises(
        InputError,
        match=r"train\.hard=0\.5 hardens the posterior of a stochastic system, and model\.quantizer\.kind=ema",
    ):
        train(tiny("vqvae", pictures, "train.hard=0.5"), "nowhere", accelerator="cpu")
    with pytest.raises(InputError, match=r"model\.spectral\.weight=1\); expected train\.hard=0"):
        train(
            override(preset("rsqvae-audio"), [f"data.source={pictures}", "train.hard=0.5"]),
            "nowhere",
            accelerator="cpu",
        )
    with pytest.raises(InputError, match="leave no step for samples"):
        tiny("sqvae", pictures, "train.unquantized=0.25", "train.hard=0.75")


@pytest.mark.parametrize("name", ["rsqvae", "hqvae", "rqvae"])
def test_accumulated_batches_are_one_batch(name, pictures, tmp_path):
    """σ² of the global batch, and the noise of every sample, whatever it is cut into. One step, or rounding would grow."""
    settings = [
        "train.steps=1",
        "train.precision=32-true",
        "model.progressive=0.5",
        "train.lr=1e-4",
    ]
    one, two, eight = (
        weights(
            train(
                tiny(name, pictures, *settings, f"train.accumulate={n}"),
                str(tmp_path / str(n)),
                accelerator="cpu",
            )
        )
        for n in (1, 2, 8)
    )
    for key in one:
        # Adam's first step is ±lr for every weight, whatever the gradient's size: agreement needs the sign only for tiny gradients.
        assert (one[key] - two[key]).abs().float().mean() < 2e-6, key
        assert (one[key] - eight[key]).abs().float().mean() < 2e-6, key


@pytest.mark.parametrize("name", ["sqvae2", "rqvae"])
def test_the_autoencoder_learns_alone_before_codebooks_start(name, pictures, tmp_path, monkeypatch):
    """Nothing is quantized and nothing validated in its share of the run, and codebooks stay; then they start from its features, once."""
    began, start = [], HQVAE.start_from

    def watched(self, x, noise, *rest):
        before = copy.deepcopy(self.state_dict())
        start(self, x, noise, *rest)
        began.append((x, before, copy.deepcopy(self.state_dict())))

    monkeypatch.setattr(HQVAE, "start_from", watched)
    config = tiny(
        name,
        pictures,
        "train.unquantized=0.5",
        "train.hard=0",
        "model.quantizer.start.kind=data",
        "train.ema=0.9",
    )
    run = train(config, str(tmp_path / "r"), accelerator="cpu")

    assert [entry["step"] for entry in run.entries("alone")] == [2, 4] and [
        entry["step"] for entry in run.entries("train")
    ] == [6, 8]
    for entry in run.entries("alone"):
        assert not any([*entry["used"], *entry["entropy"], *entry["fit"]])
    for entry in run.entries("train"):
        assert all(used > 1 for used in entry["used"]) and all(entry["fit"])
    assert [entry["step"] for entry in run.entries("validation")] == [8]

    ((x, before, after),) = began
    checkpoint = torch.load(run.path / "checkpoints/000000004.pt", weights_only=True)["model"]
    assert same(before, checkpoint)  # after the last step alone, and before any that quantizes
    items = open_data(config.data, 3, ("train",))[1]["train"]
    coming = torch.cat(
        [
            items.signal(items.training_batch(*ShuffledBatches(len(items), 8, 0).at(step)))
            for step in range(4, 4 + len(x) // 8)
        ]
    )
    assert torch.equal(x, coming) and len(x) >= 8
    torch.manual_seed(config.train.seed)
    untouched = {
        key: values
        for key, values in HQVAE(config.model).state_dict().items()
        if key.endswith(("codebook", "log_s2"))
    }
    for key, values in untouched.items():
        assert torch.equal(before[key], values) and not torch.equal(after[key], values)


def test_codebooks_start_in_the_average_of_weights_too_and_without_the_optimisers_past(
    pictures, tmp_path, monkeypatch
):
    seen, begin = [], loop_module.start_codebooks

    def watched(training, order):
        begin(training, order)
        states = [
            p in training.optimizer.state
            for layer in training.model.layers
            for p in layer.quantizer.parameters()
        ]
        others = [p in training.optimizer.state for p in training.model.encoder.parameters()]
        pairs = zip(training.evaluated.layers, training.model.layers)
        seen.append(
            (
                states,
                others,
                [(a.quantizer.codebook.clone(), b.quantizer.codebook.clone()) for a, b in pairs],
            )
        )

    monkeypatch.setattr(loop_module, "start_codebooks", watched)
    train(
        tiny("rsqvae", pictures, "train.unquantized=0.5", "train.hard=0", "train.ema=0.9"),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    ((states, others, codebooks),) = seen
    assert not any(states) and all(others)
    assert all(torch.equal(average, own) for average, own in codebooks)


def test_nothing_starts_after_the_autoencoder_from_a_normal_start(pictures, tmp_path):
    with pytest.raises(InputError, match=r"start\.kind=data"):
        train(
            tiny("vqvae", pictures, "train.unquantized=0.1"), str(tmp_path / "r"), accelerator="cpu"
        )
    assert not (tmp_path / "r").exists()


def test_images_without_a_difference_are_refused_before_anything_is_written(tmp_path):
    np.savez(tmp_path / "grey.npz", x=np.full((60, 16, 16, 3), 128, np.uint8))
    with pytest.raises(InputError, match="differ from each other"):
        train(
            tiny("rsqvae", str(tmp_path / "grey.npz"), "model.levels.0.stride=16"),
            str(tmp_path / "r"),
            accelerator="cpu",
        )
    assert not (tmp_path / "r").exists()


def test_plateau_halves_the_rate(pictures, tmp_path):
    run = train(
        tiny(
            "sqvae",
            pictures,
            "train.steps=24",
            "train.lr=1e-12",
            "train.schedule=plateau",
            "train.patience=2",
        ),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    rates = [entry["lr"] for entry in run.entries("train")]
    assert rates[0] == 1e-12
    # Validations at 4, 8 … 24: the first sets the best, every two without improvement halve. The last rate logged is before step 24's.
    assert rates[-1] == pytest.approx(0.25e-12)


def test_cosine_and_warmup(pictures, tmp_path):
    run = train(
        tiny("vqvae", pictures, "train.warmup=4", "train.log_every=1"),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    rates = [entry["lr"] for entry in run.entries("train")]
    assert (
        rates[0] < rates[1] < rates[2]
        and rates[-1] < rates[5]
        and rates[-1] == pytest.approx(0, abs=1e-9)
    )


@contextmanager
def optimiser_steps():
    """Rate of the first group, and norm of all gradients, at every step of an optimiser."""
    seen = []

    def look(optimizer, *arguments):
        gradients = [
            p.grad.norm()
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        seen.append((optimizer.param_groups[0]["lr"], float(torch.stack(gradients).norm())))

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def test_small_errors_that_fall_steadily_are_no_plateau():
    """0.05 dB better at every validation: in nats many units, in a mean squared error of 10⁻³ less than 10⁻⁴."""
    losses = [1e-3 * 10 ** (-0.005 * step) for step in range(20)]
    for in_nats, of_loss in (
        (False, lambda loss: loss),
        (True, lambda loss: 1536 * math.log(loss)),
    ):
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make_schedule(
            optimizer, TrainConfig(schedule="plateau", patience=2), 100, in_nats
        )
        for loss in losses:
            schedule.step(of_loss(loss))
        assert optimizer.param_groups[0]["lr"] == 1.0
        for _ in range(2):
            schedule.step(of_loss(losses[-1]))
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_clipped_gradient_is_clipped_in_the_new_unit_once_hard(pictures, tmp_path):
    """Else Adam's memory of clipped gradients meets ones that no limit touches, and the first steps are many times too long."""
    settings = ["train.steps=16", "train.hard=0.5", "train.clip=1e-6", "train.precision=32-true"]
    with optimiser_steps() as steps:
        run = train(tiny("sqvae", pictures, *settings), str(tmp_path / "r"), accelerator="cpu")
    unit, norms = run.load_checkpoint()["unit"], [norm for _, norm in steps]
    assert unit < 0.1
    assert norms[2:8] == pytest.approx([1e-6] * 6, rel=1e-2) and norms[8:] == pytest.approx(
        [1e-6 * unit] * 8, rel=1e-2
    )


def test_average_of_weights_is_what_is_saved(pictures, tmp_path):
    run = train(tiny("sqvae", pictures, "train.ema=0.5"), str(tmp_path / "r"), accelerator="cpu")
    state = run.load_checkpoint()
    saved = weights(run)
    name = "decoder.net.0.wide.weight"
    assert torch.equal(saved[name], state["average"][f"module.{name}"])
    assert not torch.equal(saved[name], state["model"][name])


def test_collapse_raises_an_alarm(pictures, tmp_path):
    """Sixty-four codes, one of which is chosen: nothing brings the others back without restart."""
    run = train(
        tiny("vqvae", pictures, "model.levels.0.codebook_size=64", "train.lr=1e-5"),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    kinds = {(entry["kind"], entry["layer"]) for entry in run.entries("alarm")}
    assert kinds == {("alarm", "level 0 layer 0")}


def test_alarm_entries_say_what_and_what_to_do(pictures, tmp_path):
    run = train(
        tiny("vqvae", pictures, "model.levels.0.codebook_size=64", "train.lr=1e-5"),
        str(tmp_path / "r"),
        accelerator="cpu",
    )
    entry = run.entries("alarm")[0]
    assert (
        entry["what"] and entry["advice"] and entry["finding"] in ("collapsed", "carries nothing")
    )


def test_a_loss_that_is_not_finite_stops_with_a_sentence(pictures, tmp_path):
    with pytest.raises(InputError, match="not finite at step 2; start again"):
        train(
            tiny("sqvae", pictures, "train.lr=1e20", "train.precision=32-true"),
            str(tmp_path / "r"),
            accelerator="cpu",
        )


@pytest.mark.parametrize(
    ("step", "asked"), [(5, True), (7, False)], ids=["asked to stop", "at a validation"]
)
def test_weights_that_are_not_finite_are_never_saved(step, asked, pictures, tmp_path, monkeypatch):
    """The loss of the step that broke them was fine still."""
    descend = loop_module.descend

    def broken(training):
        descend(training)
        if training.progress.step == step:
            next(training.model.decoder.parameters()).data.fill_(math.nan)
            if asked:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop_module, "descend", broken)
    with pytest.raises(InputError, match=f"weights are not finite at step {step + 1}"):
        train(tiny("vqvae", pictures), str(tmp_path / "r"), accelerator="cpu")
    run = Run.open(tmp_path / "r")
    assert run.load_checkpoint()["step"] == 4 and all(
        values.isfinite().all() for values in weights(run).values()
    )


def test_a_codebook_that_moves_in_every_pass_is_not_accumulated(pictures):
    with pytest.raises(
        InputError, match=r"train\.accumulate=2: the codebook of model\.quantizer\.name=rotation"
    ):
        refuse_contradictions(tiny("vqvae", pictures, *ROTATION, "train.accumulate=2"))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_parts_cover_the_batch_once(world, accumulate):
    config = override(
        preset("sqvae"), ["train.batch_size=16", f"train.accumulate={accumulate}"]
    ).train
    covered = [
        i
        for rank in range(world)
        for part in my_parts(config, rank, world)
        for i in range(16)[part]
    ]
    assert covered == list(range(16))


def test_epochs_count_passes_over_the_training_images(pictures, tmp_path):
    run = train(tiny("vqvae", pictures, "train.epochs=2"), str(tmp_path / "r"), accelerator="cpu")
    assert run.load_checkpoint()["step"] == round(2 * 51 / 8)


def test_two_processes_cannot_train_into_one_folder(pictures, tmp_path):
    config = tiny("vqvae", pictures)
    run = train(config, str(tmp_path / "r"), accelerator="cpu")
    before = weights(run)
    with run.locked(), pytest.raises(InputError, match="another process is training"):
        train(config, str(tmp_path / "r"), resume=True, accelerator="cpu")
    assert same(before, weights(run))
    assert train(config, str(tmp_path / "r"), resume=True, accelerator="cpu") is not None


def test_tensorboard_events_are_written(pictures, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(
        tiny("rsqvae", pictures, "train.tensorboard=true"), str(tmp_path / "r"), accelerator="cpu"
    )
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("psnr")] == [2, 4, 6, 8]
    assert [e.value for e in events.Scalars("perplexity/3")] == pytest.approx(
        [e["perplexity"][3] for e in run.entries("train")]
    )


def test_a_stride_larger_than_the_images_is_refused(pictures, tmp_path):
    with pytest.raises(
        InputError, match=r"stride=64 is larger than the images, which have 16×16 points"
    ):
        train(
            tiny("sqvae", pictures, "model.levels.0.stride=64"),
            str(tmp_path / "r"),
            accelerator="cpu",
        )
    assert not (tmp_path / "r").exists()


def test_fewer_validation_images_than_processes_are_refused(pictures):
    config = tiny("sqvae", pictures)
    data, images = open_data(config.data, 3, ("train", "validation"))
    refuse_unfit(replace(config, data=data), images, 1)
    with pytest.raises(
        InputError, match=r"validation image\(s\) cannot be shared by 999 processes"
    ):
        refuse_unfit(replace(config, data=data), images, 999)
