"""Comparisons: what is refused as none, and what the statistics mean.

Runs are done once, go on where they were cut off, and are shared among processes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from processes import Command, start
from scripts import script

from hqvae.cli import main
from hqvae.compare import read_spec, run_specs
from hqvae.compare.jobs import HQVAE_COMMAND, ComparisonDir
from hqvae.compare.summary import Estimate, format_difference, format_estimate, summarise, verdicts
from hqvae.errors import InputError
from hqvae.files import lock
from hqvae.overrides import to_dict

SETTINGS = {
    "train.steps": 4,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.validate_every": 2,
    "train.precision": "32-true",
    "model.net.widths": [8],
    "model.net.blocks": 0,
    "model.levels.0.codebook_size": 8,
    "model.levels.0.dim": 4,
}
SYSTEMS = {"SQ": {"preset": "sqvae"}, "VQ": {"preset": "vqvae"}}


@pytest.fixture(scope="module", autouse=True)
def quick_processes():
    """Runs are forks of this process: no seconds of imports for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hqvae.compare.jobs.Popen", Command)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.savez(path, x_train=images, x_test=images[:8], x_val=images[8:16])
    return str(path)


def written(folder, **changes):
    path = folder / "spec.yaml"
    path.write_text(
        yaml.safe_dump({"settings": SETTINGS, "systems": SYSTEMS, "seeds": [0, 1], **changes})
    )
    return str(path)


def compare(spec, data, out, *more):
    """The exit code of `hqvae compare`, on the CPU."""
    return main(["compare", spec, "--data", data, "--out", str(out), "--accelerator", "cpu", *more])


def beside(**settings):
    """SQ, and a VQ with other settings."""
    return {"systems": {**SYSTEMS, "VQ": {"preset": "vqvae", "settings": settings}}}


REFUSED = {
    "unknown field": ({"sistems": {}}, ["sistems", "unexpected"]),
    "unknown preset": (
        {"systems": {"SQ": {"preset": "sqvea"}}},
        ["SQ: preset 'sqvea'", "did you mean 'sqvae'"],
    ),
    "unknown key": ({"settings": {"train.stepz": 3}}, ["train.stepz", "did you mean 'steps'"]),
    "no system": ({"systems": {}}, ["systems"]),
    "same seed twice": ({"seeds": [0, 0]}, ["seeds", "[0, 0]"]),
    "unknown reference": ({"reference": "SQVAE"}, ["reference 'SQVAE'", "did you mean 'SQ'"]),
    "another rate": (
        beside(**{"model.levels.0.codebook_size": 16}),
        ["0.1875 bits per sample point", "0.25", "equal rates"],
    ),
    "another net": (
        beside(**{"model.net.widths": [16]}),
        ["model.net.widths.0=8", "VQ, seed 0 has 16", "no comparison"],
    ),
    "another length": (
        beside(**{"train.steps": 5}),
        ["train.steps=4", "VQ, seed 0 has 5", "no comparison"],
    ),
    "a codebook that a quantizer cannot have": (
        {
            "systems": {"FSQ": {"preset": "vqvae-paper"}},
            "settings": {
                **SETTINGS,
                "model.quantizer.kind": "external",
                "model.quantizer.name": "fsq",
                "model.levels.0.codebook_size": 12,
            },
        },
        ["FSQ", "codebook_size=12", "powers of two"],
    ),
    "two of one name": (
        {"systems": {"SQ!": {"preset": "sqvae"}, "sq": {"preset": "sqvae"}}},
        ["'sq-seed0'", "rename"],
    ),
    "no such split": ({"split": "tets"}, ["split", "tets"]),
    "settings that contradict each other": (
        {"settings": {**SETTINGS, "phases.nearest_fraction": 0.5}},
        ["VQ: phases.nearest_fraction=0.5", "kind=deterministic"],
    ),
    "data of its own, in a mapping": (
        {"settings": {**SETTINGS, "data": {"kind": "images", "size": 8}}},
        ["data.source", "--data ..."],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_comparison_is_refused_before_anything_is_written(case, data, tmp_path, capsys):
    changes, words = REFUSED[case]
    assert compare(written(tmp_path, **changes), data, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["{spec}", "--seeds", "3"], "--seeds 3: the spec has 2"),
        (["{spec}", "--split", "tset"], "split 'tset' does not exist; did you mean 'test'"),
        (
            ["{spec}", "--only", "VQ-VAE"],
            "'VQ-VAE' is no system or case of the spec; did you mean 'VQ'",
        ),
        (["{spec}", "--jobs", "0"], "--jobs 0: expected at least 1"),
        (["{spec}", "train.stepz=1"], "did you mean 'steps'"),
        (["{spec}", "train.seed=1"], "train.seed cannot be set in a comparison; expected seeds"),
        (
            ["{spec}", "data.source=photos"],
            "data.source cannot be set in a comparison; expected --data ...",
        ),
        (["{spec}", "--accelerator", "gpu"], "accelerator 'gpu' does not exist"),
        pytest.param(
            ["{spec}", "--accelerator", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="this machine has what is asked for"
            ),
        ),
        (["{spec}", "--devices", "0"], "--devices 0: expected 1 to "),
        (
            ["{spec}", "model.levels.0.stride=16"],
            "model.levels.0.stride=16 is larger than the images; expected at most 8",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, words, data, tmp_path, capsys):
    spec = written(tmp_path)
    words_given = [word.format(spec=spec) for word in arguments]
    out = ["--data", data, "--out", str(tmp_path / "out")]
    assert main(["compare", *words_given, *out]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", "{}", "[" * 99999, '{"config": CONFIG, "measures": 3}'],
    ids=range(7),
)
def test_torn_figures_of_a_run_are_one_sentence(text, tmp_path, data):
    spec = read_spec(written(tmp_path))
    run = run_specs(spec, data)[0]
    text = text.replace("CONFIG", json.dumps(to_dict(run.config)))
    path = tmp_path / "out" / "results" / f"{run.name}.test.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match="holds no figures of a run; delete it") as error:
        ComparisonDir(tmp_path / "out").result(run, "test")
    assert "\n" not in str(error.value)


def test_a_comparison_without_a_name_is_refused(tmp_path, data, capsys, monkeypatch):
    spec = written(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert compare(spec, data, "") == 2
    assert "--out '' names no folder" in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []


def test_files_that_are_no_spec_are_refused(tmp_path):
    for text, words in (
        ("a: [1", "not readable YAML"),
        ("- 1", "no mapping"),
        ("title: t", "systems"),
    ):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(InputError, match=words):
            read_spec(str(tmp_path / "s.yaml"))
    with pytest.raises(InputError, match=re.escape("did you mean 's.yaml'")):
        read_spec(str(tmp_path / "ss.yaml"))


def test_settings_of_the_command_win_over_those_of_the_system(tmp_path, data):
    spec = read_spec(written(tmp_path, cases={"a": {"train.lr": 0.5}})).select(
        None, 1, ["train.lr=0.25", "train.steps=9"]
    )
    assert {
        (e.config.train.lr, e.config.train.steps, e.config.train.seed)
        for e in run_specs(spec, data)
    } == {(0.25, 9, 0)}


def test_the_last_word_of_a_spec_is_kept_and_the_commands_comes_after_it(tmp_path, data):
    spec = read_spec(written(tmp_path, last=["train.lr=0.5", "train.warmup=3"])).select(
        None, 1, ["train.lr=0.25"]
    )
    assert {(e.config.train.lr, e.config.train.warmup) for e in run_specs(spec, data)} == {
        (0.25, 3)
    }


def test_what_a_case_says_of_its_own_levels_holds(tmp_path, data):
    levels = {
        "model.levels": [{"stride": 4}, {"stride": 2}],
        "model.levels.0.codebook_size": 16,
        "model.levels.1.codebook_size": 32,
    }
    for entry in run_specs(
        read_spec(written(tmp_path, cases={"two": levels})), data
    ):  # SETTINGS name the first of these keys before
        assert [level.codebook_size for level in entry.config.model.levels] == [16, 32]


def test_only_what_is_named_is_compared(tmp_path, data):
    spec = read_spec(written(tmp_path, cases={"a": {}, "b": {"train.steps": 5}}, reference="SQ"))

    def grid(*only):
        return [(e.case, e.system) for e in run_specs(spec.select(seeds=1, only=only), data)]

    assert grid() == [("a", "SQ"), ("a", "VQ"), ("b", "SQ"), ("b", "VQ")]
    assert (
        grid("VQ") == [("a", "VQ"), ("b", "VQ")]
        and spec.select(only=["VQ"]).reference_system == "VQ"
    )
    assert (
        grid("b") == [("b", "SQ"), ("b", "VQ")] and spec.select(only=["b"]).reference_system == "SQ"
    )
    assert grid("a", "VQ") == [("a", "VQ")]


# ------------------------------------------------------------------------------ statistics


def test_an_estimate_is_mean_and_standard_error():
    estimate = Estimate.of([1.0, 2.0, 3.0, 6.0])
    assert estimate.mean == 3 and estimate.error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
    assert Estimate.of([4.0]) == Estimate(4.0, None, 1) and not Estimate.of([4.0]).significant
    assert (
        Estimate(1.0, 0.23, 3).significant
        and Estimate(-1.0, 0.23, 3).significant
        and not Estimate(1.0, 0.24, 3).significant
        and Estimate(1.0, 0.36, 5).significant
    )
    assert format_difference(Estimate(-1.234, 0.5, 3)) == "−1.23 ± 2.15"
    # Table of Student's t: 10, 11, 20 and 100 degrees of freedom.
    for count, t in ((11, 2.228), (12, 2.201), (21, 2.086), (101, 1.984)):
        assert Estimate(0.0, 1.0, count).interval == pytest.approx(t, abs=3e-3)
    assert format_estimate(Estimate(24.906, 0.031, 3)) == "24.91 ± 0.03"
    assert format_estimate(Estimate(0.5, None, 1)) == "0.5000" and format_estimate(None) == "–"
    assert Estimate(3.0, 0.5, 4).scaled(2.0) == Estimate(6.0, 1.0, 4)


def result(system, seed, rmse, perplexity=4.0):
    layer = {
        "level": 0,
        "layer": 0,
        "codebook_size": 8,
        "used": 6,
        "perplexity": perplexity,
        "psnr_cumulative": 20.0,
    }
    measures = {
        "rmse": rmse,
        "psnr": 20.0,
        "ssim": None,
        "bits_per_dim": 5.0,
        "bits_per_point": 0.5,
        "layers": [layer, {**layer, "layer": 1, "perplexity": 7.0}],
    }
    return {
        "case": "",
        "system": system,
        "seed": seed,
        "measures": measures,
        "items_per_second": 100.0,
        "protocol": {"unit": "0–255"},
    }


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds differ by ten, systems by 0.5 within every seed: the pairing sees the half."""
    spec = read_spec(written(tmp_path, seeds=[0, 1, 2]))
    results = [
        result(system, seed, 10.0 * seed + (system == "VQ") / 2)
        for seed in (0, 1, 2)
        for system in ("SQ", "VQ")
    ]
    ours, theirs = summarise(spec, results)
    assert (
        ours.difference is None
        and theirs.difference == Estimate(0.5, 0.0, 3)
        and theirs.difference.significant
    )
    assert theirs.figures["rmse"].error > 5
    assert "ssim" not in ours.figures and ours.figures["perplexity_share"].mean == 0.5
    assert verdicts(spec, [ours, theirs])[0] == "SQ has lower RMSE than VQ (+0.50 ± 0.00)."
    assert "layer 0, has a perplexity of 4 of 8" in verdicts(spec, [ours, theirs])[1]


def test_a_missing_seed_is_left_out_of_the_pairs(tmp_path):
    results = [result("SQ", 0, 1.0), result("VQ", 0, 3.0), result("VQ", 1, 100.0)]
    rows = summarise(read_spec(written(tmp_path)), results)
    assert [row.seeds for row in rows] == [(0,), (0, 1)] and rows[1].difference == Estimate(
        2.0, None, 1
    )
    said = verdicts(read_spec(written(tmp_path)), rows)[0]
    assert "VQ +2.00" in said and "one seed" in said


# ------------------------------------------------------------------------------ runs


def test_runs_are_ordinary_commands():
    """What the forks of the other tests stand for; `python -m hqvae.cli` is in test_cli.py."""
    assert [sys.executable, "-m", "hqvae.cli"] == HQVAE_COMMAND


def figures(out):
    report = json.loads((out / "report.json").read_text())
    return {(r["case"], r["system"], r["seed"]): r["measures"]["rmse"] for r in report["results"]}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    systems = {"SQ": {"preset": "rsqvae"}, "VQ": {"preset": "rqvae"}}
    spec = written(
        out,
        cases={"L = 1": {"model.levels.0.layers": 1}, "L = 2": {"model.levels.0.layers": 2}},
        systems=systems,
        title="A <b>",
    )
    assert compare(spec, data, out / "c", "--seeds", "1", "--jobs", "2") == 0
    return spec, out / "c"


def test_a_comparison_leaves_tables_and_a_page_that_opens_offline(finished, data, capsys):
    spec, out = finished
    assert compare(spec, data, out, "--seeds", "1") == 0
    shown = capsys.readouterr().out
    heading = "L = 1 (test split, 0.1875 bits per pixel)"
    assert all(words in shown for words in (heading, "Δ RMSE to SQ", "use of the codebooks"))
    page = (out / "report.html").read_text()
    assert "<h1>A &lt;b&gt;</h1>" in page
    pictures = list((out / "pictures").glob("*.png"))
    # 4 a case, 1 over the cases.
    assert page.count('src="data:image/png;base64,') == 9 == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)|https?:|<script', page)
    report = json.loads((out / "report.json").read_text())
    assert len(report["rows"]) == 4 and len(report["results"]) == 4 and report["missing"] == []
    for row, rate in zip(report["results"], (3, 3, 6, 6)):
        assert row["measures"]["bits_per_point"] == rate / 16
        assert row["protocol"]["split"] == "test" and row["protocol"]["items"] == 8


def test_what_is_done_is_not_done_again_and_more_seeds_are_added(finished, data, tmp_path, capsys):
    spec, out = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    old = figures(out)
    narrower = yaml.safe_load(Path(spec).read_text())
    narrower["cases"].pop("L = 2")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(narrower))
    assert compare(str(tmp_path / "one.yaml"), data, out) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    new = figures(out)
    assert len(new) == 4 and all(new[key] == rmse for key, rmse in old.items() if key[0] == "L = 1")
    assert "± " in capsys.readouterr().out
    assert compare(spec, data, out, "train.lr=0.5") == 2
    assert "of another config: train.lr is 0.001 there and 0.5 here" in capsys.readouterr().err


def test_a_system_joins_a_kept_report_without_training_the_others_again(
    finished, data, tmp_path, capsys
):
    """`experiments/restore.py` lays down the kept results; folders of their runs are gone."""
    spec, kept = finished
    out = tmp_path / "c"
    # The report anew, whatever other tests have added.
    assert compare(spec, data, kept, "--seeds", "1") == 0
    script("restore").main(kept / "report.json", str(out), ["VQ"])
    old = {key: rmse for key, rmse in figures(kept).items() if key[1] == "VQ"}
    assert compare(spec, data, out, "--seeds", "1") == 0
    assert "VQ, seed 0: begins" not in capsys.readouterr().err
    folders = {path.name for path in (out / "runs").glob("*/")}
    assert folders == {"l-1-sq-seed0", "l-2-sq-seed0"}
    assert len(old) == 2 and old.items() <= figures(out).items() and len(figures(out)) == 4
    assert len(list((out / "pictures").glob("*.png"))) == 9


def test_a_run_that_fails_is_named_and_the_others_count(data, tmp_path, capsys):
    systems = {
        "SQ [own]": {"preset": "sqvae"},
        "wild": {"preset": "vqvae", "settings": {"train.lr": 1e30}},
    }
    spec = written(tmp_path, systems=systems, seeds=[0])
    assert compare(spec, data, tmp_path / "c") == 1
    shown = capsys.readouterr().out
    assert "! wild, seed 0 failed with code 2: " in shown and "lower train.lr" in shown
    assert (
        list(figures(tmp_path / "c")) == [("", "SQ [own]", 0)]
        and "│ SQ [own]" in shown
        and "Δ RMSE to SQ [own]" in shown
    )
    assert "wild, seed 0 failed" in (tmp_path / "c" / "report.html").read_text()


def test_a_run_that_another_process_has_claimed_is_left_to_it(data, tmp_path, capsys):
    (tmp_path / "c" / "runs").mkdir(parents=True)
    with (tmp_path / "c" / "runs" / "vq-seed0.log").open("ab") as held:
        assert lock(held)
        spec = written(tmp_path, seeds=[0])
        assert compare(spec, data, tmp_path / "c") == 1
    assert "! VQ, seed 0: another process is at it" in capsys.readouterr().out
    assert list(figures(tmp_path / "c")) == [("", "SQ", 0)]


def test_what_goes_wrong_in_one_run_of_ours_stops_the_others_at_once(data, tmp_path, monkeypatch):
    """An error of the program itself is not swallowed, and waits for no other runs."""
    begun = []

    def broken(pool, run, progress):
        if begun:  # the second waits to be told to stop, and none after it would begin
            assert pool.stopping.wait(30)
            return None
        begun.append(run.name)
        raise RuntimeError("no such thing")

    monkeypatch.setattr("hqvae.compare.jobs.JobPool._train_and_evaluate", broken)
    with pytest.raises(RuntimeError, match="no such thing"):
        compare(written(tmp_path, seeds=list(range(9))), data, tmp_path / "c")
    assert len(begun) == 1


def test_a_comparison_without_logs_has_a_report(finished, data, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "c")
    for log in (tmp_path / "c" / "runs").glob("*/log.jsonl"):
        log.unlink()
    spec = shutil.copy(finished[0], tmp_path / "spec.yaml")
    assert compare(str(spec), data, tmp_path / "c", "--seeds", "1") == 0
    assert "</figcaption>" in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")


def test_a_report_is_utf8_whatever_the_system_speaks(finished, data, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "c")
    words = [*HQVAE_COMMAND, "compare", finished[0], "--data", data, "--out", str(out)]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*words, "--seeds", "1", "--accelerator", "cpu"], env=ascii_only, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "±" in (out / "report.html").read_text(encoding="utf-8")


def test_how_far_a_run_is_is_shown_while_it_goes_on(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hqvae.compare.jobs._LOOK_EVERY", 0.01)
    monkeypatch.setattr("hqvae.console._PIPED_EVERY", 0.0)
    settings = {**SETTINGS, "train.log_every": 1}
    spec = written(tmp_path, seeds=[0], settings=settings, systems={"SQ": SYSTEMS["SQ"]})
    assert compare(spec, data, tmp_path / "c") == 0
    lines = capsys.readouterr().err
    assert re.search(r"^\[1/1\] SQ, seed 0: .*step \d/4 .*bits/dim", lines, re.MULTILINE)


def newest_step(folder):
    return max((int(path.stem) for path in folder.rglob("checkpoints/*.pt")), default=0)


def test_a_comparison_that_is_stopped_goes_on_and_ends_the_same(data, tmp_path):
    """Stopped by SIGINT, then killed: what a killed one's children still do is waited for."""
    settings = {**SETTINGS, "train.steps": 90, "train.validate_every": 15, "train.log_every": 5}
    spec = written(tmp_path, seeds=[0], settings=settings, systems={"SQ": SYSTEMS["SQ"]})
    arguments = ["compare", spec, "--data", data, "--accelerator", "cpu"]
    assert compare(spec, data, tmp_path / "whole") == 0
    cut, log = tmp_path / "cut", tmp_path / "cut.log"
    for how, least in ((signal.SIGINT, 1), (signal.SIGKILL, 45)):
        process = start(*arguments, "--out", cut, log=log)
        deadline = time.time() + 100
        while newest_step(cut) < least and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        assert process.wait(60) == (130 if how == signal.SIGINT else -9), log.read_text()
        assert not list((cut / "results").glob("*"))  # stopped in the middle, not after the end
    assert "--resume" in (cut / "runs" / "sq-seed0.log").read_text()
    deadline = time.time() + 100
    while compare(spec, data, cut) == 1 and time.time() < deadline:
        time.sleep(0.2)
    assert figures(cut) == figures(tmp_path / "whole")


def test_results_of_settings_that_are_gone_are_of_another_config(data, tmp_path):
    """As a comparison of an older version left them."""
    spec = read_spec(written(tmp_path, seeds=[0], systems={"SQ": SYSTEMS["SQ"]}))
    (run,) = run_specs(spec, data)
    folder = ComparisonDir(tmp_path / "c")
    old = {"train": {"unquantised": 0.1}}
    folder.save_result("test", {"case": "", "system": "SQ", "seed": 0, "config": old})
    with pytest.raises(InputError, match=r"sq-seed0\.test\.json is of another config: .*unquant"):
        folder.result(run, "test")
