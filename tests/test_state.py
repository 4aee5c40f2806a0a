"""What training keeps from step to step: schedule, average, and all that a checkpoint restores."""

import pytest
import torch
from training import NO_PHASES, ROTATION, same, tiny, trained, weights, without_speed

from hqvae.config import TrainConfig
from hqvae.run import Run
from hqvae.train.state import make_schedule


class Cut(Exception):
    """Stands for the end of the process."""


RESUMED = {
    "preset": ("hqvae", []),
    "restart": ("rqvae-paper", ["model.quantizer.restart=true"]),
    "average": ("sqvae2", ["train.weight_ema=0.9", "train.schedule=plateau", "data.flip=true"]),
    "accumulated": ("rsqvae", ["train.accumulate=2", "model.progressive=0.5", "train.clip=1"]),
    "soft to the end": ("hqvae", [*NO_PHASES, "train.accumulate=2"]),
    "paper": ("hqvae-paper", ["model.progressive=0.5", "model.prefixes=all"]),
    "pretraining": (
        "rsqvae",
        ["phases.pretrain_fraction=0.5", "phases.nearest_fraction=0", "train.accumulate=2"],
    ),
    # The checkpoint at step 4 stands where the nearest-code phase begins …
    "all phases": (
        "hqvae",
        [
            "phases.pretrain_fraction=0.3",
            "phases.nearest_fraction=0.5",
            "train.weight_ema=0.9",
            "model.rate_weight=1",
        ],
    ),
    "nearest accumulated": (
        "hqvae",
        ["phases.pretrain_fraction=0", "phases.nearest_fraction=0.5", "train.accumulate=2"],
    ),
    # … or after it.
    "nearest before": (
        "rsqvae",
        [
            "phases.nearest_fraction=0.75",
            "train.weight_ema=0.9",
            "model.levels.0.shared_codebook=true",
            "train.schedule=plateau",
        ],
    ),
    "external": ("vqvae-paper", [*ROTATION, "model.levels.0.codebook_size=64"]),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_is_bitwise(case, image_file, tmp_path, monkeypatch):
    """N steps, an abrupt end after the checkpoint, N more = 2N: weights, optimiser, log."""
    name, settings = RESUMED[case]
    if case == "external":
        pytest.importorskip("vector_quantize_pytorch", reason="comes with the extra compare")
    config = tiny(name, image_file, *settings)
    whole = trained(config, tmp_path / "whole")

    log = Run.log

    def cut(self, entry):
        if entry["kind"] == "train" and entry["step"] == 6:
            raise Cut
        log(self, entry)

    monkeypatch.setattr(Run, "log", cut)
    with pytest.raises(Cut):
        trained(config, tmp_path / "cut")
    monkeypatch.undo()
    resumed = trained(config, tmp_path / "cut", resume=True)
    assert same(weights(whole), weights(resumed))
    one, other = whole.load_checkpoint(), resumed.load_checkpoint()
    assert one["task"]["posterior"] == other["task"]["posterior"]
    assert one["task"]["mean_sigma2"] == other["task"]["mean_sigma2"] > 0
    assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    for key, moments in one["optimizer"]["state"].items():
        assert same(moments, other["optimizer"]["state"][key])
    for kind in ("pretrain", "train", "validation"):
        assert without_speed(whole.entries(kind)) == without_speed(resumed.entries(kind))


def test_average_of_weights_is_what_is_saved(image_file, tmp_path):
    run = trained(tiny("sqvae", image_file, "train.weight_ema=0.5"), tmp_path)
    state, saved = run.load_checkpoint(), weights(run)
    averaged = {key: state["average"][f"module.{key}"] for key in saved}
    assert saved.keys() == state["model"].keys() and same(saved, averaged)
    of_networks = [key for key in saved if key.startswith(("encoder", "decoder"))]
    assert not any(torch.equal(saved[key], state["model"][key]) for key in of_networks)


# ------------------------------------------------------------------------- schedule


def rates_of(run):
    return [entry["lr"] for entry in run.entries("train")]


def test_plateau_halves_the_rate(image_file, tmp_path):
    """With patience 1 the second validation without improvement halves it."""
    plateau = ["train.schedule=plateau", "train.patience=1", "train.lr=1e-12"]
    config = tiny("sqvae", image_file, *NO_PHASES, *plateau, "train.steps=24")
    rates = rates_of(trained(config, tmp_path))
    assert rates[0] == 1e-12
    # Validations at 4, 8 … 24. The first sets the best; the last rate is logged before step 24's.
    assert rates[-1] == pytest.approx(0.25e-12)


@pytest.mark.parametrize(("patience", "borne"), [(0, 0), (1, 1), (3, 3)])
def test_patience_is_the_number_of_validations_that_are_borne(patience, borne):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, TrainConfig(schedule="plateau", patience=patience), 100)
    rates = []
    for _ in range(borne + 2):  # the first sets the best
        schedule.step(-5.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0] * (borne + 1) + [0.5]


@pytest.mark.parametrize("unit", ["mean squared error", "nats"])
def test_small_errors_that_fall_steadily_are_no_plateau(unit):
    """0.05 dB better each time: many nats, and less than 10⁻⁴ of an error of 10⁻³."""
    errors = [torch.tensor(1e-3 * 10 ** (-0.005 * step)) for step in range(20)]
    losses = [float(error if unit != "nats" else 1536 * error.log()) for error in errors]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, TrainConfig(schedule="plateau", patience=1), 100)
    for loss in losses:
        schedule.step(loss)
    assert optimizer.param_groups[0]["lr"] == 1.0
    for _ in range(2):
        schedule.step(losses[-1])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_cosine_and_warmup(image_file, tmp_path):
    config = tiny("rqvae-paper", image_file, "train.warmup=4", "train.log_every=1")
    rates = rates_of(trained(config, tmp_path))
    assert rates[0] < rates[1] < rates[2]
    assert rates[-1] < rates[5] and rates[-1] == pytest.approx(0, abs=1e-9)


def test_adam_has_the_configs_decays_and_a_faster_rate_for_s2(image_file, tmp_path):
    settings = ["train.beta1=0.5", "train.beta2=0.9", "phases.lr_log_s2=10", "train.lr=1e-3"]
    constant = ["train.schedule=constant", "train.steps=1", *NO_PHASES]
    learned = ["model.prior=learned"]  # it is no scalar
    run = trained(tiny("rsqvae", image_file, *settings, *constant, *learned), tmp_path)
    rest, scalars = run.load_checkpoint()["optimizer"]["param_groups"]
    assert rest["betas"] == scalars["betas"] == (0.5, 0.9)
    assert (rest["lr"], scalars["lr"]) == (1e-3, pytest.approx(1e-2))
    assert len(scalars["params"]) == 1  # the four layers' s²
