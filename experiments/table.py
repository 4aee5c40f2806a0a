"""The tables of comparisons' report.json in Markdown: figures, and what is said of them.

Of several reports, each with the command that makes it, which of its rows are of earlier code, and
which have another config than that command has today.

python experiments/table.py runs/residual/report.json
python experiments/table.py experiments/results/*/*.json > experiments/results/README.md
"""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from hqvae.compare import Spec, read_spec, run_specs
from hqvae.compare.summary import Estimate, format_difference
from hqvae.config import Config
from hqvae.errors import InputError
from hqvae.overrides import difference, from_dict
from hqvae.quantize import GumbelSoftmaxConfig

EXPERIMENTS = Path(__file__).resolve().parent
MEASURED_WITH = "b560927"  # the last commit with the key names before those of today
FIRST_BETA = 0.025  # of the nearest-code phase, before stochastic configs said it (e92bf95)
FIGURES = {
    "rmse": ("RMSE", 2),
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 4),
    "bits_per_dim": ("−ELBO bits/dim", 3),
    "bits_per_dim_deterministic": ("−ELBO, nearest code", 3),
}


def estimate(value: dict[str, Any], digits: int) -> str:
    shown = f"{value['mean']:.{digits}f}".replace("-", "−")
    return shown if value["error"] is None else f"{shown} ± {value['error']:.{digits}f}"


def lost_if_shuffled(row: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """PSNR that shuffling each layer's codes costs, mean over the row's seeds."""
    own = [
        result["measures"]["layers"]
        for result in results
        if (result["case"], result["system"]) == (row["case"], row["system"])
    ]
    return " ".join(
        f"{mean(layer['ablation_drop_db'] for layer in seeds):.2f}" for seeds in zip(*own)
    )


def table(report: dict[str, Any]) -> str:
    cased = any(row["case"] for row in report["rows"])
    figures = {
        key: column
        for key, column in FIGURES.items()
        if all(key in row["figures"] for row in report["rows"])
    }
    names = [
        *(["case"] if cased else []),
        "system",
        "seeds",
        *(name for name, _ in figures.values()),
        f"Δ RMSE to {report['reference']}, 95 %",
        "perplexity of each layer",
        "lost if shuffled, dB",
        "least used layer: codes ever chosen",
        "items/s",
    ]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in report["rows"]:
        finer = row["figures"]["rmse"]["mean"] < 2  # of log magnitudes
        cells = [
            *([row["case"]] if cased else []),
            row["system"],
            str(len(row["seeds"])),
            *(
                estimate(row["figures"][key], digits + (finer and key == "rmse"))
                for key, (_, digits) in figures.items()
            ),
            format_difference(Estimate(**row["difference"])) if row["difference"] else "",
            " ".join(map(perplexity, row["layers"])),
            lost_if_shuffled(row, report["results"]),
            f"{row['figures']['used_share']['mean']:.0%}",
            f"{row['figures']['items_per_second']['mean']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {verdict}" for verdict in report["verdicts"])])


def perplexity(layer: dict[str, Any]) -> str:
    return f"{layer['perplexity']['mean']:.{int(layer['codebook_size'] < 16)}f}"


def command(path: Path, report: dict[str, Any], spec_path: Path, spec: Spec) -> str:
    """The `hqvae compare` that makes such a report."""
    words = ["hqvae compare", str(spec_path)]
    for key, every in (("case", spec.cases), ("system", spec.systems)):
        chosen = {row[key] for row in report["rows"]}
        if not chosen >= set(every):
            words += [f'--only "{name}"' for name in every if name in chosen]
    seeds = max(len(row["seeds"]) for row in report["rows"])
    words += [f"--seeds {seeds}"] if seeds < len(spec.seeds) else []
    words += [f"--split {report['split']}"] if report["split"] != spec.split else []
    return " ".join([*words, "--data", report["data"], "--out", f"runs/{path.parent.name}"])


def earlier_rows(report: dict[str, Any]) -> list[str]:
    """A line that names the rows whose keys `rename_keys.py` has renamed; none where none are."""
    systems = list(dict.fromkeys(row["system"] for row in report["rows"]))
    renamed = {result["system"] for result in report["results"] if "retired" in result}
    earlier = [system for system in systems if system in renamed]
    if not earlier:
        return []
    which = "all rows" if earlier == systems else "; ".join(earlier)
    return [f"- *Of commit {MEASURED_WITH} or earlier*: {which}."]


def since(saved: dict[str, Any], today: Config | None) -> str | None:
    """What today's config of a run has otherwise than the one it was measured with."""
    if today is None:
        return "no longer in the spec"
    quantizer = saved["model"]["quantizer"]
    if quantizer["kind"] == "stochastic":
        quantizer = {"beta": FIRST_BETA, **quantizer}
        saved = {**saved, "model": {**saved["model"], "quantizer": quantizer}}
    try:
        return difference(with_beta(from_dict(saved)), with_beta(today))
    except InputError as error:  # a setting that is gone
        return str(error)


def with_beta(config: Config) -> Config:
    """The config with β of the nearest-code phase as a number, where it goes by the layers."""
    quantizer = config.model.quantizer
    if not isinstance(quantizer, GumbelSoftmaxConfig):
        return config
    beta = quantizer.nearest([level.layers for level in config.model.levels]).beta
    quantizer = replace(quantizer, beta=beta if config.phases.nearest_fraction else None)
    return replace(config, model=replace(config.model, quantizer=quantizer))


@cache
def configs_today(spec_path: Path, data: str) -> dict[tuple[str, str, int], Config]:
    """What the spec and its presets make of every run today."""
    runs = run_specs(read_spec(str(spec_path)), data)
    return {(run.case, run.system, run.seed): run.config for run in runs}


def changed(report: dict[str, Any], spec_path: Path) -> list[str]:
    """A line that names the systems whose rows are of another config than the spec makes today.

    No line where there are none.
    """
    today = configs_today(spec_path, report["data"])
    changes: dict[str, str] = {}
    for result in report["results"]:
        key = (result["case"], result["system"], result["seed"])
        change = since(result["config"], today.get(key))
        if change:
            changes.setdefault(result["system"], change)
    if not changes:
        return []
    parts = []
    for change in dict.fromkeys(changes.values()):
        systems = [system for system in changes if changes[system] == change]
        parts.append(f"{'; '.join(systems)} ({change})")
    return [
        "- *Rows of another config* than this command has today, *there* being the report's: "
        f"{'. '.join(parts)}."
    ]


def section(path: Path) -> str:
    report, name = json.loads(path.read_text()), path.parent.name
    spec_path = next(EXPERIMENTS.rglob(f"{name}.yaml"))
    spec = read_spec(str(spec_path))
    lines = [f"## {name}/{path.name}", "", f"{report['title']}, {report['split']} split:"]
    lines += [
        f"`{command(path, report, spec_path.relative_to(EXPERIMENTS.parent), spec)}`",
        "",
        table(report),
    ]
    lines += earlier_rows(report) + changed(report, spec_path)
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    if len(paths) == 1:
        print(table(json.loads(paths[0].read_text())))
        return
    print(
        "# Tables of all reports\n\n"
        "`python experiments/table.py experiments/results/*/*.json` prints this page; "
        "[docs/results.md](../../docs/results.md) and "
        "[earlier results](../diary/earlier-results.md) tell what it says. Rows *of commit "
        f"{MEASURED_WITH} or earlier* were measured with the code of that commit or an earlier "
        "one; [rename_keys.py](../rename_keys.py) has renamed their keys since, and changed no "
        "number."
    )
    for path in sorted(paths):
        print("\n" + section(path))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
