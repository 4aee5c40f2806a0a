"""What a user feels without tuning: random settings, every system by its usual recipe.

    python experiments/posterior/untuned.py [--pictures cifar10-cut/] [--sounds spoken_digits/]
        [--vectors items/office.parquet] [--settings 30] [--out experiments/posterior/untuned.json]
    python experiments/posterior/untuned.py --table experiments/posterior/untuned.json

A setting is drawn once for all systems: data, learning rate 10^−3.5 … 10^−2, batch 16 … 256, K 64 …
4096, one to eight layers. Runs take 16,000 signals, and 200 to 1,000 steps. A run fails where it
stops before its end, such as for values that are not finite; its error counts as infinite. A layer
is dead where its perplexity is below a tenth of what it could be, or where shuffling its codes
costs less than 0.05 dB. Errors are relative to the least of that setting. What is in the file
already is not done again. Settings of data that is not given are left out, and named.

    ours               the stochastic preset of that data
    paper              as the papers have it: N(0, I), s² = 21, samples to the end, no beam
    RQ-VAE, authors'   shared codebook, restart, mean squared error, Adam (0.5, 0.9)
    RQ-VAE, tuned      own codebooks, restart, β = 0.025, Adam's β₂ = 0.95, the beam of ours
    RQ-VAE, our start  the same after pretraining, from k-means: ours without the posterior
    rotation           VectorQuantize of vector-quantize-pytorch with its rotation trick, a stack;
                       its Adam, and that of FSQ, is the one of our presets
    FSQ                FSQ of the same library, a stack
"""

import logging
import math
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from kept import Kept, parse, parser_of

from hqvae.errors import InputError
from hqvae.evaluate import EvalOptions, evaluate
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.train import train

SIGNALS = 16_000
FAULTS = ("carries nothing", "collapsed")
PRESETS = {"pictures": "", "sounds": "-mel", "vectors": "-vector"}  # what their names end in
PAPER = [
    "model.prior=uniform",
    *("model.quantizer.init.kind=random", "model.quantizer.init.s2=21", "model.beam_size=1"),
    *("model.quantizer.variance=one_plus_exp", "phases.nearest_fraction=0"),
    *("phases.pretrain_fraction=0", "phases.init_scale=false", "phases.sigma2_decay=0"),
    *("phases.temperature.decay=1e-5", "train.beta2=0.999"),
]
# Deterministic presets of pictures have our start and our beam, those of other data have not.
BARE = ["model.prior=uniform", "phases.pretrain_fraction=0", "model.beam_size=1"]
RANDOM = [*BARE, "model.quantizer.init.kind=random"]
AUTHORS = [*RANDOM, "model.likelihood=mse", "model.levels.0.shared_codebook=true"]
AUTHORS += ["model.quantizer.beta=0.25", "train.beta1=0.5", "train.beta2=0.9"]
AUTHORS += ["phases.init_scale=false", "phases.sigma2_decay=0"]
TUNED = [*RANDOM, "model.levels.0.shared_codebook=false", "model.quantizer.beta=0.025"]
TUNED += ["train.beta2=0.95", "model.beam_size=8"]
START = ["phases.pretrain_fraction=0.1", "model.quantizer.init.kind=kmeans"]
EXTERNAL = [*BARE, "model.levels.0.shared_codebook=false", "model.quantizer.kind=external"]
SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "ours": ("rsqvae", ["model.prior=uniform"]),  # which trains the same, and fits nothing after it
    "paper": ("rsqvae", PAPER),
    "RQ-VAE, authors'": ("rqvae", AUTHORS),
    "RQ-VAE, tuned": ("rqvae", TUNED),
    "RQ-VAE, our start": ("rqvae", [*TUNED, *START]),
    "rotation": ("rqvae", [*EXTERNAL, "model.quantizer.name=rotation"]),
    "FSQ": ("rqvae", [*EXTERNAL, "model.quantizer.name=fsq"]),
}


def drawn(number: int) -> dict[str, Any]:
    """The setting of a number, the same in every run of this script."""
    generator = np.random.default_rng((26, number))
    return {
        "data": list(PRESETS)[int(generator.integers(len(PRESETS)))],
        "lr": round(10 ** float(generator.uniform(-3.5, -2)), 6),
        "batch": 2 ** int(generator.integers(4, 9)),
        "codes": 2 ** int(generator.integers(6, 13)),
        "layers": int(generator.integers(1, 9)),
    }


def words_of(setting: dict[str, Any], source: Path, seed: int) -> list[str]:
    steps = min(1000, max(200, SIGNALS // setting["batch"]))
    return [
        f"data.source={source}",
        f"train.seed={seed}",
        f"train.steps={steps}",
        f"train.lr={setting['lr']}",
        f"train.batch_size={setting['batch']}",
        f"train.validate_every={steps}",
        f"train.log_every={steps}",
        f"model.levels.0.codebook_size={setting['codes']}",
        f"model.levels.0.layers={setting['layers']}",
    ]


def measured(system: str, setting: dict[str, Any], source: Path, seed: int) -> dict[str, Any]:
    """Error and faults of a run; an error of None where it has failed."""
    base, settings = SYSTEMS[system]
    config = override(preset(base + PRESETS[setting["data"]]), words_of(setting, source, seed))
    config = override(config, settings)
    with TemporaryDirectory() as folder:
        try:
            assert train(config, f"{folder}/run", accelerator="cpu") is not None
            options = EvalOptions(split="validation", limit=1000, shuffle_items=256)
            report = evaluate(f"{folder}/run", options=options, accelerator="cpu")
        except InputError as error:
            return {"error": None, "why": str(error).splitlines()[0], "faults": []}
    layers = report.measures.layers
    faults = [(finding.layer, finding.kind) for finding in report.findings]
    return {
        "error": report.measures.figures["rmse"],
        "faults": sorted({layer for layer, kind in faults if kind in FAULTS}),
        "perplexity": [layer.perplexity / layer.codebook_size for layer in layers],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Faults, and quantiles of errors relative to the least of their setting."""
    best: dict[int, float] = {}
    for row in rows:
        error = row["error"] if row["error"] is not None else math.inf
        best[row["setting"]] = min(error, best.get(row["setting"], math.inf))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    print("| system | settings | failed | with a dead layer | error/least: median | 90 % | worst |")
    print("|---|---|---|---|---|---|---|")
    for system in systems:
        own = [row for row in rows if row["system"] == system]
        ended = [row for row in own if row["error"] is not None]
        dead = sum(bool(row["faults"]) for row in ended)
        ratios = sorted([row["error"] / best[row["setting"]] for row in ended])
        ratios += [math.inf] * (len(own) - len(ended))
        cells = [len(own), len(own) - len(ended), dead, f"{median(ratios):.2f}"]
        cells += [f"{ratios[round(0.9 * (len(ratios) - 1))]:.2f}", f"{ratios[-1]:.2f}"]
        print(f"| {system} | {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = parser_of(__doc__, "untuned")
    for name in PRESETS:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--settings", type=int, default=30)
    parser.add_argument("--only", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    arguments = parse(parser, print_table)
    sources = {name: getattr(arguments, name) for name in PRESETS if getattr(arguments, name)}
    if not sources:
        parser.error(f"give at least one of --{', --'.join(PRESETS)}")
    logging.getLogger("hqvae").setLevel(logging.ERROR)
    kept = Kept(arguments.out)
    for number in range(arguments.settings):
        setting = drawn(number)
        if setting["data"] not in sources:
            print(
                f"setting {number} is of {setting['data']}, which are not given: left out",
                flush=True,
            )
            continue
        for system in arguments.only:
            if kept.has({"setting": number, "system": system}):
                continue
            found = measured(system, setting, sources[setting["data"]], number)
            kept.add({"setting": number, **setting, "system": system, **found})
            print(number, system, found["error"], found["faults"], flush=True)
    print_table(kept.rows)


if __name__ == "__main__":
    main()
