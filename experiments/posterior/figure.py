"""The factorial in one panel: error against how long the posterior draws samples.

    python experiments/posterior/figure.py experiments/results/factorial/report.json
        experiments/posterior/posterior.png

The arms of a report of `factorial.yaml` that have a fitted variance, with Adam's best β₂; a line
for each start of the codebooks.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

UNTIL = {
    "none, fitted variance": "never:\nnearest codes",
    "posterior until 15 %": "15 %",
    "posterior until 25 %": "25 %",
    "posterior until 50 %": "50 %",
    "posterior to the end": "to the end",
}
CASE = "Adam (0.9, 0.95)"
LINES = {  # start → (label, colour, line)
    ", N(0, I)": ("N(0, I), as in the paper", "#c8553d", "--"),
    ", k-means": ("k-means after pretraining", "#1b6ca8", "-"),
}


def points(report: dict[str, Any], start: str) -> list[tuple[int, float, float]]:
    """(place on the axis, RMSE, its standard error) of a line."""
    found = []
    for place, arm in enumerate(UNTIL):
        for row in report["rows"]:
            if (row["case"], row["system"]) == (CASE, arm + start):
                rmse = row["figures"]["rmse"]
                found.append((place, rmse["mean"], rmse["error"] or 0.0))
    return found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("expected a report and the name of a picture")
    report = json.loads(Path(sys.argv[1]).read_text())
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for start, (label, colour, line) in LINES.items():
        places, errors, bars = zip(*points(report, start))
        axes.errorbar(places, errors, bars, color=colour, ls=line, marker="o", label=label)
    axes.set_xticks(range(len(UNTIL)), list(UNTIL.values()))
    axes.set_xlabel(
        "how far into the run the posterior draws samples; with k-means they begin at 10 %"
    )
    axes.set_ylabel("RMSE (0–255), lower is better")
    axes.set_title("Samples of the posterior do not lower the error", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="codes start from")
    seeds = len(report["rows"][0]["seeds"])
    note = f"CIFAR-10, four layers of 256 codes, validation, {seeds} seed{'s' * (seeds > 1)}"
    axes.annotate(note, (0, -0.3), xycoords="axes fraction", fontsize=8, color="#555")
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
