"""The drop-in beside vector-quantize-pytorch's, in a small autoencoder of one's own.

    python benchmarks/drop_in.py [--seeds 3] [--steps 300] [--out benchmarks/drop_in.json]

The loss is a mean squared error plus what the quantizer gives; in nats it is D/2 log of that error.
Crops of 32 × 32 of photographs in scikit-image, 32 a step, Adam at 1e-3, D = 32, K = 256. Printed
per quantizer, a figure for each seed: mean squared error (of values in −1 … 1) and perplexity, on
other crops of the same photographs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import skimage.data
import torch
import vector_quantize_pytorch as theirs
from torch import Tensor, nn

from hqvae.quantize import GumbelSoftmaxConfig, KMeansInit, NearestCodeConfig, VectorQuantize

WIDTH = 32
CODES = 256
BATCH = 32
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
COMMON = {"dim": WIDTH, "codebook_size": CODES, "accept_image_fmap": True}
WITHOUT_RESTART = NearestCodeConfig(beta=1.0, decay=0.99, init=KMeansInit())

QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "theirs": lambda: theirs.VectorQuantize(**COMMON),
    "theirs, kmeans_init=True": lambda: theirs.VectorQuantize(**COMMON, kmeans_init=True),
    "ours": lambda: VectorQuantize(**COMMON),
    "ours, restart=False, decay=0.99": lambda: VectorQuantize(**COMMON, config=WITHOUT_RESTART),
    "ours, GumbelSoftmaxConfig()": lambda: VectorQuantize(**COMMON, config=GumbelSoftmaxConfig()),
    "the same, in nats": lambda: VectorQuantize(
        **COMMON, config=GumbelSoftmaxConfig(), loss="nats"
    ),
}


class Autoencoder(nn.Module):
    """Two convolutions down, one on top; the same up."""

    def __init__(self, quantize: nn.Module):
        super().__init__()
        down = [nn.Conv2d(3, WIDTH, 4, 2, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 4, 2, 1)]
        self.encoder = nn.Sequential(*down, nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1))
        self.quantize = quantize
        up = [
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1),
        ]
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantize(self.encoder(x))
        return self.decoder(quantized), indices, loss.sum()


def crops(count: int, seed: int) -> Tensor:
    """[count, 3, 32, 32] in −1 … 1."""
    generator = torch.Generator().manual_seed(seed)
    photographs = [torch.from_numpy(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    found = []
    for _ in range(count):
        image = photographs[int(torch.randint(len(photographs), (), generator=generator))]
        top, left = (int(torch.randint(s - 32, (), generator=generator)) for s in image.shape[:2])
        found.append(image[top : top + 32, left : left + 32])
    return torch.stack(found).movedim(-1, 1) / 127.5 - 1


def measured(name: str, seed: int, steps: int, images: Tensor, others: Tensor) -> list[float]:
    """Mean squared error and perplexity on other crops, after training."""
    torch.manual_seed(seed)
    model = Autoencoder(QUANTIZERS[name]())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = images[torch.randint(len(images), (BATCH,), generator=generator)]
        x_hat, _, loss = model(x)
        error = nn.functional.mse_loss(x_hat, x)
        nats = x[0].numel() / 2 * error.log()
        optimizer.zero_grad()
        ((nats if "nats" in name else error) + loss).backward()
        optimizer.step()
    with torch.no_grad():
        x_hat, indices, _ = model.eval()(others)
    share = torch.bincount(indices.flatten()) / indices.numel()
    perplexity = torch.special.entr(share).sum().exp()
    return [float((x_hat - others).square().mean()), float(perplexity)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/drop_in.json"))
    arguments = parser.parse_args()
    images = crops(1024, seed=1)
    others = crops(128, seed=2)
    figures = {}
    for name in QUANTIZERS:
        runs = [
            measured(name, seed, arguments.steps, images, others) for seed in range(arguments.seeds)
        ]
        figures[name] = {"error": [run[0] for run in runs], "perplexity": [run[1] for run in runs]}
        errors = ", ".join(f"{error:.4f}" for error, _ in runs)
        print(f"{name:34s} {errors}    {', '.join(f'{used:.0f}' for _, used in runs)}", flush=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
