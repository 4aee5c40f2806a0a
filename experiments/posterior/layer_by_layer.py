"""The search for sums of codes, on and off: the same trained runs, with a beam and without one.

    python experiments/posterior/layer_by_layer.py runs/arms [--split validation]
    python experiments/posterior/layer_by_layer.py --table experiments/posterior/layer_by_layer.json

Takes the folder of a comparison whose runs are still there (`hqvae compare --out`). Nothing is
trained. What is in the file already is not done again.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from kept import Kept, parse, parser_of

from hqvae.compare.summary import Estimate, format_difference, format_estimate
from hqvae.data import open_data, sequential_batches
from hqvae.metrics import Mean
from hqvae.model import HQVAE
from hqvae.run import Run


@torch.no_grad()
def error(run: Path, split: str, beam_size: int) -> float:
    """RMSE of a run's reconstructions, in the unit of its data."""
    config = Run.open(str(run)).config
    model = HQVAE.from_pretrained(str(run)).eval()
    for level in model.levels:
        level.quantizer.beam_size = beam_size
    _, splits = open_data(config.data, config.model.channels, (split,), config.model.axes)
    data, mean = splits[split], Mean()
    for raw in sequential_batches(data, 250):
        x = data.signal(raw)
        mean.add(data.unit.mse(x, model.decode(model.encode(x))))
    return data.unit.scale * math.sqrt(mean.value())


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = "system | split | seeds | with the beam | difference to the first, 95 %"
    print(f"| {columns} | layer by layer | difference to the beam, 95 % |")
    print("|---|---|---|---|---|---|---|")
    reference = rows[0]["system"]
    first = {(r["split"], r["seed"]): r["beam"] for r in rows if r["system"] == reference}
    for system, split in dict.fromkeys((row["system"], row["split"]) for row in rows):
        own = [row for row in rows if (row["system"], row["split"]) == (system, split)]
        beam = Estimate.of([row["beam"] for row in own])
        alone = Estimate.of([row["layer_by_layer"] for row in own])
        more = Estimate.of([row["layer_by_layer"] - row["beam"] for row in own])
        to_first = [row["beam"] - first[split, row["seed"]] for row in own]
        behind = "" if system == reference else format_difference(Estimate.of(to_first))
        cells = [len(own), format_estimate(beam), behind]
        cells += [format_estimate(alone), format_difference(more)]
        print(f"| {system} | {split} | {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = parser_of(__doc__, "layer_by_layer")
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--split", default="validation")
    arguments = parse(parser, print_table, "runs")
    kept = Kept(arguments.out)
    for result in sorted((arguments.runs / "results").glob("*.validation.json")):
        run = arguments.runs / "runs" / result.name.removesuffix(".validation.json")
        known = json.loads(result.read_text())
        place = {"system": known["system"], "seed": known["seed"], "split": arguments.split}
        if not kept.has(place):
            beam_size = Run.open(str(run)).config.model.beam_size
            errors = [error(run, arguments.split, size) for size in (beam_size, 1)]
            kept.add({**place, "beam": errors[0], "layer_by_layer": errors[1]})
    print_table(kept.rows)


if __name__ == "__main__":
    main()
