"""The tables of comparisons' report.json in Markdown: each system's figures, and what is said of them.

python experiments/table.py runs/residual/report.json
python experiments/table.py experiments/results/*/*.json > experiments/results/README.md
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

FIGURES = {
    "rmse": ("RMSE", 2), "psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4), "bits_per_dim": ("−ELBO bits/dim", 3),
    "bits_per_dim_nearest": ("by nearest", 3),
}  # fmt: skip


def estimate(value: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    if value is None:
        return ""
    shown = f"{value['mean']:{sign}.{digits}f}"
    return shown if value["error"] is None else f"{shown} ± {value['error']:.{digits}f}"


def lost_if_shuffled(row: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """PSNR that shuffling each layer's codes costs, mean over the row's seeds."""
    own = [result["measures"]["layers"] for result in results if (result["case"], result["system"]) == (row["case"], row["system"])]
    return " ".join(f"{mean(layer['psnr_loss'] for layer in seeds):.2f}" for seeds in zip(*own))


def table(report: dict[str, Any]) -> str:
    cased = any(row["case"] for row in report["rows"])
    shown = {key: kind for key, kind in FIGURES.items() if all(key in row["figures"] for row in report["rows"])}
    names = [*(["case"] if cased else []), "system", "seeds", *(name for name, _ in shown.values()),
             f"Δ RMSE to {report['reference']}", "perplexity of each layer", "lost if shuffled, dB",
             "least used layer: codes ever chosen", "images/s"]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in report["rows"]:
        finer = row["figures"]["rmse"]["mean"] < 2  # of log magnitudes
        figures = [estimate(row["figures"][key], digits + (finer and key == "rmse")) for key, (_, digits) in shown.items()]
        cells = [*([row["case"]] if cased else []), row["system"], str(len(row["seeds"])), *figures,
                 estimate(row["difference"], 2 + finer, "+"),
                 " ".join(f"{layer['perplexity']['mean']:.{int(layer['codebook_size'] < 16)}f}" for layer in row["layers"]),
                 lost_if_shuffled(row, report["results"]), f"{row['figures']['used_share']['mean']:.0%}",
                 f"{row['figures']['images_per_second']['mean']:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {verdict}" for verdict in report["verdicts"])])


def main(paths: list[Path]) -> None:
    if len(paths) == 1:
        print(table(json.loads(paths[0].read_text())))
        return
    print("# Tables of all reports\n\n`python experiments/table.py experiments/results/*/*.json` prints this page; "
          "[docs/results.md](../../docs/results.md) tells what they say.")  # fmt: skip
    for path in sorted(paths):
        report = json.loads(path.read_text())
        print(f"\n## {path.parent.name}/{path.name}\n")
        print(f"{report['title']}. {report['split'].capitalize()} split of `{report['data']}`.\n")
        print(table(report))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
