"""Shapes in signatures are checked while tests run; the family, once, for every test that goes over it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, operation by operation

from jaxtyping import install_import_hook

# Not quantize.compiled and quantize.kernels, which others' compilers read.
_PARTS = ["chunks", "cli", "compare", "config", "data", "doctor", "errors", "evaluate", "files", "likelihood", "measure", "metrics", "model", "nets",
          "objective", "figures", "ranks", "run", "console", "spectra", "topdown", "train"]  # fmt: skip
_QUANTIZE = ["base", "blocked", "ema", "noise", "ops", "others", "passes", "processor", "reference", "stochastic"]
install_import_hook([*(f"hqvae.{part}" for part in _PARTS), *(f"hqvae.quantize.{part}" for part in _QUANTIZE)], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

from hqvae.config import PRESETS  # noqa: E402
from hqvae.model import HQVAE, HQVAEConfig, Level  # noqa: E402
from hqvae.nets import NetConfig  # noqa: E402
from hqvae.quantize import DataStart, EMAConfig, Noise, StochasticConfig  # noqa: E402

torch.set_num_threads(1)

IMAGE_PRESETS = [name for name, config in PRESETS.items() if config.data.kind == "images"]
SMALL = NetConfig(widths=(8, 12), blocks=1)
QUANTIZERS = {"stochastic": StochasticConfig(), "ema": EMAConfig(start=DataStart()), "restart": EMAConfig(restart=True, start=DataStart())}
LEVELS = {
    "one": (Level(4, 1, 16, 6),),
    "two": (Level(8, 1, 16, 6), Level(4, 1, 8, 5)),
    "three": (Level(8, 1, 16, 6), Level(4, 1, 8, 5), Level(2, 1, 8, 4)),
    "residual": (Level(4, 3, 16, 6),),
    "shared": (Level(4, 3, 16, 6, shared=True),),
    "hybrid": (Level(8, 2, 16, 6), Level(4, 3, 8, 5)),
}
FAMILY = [(quantizer, levels) for quantizer in QUANTIZERS for levels in LEVELS]


def build(quantizer: str, levels: str, axes: int = 2, started: bool = True, **config) -> HQVAE:
    """A small member of the family, the same at every call; its levels do expect something of each other, as they learn to."""
    torch.manual_seed(0)
    model = HQVAE(HQVAEConfig(levels=LEVELS[levels], quantizer=QUANTIZERS[quantizer], net=SMALL, axes=axes, **config))
    if started:
        model.scale_from(signals(axes=axes))
    for layer in model.layers:
        if getattr(layer, "expect", None) is not None:
            torch.nn.init.normal_(layer.expect[-1].weight, std=0.05)
    if started:
        model.start_from(signals(axes=axes), Noise(5))
    return model


def signals(count: int = 4, size: int = 16, axes: int = 2, seed: int = 1) -> torch.Tensor:
    """Smooth signals in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, *[4] * axes, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=[size] * axes, mode="linear" if axes == 1 else "bilinear")


@pytest.fixture(params=FAMILY, ids=lambda pair: "-".join(pair))
def member(request: pytest.FixtureRequest) -> HQVAE:
    """Every system of the family in turn, started from a batch."""
    return build(*request.param)
