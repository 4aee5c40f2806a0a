"""Semantic IDs of product catalogues: ours beside RQ-VAE, ResidualVQ and residual k-means.

    python experiments/items.py items/office.parquet items/industrial.parquet [--layers 4 3]
        [--seeds 5] [--dim 8] [--steps 3000] [--only RSQ-VAE …]
        [--out experiments/items/items.json]
    python experiments/items.py --table experiments/items/*.json

Tables have `id`, `embedding`, and `brand` and `published_index` where they have them. Codes are of
256 each; trained and measured on the same items, as IDs are. `--dim` and `--steps` are of all
systems but k-means. `pip install 'hqvae[compare]' scikit-learn` for the opponents. What is in the
file already is not done again.

    RSQ-VAE            the preset rsqvae-vector
    RQ-VAE, restart    the preset rqvae-vector: moving averages, restart, no posterior
    ResidualVQ         vector-quantize-pytorch with k-means start and its other defaults, in the
                       same network, with the same optimiser and steps
    residual k-means   scikit-learn's KMeans on what is left, layer by layer; no network
    published index    what another project published for these items, from other embeddings and
                       with its collisions resolved; once, for it has no seed
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor, nn

from hqvae.config import Config
from hqvae.data import ArrayDataset, open_data
from hqvae.metrics import measure_ids
from hqvae.nets import Decoder, Encoder, conv
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.tokenizer import Tokenizer
from hqvae.train import train

CODES = 256
KMEANS = "residual k-means"
PUBLISHED = "published index"


class Setting(NamedTuple):
    """What a system is given."""

    layers: int
    seed: int
    dim: int
    steps: int


PLACE = ("data", "system", *Setting._fields)  # what tells rows apart
Coded = tuple[Tensor, Tensor]  # codes [N, L] and reconstructions [N, D] in the data's unit


def config_of(name: str, data: Path, setting: Setting) -> Config:
    layers, seed, dim, steps = setting
    level = [f"model.levels.0.layers={layers}", f"model.levels.0.dim={dim}"]
    training = [f"train.seed={seed}", f"train.steps={steps}"]
    return override(preset(name), [f"data.source={data}", *level, *training])


def items_of(config: Config) -> tuple[Config, ArrayDataset, Tensor]:
    """(the config that knows the data, the data, all items as the networks see them)."""
    resolved, splits = open_data(config.data, 0, ("train",), 0)
    data = splits["train"]
    assert isinstance(data, ArrayDataset)
    numbers, raw = data.readable(np.arange(len(data)))
    if len(numbers) < len(data):
        raise SystemExit(f"{len(data) - len(numbers)} rows cannot be used; take them out first")
    changes = [f"model.channels={raw.shape[1]}"]
    return override(Config(config.model, resolved, config.phases, config.train), changes), data, raw


def ours(name: str) -> Callable[[Path, Setting], Coded]:
    def code(path: Path, setting: Setting) -> Coded:
        config = config_of(name, path, setting)
        _, data, raw = items_of(config)
        with TemporaryDirectory() as folder:
            run = train(config, f"{folder}/run", accelerator="cpu")
            assert run is not None
            model = run.load_model()
        codes = Tokenizer(model).encode_batch(data.signal(raw))
        restored = data.modality.restore(model.decode(codes), data.config)
        return torch.stack(codes, 1), torch.from_numpy(np.stack(restored))

    return code


class Network(nn.Module):
    """The preset's encoder and decoder around the library's quantizer."""

    def __init__(self, config: Config):
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        model, (level,) = config.model, config.model.levels
        self.encoder = Encoder(0, model.channels, [1], model.net)
        self.project_in = conv(0, model.net.width(0), level.dim, 1)
        self.quantizer = ResidualVQ(
            dim=level.dim, num_quantizers=level.layers, codebook_size=CODES, kmeans_init=True
        )
        self.decoder = Decoder(0, model.channels, level.dim, 1, model.net)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.project_in(self.encoder(x)[0])
        z, codes, commitment = self.quantizer(z[:, None])
        return self.decoder(z[:, 0]), codes[:, 0], commitment.sum()


def residual_vq(path: Path, setting: Setting) -> Coded:
    seed, steps = setting.seed, setting.steps
    config, data, raw = items_of(config_of("rsqvae-vector", path, setting))
    x = data.signal(raw)
    torch.manual_seed(seed)
    network = Network(config)
    betas = (config.train.beta1, config.train.beta2)
    optimizer = torch.optim.Adam(network.parameters(), config.train.lr, betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * steps + step)
        batch = x[torch.randint(len(x), (config.train.batch_size,), generator=generator)]
        x_hat, _, commitment = network(batch)
        loss = nn.functional.mse_loss(x_hat, batch) + commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x_hat, codes, _ = network.eval()(x)
    return codes, torch.from_numpy(np.stack(data.modality.restore(x_hat, data.config)))


def residual_kmeans(path: Path, setting: Setting) -> Coded:
    from sklearn.cluster import KMeans

    _, _, raw = items_of(override(preset("rsqvae-vector"), [f"data.source={path}"]))
    left = raw.numpy()
    codes = []
    for layer in range(setting.layers):
        found = KMeans(CODES, n_init=1, random_state=100 * setting.seed + layer).fit(left)
        codes.append(torch.from_numpy(found.labels_).long())
        left = left - found.cluster_centers_[found.labels_]
    return torch.stack(codes, 1), raw - torch.from_numpy(left)


SYSTEMS: dict[str, Callable[[Path, Setting], Coded]] = {
    "RSQ-VAE": ours("rsqvae-vector"),
    "RQ-VAE, restart": ours("rqvae-vector"),
    "ResidualVQ": residual_vq,
    KMEANS: residual_kmeans,
}


def published(path: Path) -> Tensor | None:
    """Codes [N, L] of the column `published_index`, `<a_60> <b_159>`; None where one lacks it."""
    table = parquet.read_table(path)
    if "published_index" not in table.column_names:
        return None
    words = [text.split() for text in table["published_index"].to_pylist() if text]
    if len(words) < len(table):
        return None
    return torch.tensor([[int(word[3:-1]) for word in of_item] for of_item in words])


def measured(path: Path, codes: Tensor, x_hat: Tensor | None) -> dict[str, Any]:
    """Plain values of codes and reconstructions, beside the table's own columns."""
    table = parquet.read_table(path)
    x = torch.tensor(np.stack(table["embedding"].to_numpy()), dtype=torch.float32)
    labels = table["brand"].to_pylist() if "brand" in table.column_names else None
    ids = measure_ids(codes, [CODES] * codes.shape[1], labels, x)
    variance = (x - x.mean(0)).square().sum()
    explained = None if x_hat is None else float(1 - (x - x_hat).square().sum() / variance)
    assert ids.without_duplicates is not None
    return {
        "explained": explained,
        "own_id": ids.collisions.alone,
        "own_id_duplicates_aside": ids.without_duplicates.alone,
        "perplexity": [layer.perplexity for layer in ids.layers],
        "used": [layer.used for layer in ids.layers],
        "purity": [prefix.purity and prefix.purity.all_items for prefix in ids.prefixes],
        "purity_chance": [
            prefix.purity and prefix.purity.all_items_chance for prefix in ids.prefixes
        ],
    }


def estimate(values: list[float | None], digits: int) -> str:
    """Mean ± standard error."""
    known = [value for value in values if value is not None]
    return _estimate(known, digits) if known else "–"


def _estimate(values: list[float], digits: int) -> str:
    error = f" ± {stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{error}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means and standard errors over seeds, as a table of Markdown."""
    heads = ["data", "layers", "dim, steps", "system", "seeds", "explained", "own ID %"]
    heads += ["duplicates aside %", "perplexity", "least of any seed", "purity of 1, 2 codes"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        place = (row["data"], -row["layers"], row["dim"], row["steps"], row["system"])
        groups.setdefault(place, []).append(row)
    for (data, layers, dim, steps, system), group in sorted(groups.items()):
        of_layers = list(zip(*[row["perplexity"] for row in group]))
        purities = zip(*[row["purity"][:2] for row in group])
        cells = [
            *(data, -layers, f"{dim}, {steps:,}" if dim else "–", system, len(group)),
            estimate([row["explained"] for row in group], 3),
            estimate([100 * row["own_id"] for row in group], 1),
            estimate([100 * row["own_id_duplicates_aside"] for row in group], 1),
            " ".join(f"{mean(of_layer):.0f}" for of_layer in of_layers),
            f"{min(map(min, of_layers)) / CODES:.2f} K",
            " ".join(estimate(list(of_prefix), 2).split(" ±")[0] for of_prefix in purities),
        ]
        print(f"| {' | '.join(map(str, cells))} |")


def rows_wanted(arguments: argparse.Namespace) -> list[tuple[Path, str, Setting]]:
    dim, steps = arguments.dim, arguments.steps
    return [
        (path, system, Setting(layers, seed, *((0, 0) if system == KMEANS else (dim, steps))))
        for layers in arguments.layers
        for seed in range(arguments.seeds)
        for path in arguments.data
        for system in arguments.only
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--only", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--table", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("experiments/items/items.json"))
    arguments = parser.parse_args()
    if arguments.table:
        print_table([row for path in arguments.table for row in json.loads(path.read_text())])
        return
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    done = {tuple(row[name] for name in PLACE) for row in rows}

    def keep(
        path: Path, place: tuple[Any, ...], codes: Tensor, x_hat: Tensor | None = None
    ) -> None:
        rows.append({**dict(zip(PLACE, place)), **measured(path, codes, x_hat)})
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(*place, rows[-1]["explained"], rows[-1]["own_id"], flush=True)

    for path, system, setting in rows_wanted(arguments):
        place = (path.stem, system, *setting)
        if place not in done:
            keep(path, place, *SYSTEMS[system](path, setting))
    for path in arguments.data:
        codes = published(path)
        if codes is not None:
            place = (path.stem, PUBLISHED, codes.shape[1], 0, 0, 0)
            if place not in done:
                keep(path, place, codes)
    print_table(rows)


if __name__ == "__main__":
    main()
