"""The table of a comparison's report.json in Markdown, as docs/results.md has it.

python experiments/table.py runs/residual/report.json
"""

import json
import sys
from pathlib import Path
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


def main(path: Path) -> None:
    report = json.loads(path.read_text())
    cased = any(row["case"] for row in report["rows"])
    shown = {key: kind for key, kind in FIGURES.items() if all(key in row["figures"] for row in report["rows"])}
    names = [*(["case"] if cased else []), "system", "seeds", *(name for name, _ in shown.values()),
             f"Δ RMSE to {report['reference']}", "perplexity of each layer", "least used layer: codes ever chosen",
             "images/s"]  # fmt: skip
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in report["rows"]:
        finer = row["figures"]["rmse"]["mean"] < 2  # of log magnitudes
        figures = [estimate(row["figures"][key], digits + (finer and key == "rmse")) for key, (_, digits) in shown.items()]
        cells = [*([row["case"]] if cased else []), row["system"], str(len(row["seeds"])), *figures,
                 estimate(row["difference"], 2 + finer, "+"),
                 " ".join(f"{layer['perplexity']['mean']:.{int(layer['codebook_size'] < 16)}f}" for layer in row["layers"]),
                 f"{row['figures']['used_share']['mean']:.0%}",
                 f"{row['figures']['images_per_second']['mean']:.0f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print("\n" + "\n".join(f"- {verdict}" for verdict in report["verdicts"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
