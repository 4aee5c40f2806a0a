"""The tables of comparisons' report.json in Markdown: figures, and what is said of them.

Of several reports, each with the command that makes it, and which of its rows have another config
than that command has today.

python experiments/table.py runs/residual/report.json
python experiments/table.py experiments/results/*/*.json > experiments/results/README.md
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from hqvae.compare import Spec, read_spec, run_specs
from hqvae.config import Config, difference, from_dict
from hqvae.errors import InputError

EXPERIMENTS = Path(__file__).resolve().parent
FIGURES = {
    "rmse": ("RMSE", 2),
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 4),
    "bits_per_dim": ("−ELBO bits/dim", 3),
    "bits_per_dim_nearest": ("by nearest", 3),
}


def estimate(value: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    if value is None:
        return ""
    shown = f"{value['mean']:{sign}.{digits}f}".replace("-", "−")
    return shown if value["error"] is None else f"{shown} ± {value['error']:.{digits}f}"


def lost_if_shuffled(row: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """PSNR that shuffling each layer's codes costs, mean over the row's seeds."""
    own = [
        result["measures"]["layers"]
        for result in results
        if (result["case"], result["system"]) == (row["case"], row["system"])
    ]
    return " ".join(f"{mean(layer['psnr_loss'] for layer in seeds):.2f}" for seeds in zip(*own))


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
        f"Δ RMSE to {report['reference']}",
        "perplexity of each layer",
        "lost if shuffled, dB",
        "least used layer: codes ever chosen",
        "images/s",
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
            estimate(row["difference"], 2 + finer, "+"),
            " ".join(map(perplexity, row["layers"])),
            lost_if_shuffled(row, report["results"]),
            f"{row['figures']['used_share']['mean']:.0%}",
            f"{row['figures']['images_per_second']['mean']:.0f}",
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
        words += (
            [f'--only "{name}"' for name in every if name in chosen] if chosen < set(every) else []
        )
    seeds = max(len(row["seeds"]) for row in report["rows"])
    words += [f"--seeds {seeds}"] if seeds < len(spec.seeds) else []
    words += [f"--split {report['split']}"] if report["split"] != spec.split else []
    return " ".join([*words, "--data", report["data"], "--out", f"runs/{path.parent.name}"])


def since(saved: dict[str, Any], today: Config) -> str | None:
    """What today's config of a run has otherwise than the one it was measured with."""
    try:
        return difference(from_dict(saved), today)
    except InputError as error:  # a setting that is gone
        return str(error)


def changed(report: dict[str, Any], spec: Spec) -> list[str]:
    """A line that names the systems whose rows are of another config than the spec makes today.

    No line where there are none.
    """
    today = {
        (entry.case, entry.system, entry.seed): entry.config
        for entry in run_specs(spec, report["data"])
    }
    found: dict[str, str] = {}
    for result in report["results"]:
        change = since(result["config"], today[result["case"], result["system"], result["seed"]])
        if change:
            found.setdefault(result["system"], change)
    if not found:
        return []
    rows = "; ".join(f"{system} ({change})" for system, change in found.items())
    return [
        "- *Rows of another config* than this command has today, *there* being the report's: "
        f"{rows}."
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
    lines += changed(report, spec)
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    if len(paths) == 1:
        print(table(json.loads(paths[0].read_text())))
        return
    print(
        "# Tables of all reports\n\n"
        "`python experiments/table.py experiments/results/*/*.json` prints this page; "
        "[docs/results.md](../../docs/results.md) tells what it says."
    )
    for path in sorted(paths):
        print("\n" + section(path))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
