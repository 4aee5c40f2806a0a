"""What a net for waveforms needs before it learns anything of quiet signals.

A bare autoencoder, 100 steps, one lever off at a time; SI-SDR and mel distance on the validation
split of DATA, a folder of speech.

python experiments/levers/quiet.py DATA [STEPS]
"""

import sys
from dataclasses import replace

import numpy as np
import torch

from hqvae.config import preset
from hqvae.data import Order, open_data
from hqvae.likelihood import FittedGaussian
from hqvae.metrics import AudioQuality
from hqvae.model import HQVAE
from hqvae.topdown import State

BATCH, WARMUP, LR = 8, 50, 2e-3
VARIANTS = {
    "as in the presets": {},
    "relu": {"activation": "relu"},
    "norm": {"norm": True},
    "no start at zero": {"zero_start": False},
    "none of the three, as for images": {"activation": "relu", "norm": True, "zero_start": False},
}


def main(source: str, steps: int) -> None:
    config = preset("rsqvae-audio")
    splits = open_data(
        replace(config.data, source=source, seconds=0.512), 1, ("train", "validation"), 1
    )[1]
    items, held = splits["train"], splits["validation"]
    order, seen = (
        Order(len(items), BATCH, 0),
        held.signal(held[np.arange(min(16, len(held))), None]),
    )
    for name, change in VARIANTS.items():
        torch.manual_seed(0)
        model = HQVAE(replace(config.model, net=replace(config.model.net, **change)))
        optimizer, cost, views = (
            torch.optim.Adam(model.parameters()),
            FittedGaussian(),
            config.model.spectral,
        )

        def through(x: torch.Tensor, model: HQVAE = model) -> torch.Tensor:
            return model.decoder(
                model.settle(State(latent=model.layers[0].query(State(), model.features(x))))
            )

        for step in range(steps):
            x = items.signal(items[order.at(step)])
            optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP)
            with torch.autocast("cpu", torch.bfloat16):
                x_hat = through(x)
            size = x[0].numel()
            loss = cost((x - x_hat.float()).square().flatten(1).sum(1), size)
            for weight, there, here in zip(views.weights, views.views(x), views.views(x_hat)):
                loss = loss + weight * cost((there - here).square().flatten(1).mean(1) * size, size)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        quality = AudioQuality(16_000)
        with torch.no_grad():
            quality.add(seen, through(seen))
        figures = quality.values()
        print(
            f"{name:40s} SI-SDR {figures['si_sdr']:7.2f} dB   "
            f"mel distance {figures['mel_distance']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 100)
