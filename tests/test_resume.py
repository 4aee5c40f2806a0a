"""Going on with a run: its own settings, what may be others, and when it can become longer."""

import json
import shutil

import pytest
from training import NO_PHASES, SETTINGS, level_settings, same, tiny, trained, weights

from hqvae.cli import main
from hqvae.errors import InputError
from hqvae.overrides import override
from hqvae.run import Run
from hqvae.train import resumed_config
from hqvae.train import train as run_training

EVEN = [*NO_PHASES, "train.schedule=constant", "phases.temperature.decay=0.01"]


def command(out, *words):
    return ["train", *words, "--out", str(out), "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def finished(image_file, tmp_path_factory):
    """Eight steps by the command; nobody changes them."""
    out = tmp_path_factory.mktemp("finished") / "run"
    words = [*SETTINGS, *level_settings(1), "--data", image_file]
    assert main(command(out, "sqvae", *words)) == 0
    return out


@pytest.fixture
def stopped(finished, tmp_path):
    """As if it had been killed after step 4."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checkpoints" / "000000008.pt").unlink()
    (out / "model.safetensors").unlink()
    return out


def test_a_run_goes_on_without_its_settings(finished, stopped, capsys, caplog):
    assert main(command(stopped, "--resume")) == 0
    assert same(weights(Run.open(finished)), weights(Run.open(stopped)))
    assert Run.open(stopped).config == Run.open(finished).config
    assert caplog.text == ""


def test_its_header_names_the_system_of_the_start(finished, stopped, image_file, tmp_path, capsys):
    capsys.readouterr()
    assert main(command(stopped, "--resume")) == 0
    resumed = capsys.readouterr().err.splitlines()[0]
    words = [*SETTINGS, *level_settings(1), "--data", image_file]
    assert main(command(tmp_path / "first", "sqvae", *words)) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert resumed.partition(" → ")[0] == first.partition(" → ")[0]


def test_a_preset_alone_is_said_to_be_less(finished, stopped, caplog):
    assert main(command(stopped, "sqvae", "--resume")) == 0
    assert "goes on with its own settings, which are not all those of preset sqvae" in caplog.text
    assert same(weights(Run.open(finished)), weights(Run.open(stopped)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.lr=0.5"], "train.lr is 0.001 there and 0.5 here; settings need not be repeated"),
        (["sqvae", "train.lr=0.5"], "settings need not be repeated, the run has them"),
        (["sqvea"], "did you mean 'sqvae'"),
        (["train.stepz=5"], "did you mean 'steps'"),
        (["--compile"], "train.compile is False there and True here"),
        (["train.steps=3"], "cannot end at step 3"),
    ],
)
def test_what_cannot_be_another_is_refused(words, said, stopped, capsys):
    before = (stopped / "config.json").read_bytes()
    assert main(command(stopped, *words, "--resume")) == 2
    assert said in capsys.readouterr().err
    assert (stopped / "config.json").read_bytes() == before


def test_data_that_have_moved_are_named_anew(image_file, stopped, tmp_path, caplog):
    moved = shutil.copy(image_file, tmp_path / "2024.npz")
    assert main(command(stopped, "--resume", "--data", str(moved))) == 0
    assert f"goes on with data.source={moved}" in caplog.text
    assert Run.open(stopped).config.data.source == str(moved)


# ------------------------------------------------------------------------------ longer


def test_a_longer_run_is_what_it_would_have_been_from_the_start(image_file, tmp_path, caplog):
    config = tiny("sqvae", image_file, *EVEN)
    longer = override(config, ["train.steps=12"])
    whole = trained(longer, tmp_path / "whole")
    trained(config, tmp_path / "short")
    resumed = trained(longer, tmp_path / "short", resume=True)
    assert same(weights(whole), weights(resumed))
    assert Run.open(resumed.path).config.train.steps == 12
    assert "goes on with train.steps=12 (8 before)" in caplog.text
    assert resumed.entries("changed") == [
        {"kind": "changed", "step": 8, "settings": ["train.steps=12"]}
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "another rate and another temperature and another length of its phases until here"),
        ([*NO_PHASES, "train.schedule=constant"], "would have had another temperature until here"),
        ([*EVEN, "phases.pretrain_fraction=0.25"], "another length of its phases until here"),
    ],
)
def test_a_run_that_becomes_longer_says_what_would_have_been_another(
    settings, said, image_file, tmp_path, caplog
):
    config = tiny("sqvae", image_file, *settings)
    run = trained(config, tmp_path)
    posterior = run.load_model().posterior
    resumed = trained(override(config, ["train.steps=12"]), tmp_path, resume=True)
    assert said in caplog.text and "is at step 8" in caplog.text
    assert resumed.load_checkpoint()["step"] == 12 and resumed.load_model().posterior == posterior
    assert [entry["step"] for entry in resumed.entries("validation")][-1] == 12


def test_the_rate_goes_on_as_in_a_run_of_the_new_length(image_file, tmp_path):
    config = tiny("sqvae", image_file, "train.log_every=1")
    longer = override(config, ["train.steps=16"])
    whole = trained(longer, tmp_path / "whole")
    trained(config, tmp_path / "short")
    resumed = trained(longer, tmp_path / "short", resume=True)
    rates = [{e["step"]: e["lr"] for e in run.entries("train")} for run in (whole, resumed)]
    assert [rates[1][step] for step in range(9, 17)] == [rates[0][step] for step in range(9, 17)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("phases.nearest_fraction=0.25", "nearest codes begin at step 9, not 6"),
        ("phases.pretrain_fraction=0.5", "codebooks start at step 8, not 4"),
    ],
)
def test_a_phase_that_has_begun_does_not_begin_again(settings, said, image_file, tmp_path):
    config = tiny("sqvae", image_file, *EVEN, settings)
    run = trained(config, tmp_path)
    before = (run.path / "config.json").read_bytes()
    steps = 12 if "nearest" in settings else 16
    with pytest.raises(InputError, match=r"is at step 8.*expected 8 steps as before") as e:
        trained(override(config, [f"train.steps={steps}"]), tmp_path, resume=True)
    assert said in str(e.value)
    assert (run.path / "config.json").read_bytes() == before


def test_a_run_before_its_first_checkpoint_can_be_of_any_length(image_file, tmp_path):
    run = trained(tiny("sqvae", image_file), tmp_path)
    shutil.rmtree(run.path / "checkpoints")
    config = resumed_config(str(run.path), None, ["train.steps=4"], None)
    run_training(config, str(run.path), resume=True, accelerator="cpu")
    assert json.loads((run.path / "config.json").read_text())["train"]["steps"] == 4
    assert run.load_checkpoint()["step"] == 4
