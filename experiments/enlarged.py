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

from hqvae.data import in_order, open_data
from hqvae.metrics import psnr
from hqvae.run import Run

_SIDE = 256


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR of 8-bit pictures, dB."""
    return float(psnr(torch.tensor([np.mean((one / 127.5 - other / 127.5) ** 2)])))


def enlarged(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


@torch.no_grad()
def main(path: Path, out: Path) -> None:
    run = Run.open(path)
    model = run.load_model()
    items = open_data(run.config.data, run.config.model.channels, ("test",))[1]["test"]
    found = []
    for batch in in_order(items, 100):
        x = items.signal(batch)
        pictures = [
            ((y.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
            for y in (x, model(x).reconstruction)
        ]
        found += [
            (apart(one, other), apart(enlarged(one), enlarged(other)))
            for one, other in zip(*pictures)
        ]
    own, large = np.mean(found, axis=0)
    figures = {"images": len(found), "psnr": float(own), f"psnr_at_{_SIDE}": float(large)}
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"{len(found)} images: PSNR {own:.2f} dB at their own size, "
        f"{large:.2f} dB enlarged to {_SIDE}×{_SIDE}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
