"""What is said while training: alarms with their advice, TensorBoard's events."""

import pytest
from training import NO_PHASES, tiny, trained


def test_collapse_raises_an_alarm_that_says_what_to_do(image_file, tmp_path, capsys):
    """Sixty-four codes, one of which is chosen: nothing brings the others back without restart."""
    settings = ["model.levels.0.codebook_size=64", "train.lr=1e-5"]
    run = trained(tiny("vqvae-paper", image_file, *settings), tmp_path)
    alarms = run.entries("alarm")
    assert {(alarm["kind"], alarm["where"]) for alarm in alarms} == {("alarm", "level 0 layer 0")}
    for alarm in alarms:
        assert alarm["finding"] in ("collapsed", "carries nothing")
        assert alarm["what"] in alarm["sentence"] and alarm["advice"] in alarm["sentence"]
        assert alarm["what"] and alarm["advice"]
    of_first = [alarm for alarm in alarms if alarm["step"] == 4]
    again = [alarm["finding"] for alarm in alarms if alarm["step"] == 8]
    assert of_first and again
    screen = capsys.readouterr().err
    for finding in {alarm["finding"] for alarm in alarms}:  # the screen shows what is new
        assert screen.count(f"ALARM, on validation data: level 0 layer 0 {finding}") == 2


def test_tensorboard_events_are_written(image_file, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tiny("rsqvae", image_file, *NO_PHASES, "train.tensorboard=true"), tmp_path)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("psnr")] == [2, 4, 6, 8]
    perplexities = [event.value for event in events.Scalars("perplexity/3")]
    logged = [entry["perplexity"][3] for entry in run.entries("train")]
    assert perplexities == pytest.approx(logged)
