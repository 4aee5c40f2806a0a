"""Time to quality: processor time until ours has the error of vector-quantize-pytorch's ResidualVQ.

    python experiments/posterior/time_to.py cifar10-cut/ [--seeds 3] [--preset rsqvae]
    python experiments/posterior/time_to.py --table experiments/posterior/time_to.json

The opponent trains 3,000 steps of 32 in the same network: as shipped, and with its best trial of
`opponents.json`. Ours trains runs of their own of several lengths, from 500 steps on. The shortest
one whose error is no higher counts. Times are of the processor, on one core, with all that a run
does: reading, starting, training, its one validation. The prior is uniform, so none is fitted.
Errors are of all validation pictures, by each system's own beam, and measuring them is not counted.
What is in the file already is not done again.
"""

import math
import time
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import opponents
from kept import Kept, parse, parser_of

from hqvae.compare.summary import Estimate, format_estimate
from hqvae.evaluate import EvalOptions, evaluate
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.train import train

OPPONENTS = (opponents.SHIPPED, "ResidualVQ")
STEPS = (500, 750, 1000, 1500, 2000, 3000)
TRAINING = ["train.batch_size=32", "train.lr=4e-3", "train.log_every=500", "model.prior=uniform"]


def ours(data: str, name: str, seed: int, steps: int) -> dict[str, Any]:
    words = [f"data.source={data}", f"train.seed={seed}", f"train.steps={steps}"]
    words += [f"train.warmup={steps // 15}", f"train.validate_every={steps}"]
    config = override(preset(name), [*words, *TRAINING])
    with TemporaryDirectory() as folder:
        began = time.process_time()
        assert train(config, f"{folder}/run", accelerator="cpu") is not None
        seconds = time.process_time() - began
        options = EvalOptions(split="validation")
        report = evaluate(f"{folder}/run", options=options, accelerator="cpu")
    return {"rmse": report.measures.figures["rmse"], "seconds": seconds}


def rows_of(seed: int, name: str, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    theirs = opponents.chosen(trials, 1)
    wanted = [row for row in theirs if row["system"] in OPPONENTS]
    runs = [{**row, "seed": seed} for row in wanted]
    return [*runs, *({"system": name, "seed": seed, "steps": steps} for steps in STEPS)]


def by_beam(row: dict[str, Any]) -> float:
    return row.get("rmse_beam", row["rmse"])


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "| opponent | seeds | its RMSE | its seconds | our steps, by seed | seconds, ours to its |"
    )
    print("|---|---|---|---|---|---|")
    seeds = sorted({row["seed"] for row in rows})
    for opponent in OPPONENTS:
        theirs = {row["seed"]: row for row in rows if row["system"] == opponent}
        steps, ratios = [], []
        for seed in seeds:
            own = [r for r in rows if r["seed"] == seed and r["system"] not in OPPONENTS]
            enough = [row for row in own if row["rmse"] <= by_beam(theirs[seed])]
            first = min(enough, key=lambda row: row["steps"], default=None)
            steps.append(str(first["steps"]) if first else "–")
            ratios.append(first["seconds"] / theirs[seed]["seconds"] if first else math.inf)
        cells = [
            format_estimate(Estimate.of([of(theirs[seed]) for seed in seeds]))
            for of in (by_beam, itemgetter("seconds"))
        ]
        ratio = format_estimate(Estimate.of(ratios), 2)
        print(f"| {opponent} | {len(seeds)} | {' | '.join(cells)} | {' '.join(steps)} | {ratio} |")


def main() -> None:
    parser = parser_of(__doc__, "time_to")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="rsqvae")
    parser.add_argument("--trials", type=Path, default=Path(__file__).with_name("opponents.json"))
    arguments = parse(parser, print_table, "data")
    kept = Kept(arguments.out)
    trials = Kept(arguments.trials).rows
    for seed in range(1, arguments.seeds + 1):
        for place in rows_of(seed, arguments.preset, trials):
            if kept.has(place):
                continue
            if "lr" in place:
                kept.add(opponents.run(arguments.data, "validation", place))
            else:
                found = ours(arguments.data, place["system"], seed, place["steps"])
                kept.add({**place, **found})
    print_table(kept.rows)


if __name__ == "__main__":
    main()
