"""What users would pick today, in the same network: quantizers of vector-quantize-pytorch.

    python experiments/posterior/opponents.py cifar10-cut/ --trials
    python experiments/posterior/opponents.py cifar10-cut/ [--seeds 5] [--split validation]
        [--only DiVeQ]
    python experiments/posterior/opponents.py --table experiments/posterior/opponents.json

The library's modules stand between the preset's encoder and decoder, as its users put them there:
mean squared error plus the module's loss, Adam, our warm-up, cosine, batches and precision. Four
layers of 256 codes. `--trials` gives each system three learning rates by two values of a knob, as
`trials.yaml` gives our arms: 1,500 steps, seed 0, validation. Without it every system gets its best
trial, 3,000 steps and seeds 1 …; the row "as shipped" has the library's defaults, and Adam's with
10⁻³. Trials are measured on 1,000 pictures, and all else on all. What can search is then measured
again with the library's own beam of 8. The kept trials of ResidualVQ have that beam: they are of
commit a10da4a. What is in the file already is not done again.

    ResidualVQ     k-means start, rotation trick, restart of dead codes; knob: commitment
    DiVeQ          the same library's ResidualVQ with diveq=True; knob: restart of dead codes
    SimVQ          ResidualSimVQ without the rotation trick; knob: commitment
    ResidualFSQ    levels 8, 8, 4; knob: hard or no bound
    BSQ            ResidualLFQ with spherical=True; knob: weight of its entropy loss
"""

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import vector_quantize_pytorch as library
from kept import Kept, parse, parser_of
from torch import Tensor, nn

from hqvae.compare.summary import Estimate, format_estimate
from hqvae.config import Config
from hqvae.data import Dataset, ShuffledBatches, open_data, sequential_batches, training_batches
from hqvae.metrics import Mean, Usage
from hqvae.nets import Decoder, Encoder, conv
from hqvae.overrides import override
from hqvae.presets import preset

CODES = 256
LAYERS = 4
BATCH = 32
WARMUP = 1 / 15  # of the steps
RATES = (4e-3, 2e-3, 8e-3)
FEW = 1000  # pictures that a trial is measured on: the library's beam is slow
SHIPPED = "ResidualVQ, as shipped"
SEARCHING = ("ResidualVQ", "DiVeQ")
BEAM = 8


def residual_vq(dim: int, knob: float | None) -> nn.Module:
    """`knob` is the commitment; with None everything is the library's default."""
    sizes = {"dim": dim, "num_quantizers": LAYERS, "codebook_size": CODES, "kmeans_init": True}
    if knob is None:
        return library.ResidualVQ(**sizes)
    return library.ResidualVQ(**sizes, commitment_weight=knob, threshold_ema_dead_code=2)


def diveq(dim: int, knob: float | None) -> nn.Module:
    assert knob is not None
    sizes = {"dim": dim, "num_quantizers": LAYERS, "codebook_size": CODES, "kmeans_init": True}
    return library.ResidualVQ(**sizes, diveq=True, threshold_ema_dead_code=int(knob))


def simvq(dim: int, knob: float | None) -> nn.Module:
    sizes = {"dim": dim, "num_quantizers": LAYERS, "codebook_size": CODES}
    return library.ResidualSimVQ(**sizes, rotation_trick=False, commitment_weight=knob)


def residual_fsq(dim: int, knob: float | None) -> nn.Module:
    bound = {"bound_hard_clamp": bool(knob)}
    return library.ResidualFSQ(levels=[8, 8, 4], num_quantizers=LAYERS, dim=dim, **bound)


def bsq(dim: int, knob: float | None) -> nn.Module:
    sizes = {"dim": dim, "num_quantizers": LAYERS, "codebook_size": CODES}
    return library.ResidualLFQ(**sizes, spherical=True, entropy_loss_weight=knob)


SYSTEMS: dict[str, tuple[Callable[[int, float | None], nn.Module], tuple[float, ...]]] = {
    "ResidualVQ": (residual_vq, (0.025, 1.0)),
    "DiVeQ": (diveq, (2.0, 0.0)),
    "SimVQ": (simvq, (0.25, 1.0)),
    "ResidualFSQ": (residual_fsq, (1.0, 0.0)),
    "BSQ": (bsq, (0.02, 0.1)),
}


class Network(nn.Module):
    """The preset's encoder and decoder around a module of the library."""

    def __init__(self, config: Config, quantizer: nn.Module):
        super().__init__()
        (level,), net = config.model.levels, config.model.net
        self.encoder = net.init(Encoder(2, 3, [level.stride], net))
        self.project_in = conv(2, net.width(2), level.dim, 1)
        self.quantizer = quantizer
        self.decoder = net.init(Decoder(2, 3, level.dim, level.stride, net))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x̂, codes [B, T, L], the module's losses)"""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            z_e = self.project_in(self.encoder(x)[0])
        rows = z_e.float().flatten(2).mT
        z, codes, *losses = self.quantizer(rows)
        z = z.mT.reshape(z_e.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            x_hat = self.decoder(z)
        return x_hat.float(), codes, sum((loss.sum() for loss in losses), torch.zeros(()))


def trained(data: Dataset, config: Config, network: Network, lr: float, beta2: float) -> Network:
    steps, seed = config.train.steps, config.train.seed
    assert steps is not None
    optimizer = torch.optim.Adam(network.parameters(), lr, (0.9, beta2))
    order = ShuffledBatches(len(data), BATCH, seed)
    batches = training_batches(data, order, 0, steps, [slice(0, BATCH)])
    for step, raw in enumerate(batches):
        warm = min(1.0, (step + 1) / (WARMUP * steps + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * warm * cosine
        x = data.signal(raw)
        x_hat, _, loss = network(x)
        loss = nn.functional.mse_loss(x_hat, x) + loss
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {float(loss.detach())} at step {step + 1}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def measured(data: Dataset, network: Network, items: int) -> dict[str, Any]:
    network.eval()
    error, usages = Mean(), [Usage(CODES) for _ in range(LAYERS)]
    for raw in islice(sequential_batches(data, 50), math.ceil(items / 50)):
        x = data.signal(raw)
        x_hat, codes, _ = network(x)
        error.add(data.unit.mse(x, x_hat))
        for usage, of_layer in zip(usages, codes.unbind(-1)):
            usage.add(of_layer.long())
    return {
        "rmse": data.unit.scale * math.sqrt(error.value()),
        "perplexity": [usage.perplexity() for usage in usages],
    }


def run(source: str, split: str, place: dict[str, Any]) -> dict[str, Any]:
    """One training, measured; `place` says of what."""
    words = [
        f"data.source={source}",
        f"train.seed={place['seed']}",
        f"train.steps={place['steps']}",
    ]
    config = override(preset("rsqvae"), [*words, "model.levels.0.shared_codebook=false"])
    _, splits = open_data(config.data, 3, ("train", split), 2)
    torch.manual_seed(place["seed"])
    make = residual_vq if place["system"] == SHIPPED else SYSTEMS[place["system"]][0]
    network = Network(config, make(config.model.levels[0].dim, place["knob"]))
    beta2 = 0.999 if place["system"] == SHIPPED else 0.95
    began = time.process_time()
    try:
        trained(splits["train"], config, network.train(), place["lr"], beta2)
        seconds = time.process_time() - began
        items = FEW if place["seed"] == 0 else len(splits[split])
        found = measured(splits[split], network, items)
        if items > FEW and place["system"] in SEARCHING:
            network.quantizer.eval_beam_size = BEAM
            found["rmse_beam"] = measured(splits[split], network, items)["rmse"]
    except FloatingPointError as error:
        return {**place, "split": split, "rmse": math.inf, "why": str(error)}
    return {**place, "split": split, **found, "seconds": seconds}


def trials() -> list[dict[str, Any]]:
    return [
        {"system": name, "seed": 0, "steps": 1500, "lr": lr, "knob": knob}
        for name, (_, knobs) in SYSTEMS.items()
        for lr in RATES
        for knob in knobs
    ]


def chosen(rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """The best trial of every system for other seeds, twice as long."""
    places = []
    for name in SYSTEMS:
        own = [row for row in rows if row["system"] == name and row["seed"] == 0]
        if not own:
            raise SystemExit(f"{name} has had no trials; run with --trials first")
        best = min(own, key=lambda row: row["rmse"])
        places.append({"system": name, "lr": best["lr"], "knob": best["knob"]})
    places.append({"system": SHIPPED, "lr": 1e-3, "knob": None})
    return [
        {**place, "seed": seed, "steps": 3000} for seed in range(1, seeds + 1) for place in places
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = "system | learning rate | knob | steps | split | seeds | RMSE | by its beam"
    print(f"| {columns} | perplexity of each layer |")
    print("|---|---|---|---|---|---|---|---|---|")
    keys = ("system", "lr", "knob", "steps", "split")
    places = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    for place in sorted(places, key=str):
        own = [row for row in rows if tuple(row[key] for key in keys) == place]
        errors = format_estimate(Estimate.of([row["rmse"] for row in own]))
        by_beam = [row["rmse_beam"] for row in own if "rmse_beam" in row]
        searched = format_estimate(Estimate.of(by_beam)) if by_beam else "–"
        use = " ".join(f"{count:.0f}" for count in own[0].get("perplexity", []))
        cells = ["–" if value is None else value for value in place]
        print(f"| {' | '.join(map(str, cells))} | {len(own)} | {errors} | {searched} | {use} |")


def main() -> None:
    parser = parser_of(__doc__, "opponents")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--trials", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", default="validation")
    systems = [*SYSTEMS, SHIPPED]
    parser.add_argument("--only", nargs="+", default=systems, choices=systems)
    arguments = parse(parser, print_table, "data")
    kept = Kept(arguments.out)
    places = trials() if arguments.trials else chosen(kept.rows, arguments.seeds)
    for place in places:
        wanted = place["system"] in arguments.only
        if wanted and not kept.has({**place, "split": arguments.split}):
            kept.add(run(arguments.data, arguments.split, place))
            print(kept.rows[-1], flush=True)
    print_table(kept.rows)


if __name__ == "__main__":
    main()
