"""What a learned prior saves: error against the codes' entropy, with and without it.

    python experiments/posterior/rates.py cifar10-cut/ [--seeds 5] [--split validation]
        [--out experiments/posterior/rates.json]
    python experiments/posterior/rates.py --table experiments/posterior/rates.json

    RSQ-VAE, uniform    the preset rsqvae, four layers of 256 codes; a prior is fitted to its codes,
                        and nothing pays for them
    RSQ-VAE, paid       the same, and codes pay for their bits (model.rate_weight=1, the bound)
    RSQ-VAE, paid × 8   the same with model.rate_weight=8
    RQ-VAE, tuned       own codebooks, restart, β = 0.025, Adam's β₂ = 0.95, the same beam; a prior
                        is fitted to its codes

Every model is measured with its first 1 to 4 layers, and with all of them at several weights of its
prior. Bits are the entropy of each layer's histogram, summed. The table has, at the error that
RSQ-VAE, uniform, has with a share of its rate by leaving out layers, the bits that others save. A
second one has RSQ-VAE, uniform, at every weight, by histogram and as its own prior codes; a third
has its first layers.
What is in the file already is not done again.
"""

import math
from collections.abc import Iterator
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from kept import Kept, parse, parser_of

from hqvae.compare.summary import Estimate
from hqvae.evaluate import EvalOptions, evaluate
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.train import train

UNIFORM = "RSQ-VAE, uniform"
TRAINING = ["train.steps=3000", "train.batch_size=32", "train.lr=4e-3", "train.warmup=200"]
TRAINING += ["train.log_every=500", "train.validate_every=3000", "model.beam_size=8"]
SAMPLES = ["phases.nearest_fraction=0.75"]  # until 25 % of the run, as the preset was
RANDOM = ["phases.pretrain_fraction=0", "model.quantizer.init.kind=random"]
SYSTEMS = {
    UNIFORM: ("rsqvae", SAMPLES),
    "RSQ-VAE, paid": ("rsqvae", [*SAMPLES, "model.rate_weight=1"]),
    "RSQ-VAE, paid × 8": ("rsqvae", [*SAMPLES, "model.rate_weight=8"]),
    "RQ-VAE, tuned": ("rqvae", RANDOM),
}
WEIGHTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
SHARES = (0.95, 2 / 3, 1 / 2)  # of the uniform system's bits

PER_WEIGHT = ("weights", "bits_per_point")

Curve = list[tuple[float, float]]  # (RMSE, bits a position), the error rising


def measured(data: str, system: str, seed: int, split: str) -> dict[str, Any]:
    name, settings = SYSTEMS[system]
    places = [f"data.source={data}", f"train.seed={seed}"]
    config = override(preset(name), [*places, *TRAINING, *settings])
    with TemporaryDirectory() as folder:
        assert train(config, f"{folder}/run", accelerator="cpu") is not None
        options = EvalOptions(split=split, rate_weights=WEIGHTS)
        report = evaluate(f"{folder}/run", options=options, accelerator="cpu")
    bits = np.cumsum([math.log2(layer.perplexity) for layer in report.measures.layers])
    errors = [layer.rmse_cumulative for layer in report.measures.layers]
    return {
        "system": system,
        "seed": seed,
        "split": split,
        "layers": [[error, float(of_all)] for error, of_all in zip(errors, bits)],
        "weights": [[point.rate_weight, point.rmse, *point.entropy_bits] for point in report.rates],
        "bits_per_point": [
            [point.bits_per_point, point.prior_bits_per_point] for point in report.rates
        ],
        "perplexity": [layer.perplexity for layer in report.measures.layers],
    }


def curves(row: dict[str, Any]) -> Iterator[tuple[str, Curve]]:
    """(how bits are saved, error and bits) of a row."""
    yield "layers left out", sorted((error, bits) for error, bits in row["layers"])
    yield "by weight", sorted((error, sum(bits)) for _, error, *bits in row["weights"])


def bits_at(curve: Curve, error: float) -> float:
    """Bits at an error, between the points that there are; NaN beyond them."""
    errors, bits = zip(*curve)
    return float(np.interp(error, errors, bits, left=math.nan, right=math.nan))


def error_at(curve: Curve, bits: float) -> float:
    errors, all_bits = zip(*curve)
    assert all(np.diff(all_bits) < 0), "an error that does not fall with the bits has no inverse"
    return float(np.interp(bits, all_bits[::-1], errors[::-1]))


def savings(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[float, list[float]]]:
    """{(system, how): {share of the rate: savings of every seed}}, where both have the seed."""
    reference = {row["seed"]: dict(curves(row)) for row in rows if row["system"] == UNIFORM}
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        if row["seed"] not in reference:
            continue
        base = reference[row["seed"]]["layers left out"]
        for how, curve in curves(row):
            place = found.setdefault((row["system"], how), {share: [] for share in SHARES})
            for share in SHARES:
                bits = share * base[0][1]
                place[share].append(1 - bits_at(curve, error_at(base, bits)) / bits)
    return found


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of Student's t, in %."""
    if any(map(math.isnan, values)):
        return "not reached"
    estimate = Estimate.of([100 * value for value in values])
    half = "" if estimate.interval is None else f" ± {estimate.interval:.1f}"
    return f"{round(estimate.mean, 1) + 0.0:.1f}{half}"  # no −0.0


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "| system | bits saved by | seeds | RMSE | at 95 % of the rate | at two thirds | at half |"
    )
    print("|---|---|---|---|---|---|---|")
    for (system, how), of_shares in savings(rows).items():
        cells = [interval(of_shares[share]) for share in SHARES]
        least = [min(row["layers"])[0] for row in rows if row["system"] == system]
        cells = [str(len(least)), f"{mean(least):.2f}", *cells]
        print(f"| {system} | {how} | {' | '.join(cells)} |")


def print_weights(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds of RSQ-VAE, uniform, at every weight."""
    own = [row for row in rows if row["system"] == UNIFORM]
    print("\n| rate weight | RMSE | bits/pixel, entropy | by the prior |\n|---|---|---|---|")
    for weights, coded in zip(*(zip(*(row[key] for row in own)) for key in PER_WEIGHT)):
        entropy, by_prior = (mean(bits) for bits in zip(*coded))
        error = mean(rmse for _, rmse, *_ in weights)
        print(f"| {weights[0][0]:g} | {error:.2f} | {entropy:.3f} | {by_prior:.3f} |")
    density = own[0]["bits_per_point"][0][0] / own[0]["layers"][-1][1]  # positions to a pixel
    print("\n| layers | RMSE | bits/pixel, entropy |\n|---|---|---|")
    for count, of_seeds in enumerate(zip(*(row["layers"] for row in own)), 1):
        error, bits = (mean(values) for values in zip(*of_seeds))
        print(f"| {count} | {error:.2f} | {density * bits:.3f} |")


def print_tables(rows: list[dict[str, Any]]) -> None:
    print_table(rows)
    print_weights(rows)


def main() -> None:
    parser = parser_of(__doc__, "rates")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--only", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    arguments = parse(parser, print_tables, "data")
    kept = Kept(arguments.out)
    for seed in range(1, arguments.seeds + 1):  # seed 0 is what trials were chosen by
        for system in arguments.only:
            if not kept.has({"system": system, "seed": seed, "split": arguments.split}):
                kept.add(measured(arguments.data, system, seed, arguments.split))
    print_table(kept.rows)


if __name__ == "__main__":
    main()
