"""What lies in `experiments/`: specs that are comparisons, kept reports whose pages are current.

Their keys are today's, and their numbers those that were measured.
"""

import json
import subprocess

import pytest
import torch
from PIL import Image
from scripts import EXPERIMENTS, ROOT, script

from hqvae.compare import read_spec, run_specs
from hqvae.data import open_data, sequential_batches
from hqvae.model import HQVAE
from hqvae.overrides import from_dict

SPECS = sorted(EXPERIMENTS.rglob("*.yaml"))
TUNING = {"ablations", "levers"}  # folders of specs that are read on the validation split only
# Rows in the unit of their papers; opponents that are tuned train in ours.
PUBLISHED = {
    f"{name}{more}" for name in ("VQ-VAE", "VQ-VAE-2", "RQ-VAE") for more in ("", ", restart")
} | {f"RQ-VAE, restart, {more}its authors' Adam" for more in ("", "own codebooks, ")}
LATENTS = {  # published sizes of the latents
    "celebahq256": [(32, 32), (64, 64)],
    "ffhq256": [(8, 8)] * 4,
    "ffhq1024": [(32, 32), (64, 64), (128, 128)],
    "imagenet256": [(32, 32), (64, 64)],
}
rename_keys = script("rename_keys")
table = script("table")
REPORTS = rename_keys.kept_reports()
reports = pytest.mark.parametrize(
    "path", REPORTS, ids=lambda path: str(path.relative_to(EXPERIMENTS))
)
large = pytest.mark.parametrize("name", LATENTS)


def spec_named(name):
    return next(path for path in SPECS if path.stem == name)


# ------------------------------------------------------------------------------ specs


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_specs_are_comparisons_at_equal_rate(path):
    spec = read_spec(str(path))
    runs = run_specs(spec, "photos")
    assert len(runs) == len(spec.systems) * len(spec.cases) * len(spec.seeds)
    for case in spec.cases:
        assert len({round(run.bits_per_point, 9) for run in runs if run.case == case}) == 1
    kinds = {run.config.model.quantizer.kind for run in runs}
    if path.parent.name in TUNING:
        assert kinds == {"stochastic"} and spec.split == "validation"
    else:
        assert kinds > {"stochastic"} and spec.reference_system == runs[0].system
        assert runs[0].config.model.quantizer.kind == "stochastic"
    for run in runs:
        expected = "mse" if run.system in PUBLISHED or "MSE" in run.system else "gaussian"
        assert run.config.model.likelihood == expected, run.title


@large
def test_large_specs_have_the_published_latents(name):
    for run in run_specs(read_spec(str(spec_named(name))), "photos"):
        with torch.device("meta"):  # shapes without weights
            model = HQVAE(run.config.model)
            side = run.config.data.size
            features = model.features(torch.zeros(1, 3, side, side))
        shapes = [tuple(features[place.level].shape[2:]) for place in model.config.layers]
        assert shapes == LATENTS[name], run.title


@large
def test_large_specs_train_on_a_small_folder(name, tmp_path):
    """The loader's part: pictures of other sizes in sub-folders, brought to the published side."""
    run = run_specs(read_spec(str(spec_named(name))), str(tmp_path / "pictures"))[0]
    side = run.config.data.size
    for index in range(4):
        path = tmp_path / "pictures" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side + 7 * index, side + 3), (index * 40, 9, 9)).save(path)
    images = open_data(run.config.data, 3, ("train",))[1]["train"]
    shapes = [tuple(batch.shape) for batch in sequential_batches(images, 1, 2)]
    assert shapes == [(1, 3, side, side)] * 2


# ------------------------------------------------------------------------------ kept reports


def test_the_page_of_all_tables_is_what_its_command_prints(capsys):
    paths = sorted((EXPERIMENTS / "results").glob("*/*.json"))
    table.main(paths)
    page = (EXPERIMENTS / "results" / "README.md").read_text(encoding="utf-8")
    assert len(paths) > 20 and capsys.readouterr().out == page


def test_the_page_says_of_which_commit_rows_are():
    """Rows that are measured anew are not among those of earlier code."""
    report = {"rows": [{"system": "A"}, {"system": "B"}], "results": []}
    report["results"] = [{"system": "A", "retired": {}}, {"system": "B"}]
    assert table.earlier_rows(report) == ["- *Of commit b560927 or earlier*: A."]
    report["results"] = [{"system": "A"}, {"system": "B"}]
    assert table.earlier_rows(report) == []


@reports
def test_keys_are_todays(path):
    """Renaming again changes nothing, and every config is one."""
    text = path.read_text()
    assert rename_keys.renamed_text(text) == text
    report = json.loads(text)
    for result in report.get("results", [report] if "config" in report else []):
        parts = ("model", "data", "phases", "train")
        from_dict({part: result["config"][part] for part in parts})


@reports
def test_numbers_are_those_that_were_measured(path):
    """Of rows that are measured anew there is no other number to compare with."""
    relative = path.relative_to(ROOT).as_posix()
    measured = subprocess.run(
        ["git", "show", f"{table.MEASURED_WITH}:{relative}"], cwd=ROOT, capture_output=True
    )
    if measured.returncode:
        pytest.skip("needs git, and the commit that the report is of")
    report = json.loads(path.read_text())
    runs = report.get("results", [report] if "config" in report else [])
    if any("retired" not in run for run in runs) or "posterior" in report.get("protocol", {}):
        pytest.skip("was measured anew, or has such rows")
    assert sorted(numbers(report)) == sorted(numbers(json.loads(measured.stdout)))


def numbers(tree):
    """All numbers of a tree of plain values."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def test_what_old_keys_meant_is_not_lost():
    config = {
        "model": {
            "levels": [{"stride": 4, "shared": True}],
            "quantizer": {"kind": "ema", "start": {"kind": "data", "sharpness": 8.0, "kmeans": 0}},
            "net": {"widths": [8], "hidden": 1.0, "activation": "elu"},
            "search": 8,
        },
        "data": {"kind": "sounds", "front": {"kind": "mel"}},
        "train": {
            "steps": 5,
            "hard": 0.75,
            "patience": 3,
            "temperature": {"end": 0.6, "over": 1.0},
        },
        "contents": {"train": "5 items"},
    }
    assert rename_keys.rename({"config": config, "images": 7}) == {
        "config": {
            "model": {
                "levels": [{"stride": 4, "shared_codebook": True}],
                "quantizer": {
                    "kind": "deterministic",
                    "init": {"kind": "kmeans", "sharpness": 8.0},
                },
                "net": {"widths": [8], "kind": "wave"},
                "beam_size": 8,
                "likelihood": "mse",
            },
            "data": {"kind": "audio", "frontend": {"kind": "mel"}},
            "phases": {"nearest_fraction": 0.75, "temperature": {"end": 0.6}},
            "train": {"steps": 5},
            "fingerprints": {"train": "5 items"},
        },
        "retired": {
            "train.patience": 3,
            "train.temperature.over": 1.0,
            "model.quantizer.start.kmeans": 0,
            "model.net.hidden": 1.0,
            "model.net.activation": "elu",
        },
        "items": 7,
    }
