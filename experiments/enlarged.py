"""PSNR of a run's test split as a published table has it: of 8-bit images enlarged to 256×256.

So the code published with the VQ-WAE paper evaluates (evaluations/evaluation.py there; it names
Pillow 8.2, whose default is bicubic). Enlarging smooths: the same images have a higher PSNR than at
their own size, which is printed beside it.

python experiments/enlarged.py RUN experiments/calibration/sqvae.enlarged.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hqvae.data import open_data, sequential_batches
from hqvae.metrics import psnr
from hqvae.run import Run

_SIDE = 256


def psnr_of(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR of 8-bit images, dB."""
    return float(psnr(torch.tensor([np.mean((one / 127.5 - other / 127.5) ** 2)])))


def enlarged(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


@torch.no_grad()
def main(path: Path, out: Path) -> None:
    run = Run.open(path)
    model = run.load_model()
    data = open_data(run.config.data, run.config.model.channels, ("test",))[1]["test"]
    psnrs = []
    for batch in sequential_batches(data, 100):
        x = data.signal(batch)
        images = [
            ((y.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
            for y in (x, model(x).reconstruction)
        ]
        psnrs += [
            (psnr_of(one, other), psnr_of(enlarged(one), enlarged(other)))
            for one, other in zip(*images)
        ]
    own, large = np.mean(psnrs, axis=0)
    figures = {"items": len(psnrs), "psnr": float(own), f"psnr_at_{_SIDE}": float(large)}
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"{len(psnrs)} images: PSNR {own:.2f} dB at their own size, "
        f"{large:.2f} dB enlarged to {_SIDE}×{_SIDE}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
