"""What a net for waveforms needs before it learns anything of quiet signals.

A bare autoencoder, 100 steps, one property of `WaveConvConfig` off at a time; SI-SDR and mel
distance on the validation split of DATA, a folder of speech.

python experiments/levers/quiet.py DATA [STEPS]
"""

import sys
from dataclasses import asdict, replace

import torch
from torch import nn

from hqvae.data import ShuffledBatches, open_data, sequential_batches
from hqvae.metrics import AudioQuality
from hqvae.model import HQVAE
from hqvae.nets import ConvConfig, WaveConvConfig
from hqvae.presets import preset

BATCH_SIZE = 8
WARMUP = 50
LR = 2e-3


class WithReLU(WaveConvConfig):
    def activation_layer(self) -> nn.Module:
        return nn.ReLU()


class WithNorm(WaveConvConfig):
    def norm_layer(self, width: int) -> nn.Module:
        return ConvConfig().norm_layer(width)


class WithoutZeros(WaveConvConfig):
    def init(self, net: nn.Module) -> nn.Module:
        return net


VARIANTS = {
    "as in the presets": WaveConvConfig(),
    "relu": WithReLU(),
    "norm": WithNorm(),
    "no start at zero": WithoutZeros(),
    "none of the three, as for images": ConvConfig(**{**asdict(WaveConvConfig()), "kind": "conv"}),
}


def main(source: str, steps: int) -> None:
    config = preset("rsqvae-audio")
    data_config = replace(config.data, source=source, seconds=0.512)
    splits = open_data(data_config, 1, ("train", "validation"), 1)[1]
    train, validation = splits["train"], splits["validation"]
    order = ShuffledBatches(len(train), BATCH_SIZE, 0)
    heldout = validation.signal(next(sequential_batches(validation, 16)))
    for name, net in VARIANTS.items():
        torch.manual_seed(0)
        model = HQVAE(replace(config.model, net=net))
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(steps):
            x = train.signal(train.training_batch(*order.at(step)))
            optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x, quantize=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        quality = AudioQuality(config.data.rate)
        with torch.no_grad():
            quality.add(heldout, model(heldout, quantize=False).reconstruction)
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
