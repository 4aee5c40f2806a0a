"""Shapes in signatures are checked while tests run; the family, once, for every test over it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, operation by operation
if os.environ["TRITON_INTERPRET"] == "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of what is tested on the CPU nothing may go to a GPU

from jaxtyping import install_import_hook

# Not passes_numba and the Triton kernels, which others' compilers read.
_PARTS = [
    "apart",
    "checkpoints",
    "cli",
    "compare",
    "config",
    "console",
    "data",
    "decode",
    "doctor",
    "encode",
    "errors",
    "evaluate",
    "figures",
    "files",
    "full_precision",
    "ids",
    "likelihood",
    "measure",
    "metrics",
    "model",
    "nets",
    "objective",
    "overrides",
    "plain_yaml",
    "presets",
    "ranks",
    "run",
    "run_files",
    "spectra",
    "tiling",
    "tokenizer",
    "tokens",
    "topdown",
    "train",
    "trained",
]
_QUANTIZE = [
    "adapter",
    "codebook",
    "external",
    "noise",
    "posterior",
    "quantized",
    "residual",
    "sums",
]
_KERNELS = ["blocked", "functional", "operators", "passes_torch", "reference", "threads"]
install_import_hook(
    [
        *(f"hqvae.{part}" for part in _PARTS),
        *(f"hqvae.quantize.{part}" for part in _QUANTIZE),
        *(f"hqvae.quantize.kernels.{part}" for part in _KERNELS),
    ],
    "beartype.beartype",
)

import shutil
from pathlib import Path

import numpy as np
import pytest
import token_files
import torch
from kernel_backends import backend, rows_per_block  # noqa: F401

from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.nets import ConvConfig
from hqvae.presets import PRESETS
from hqvae.quantize import GumbelSoftmaxConfig, KMeansInit, NearestCodeConfig, Noise, RandomInit
from hqvae.topdown import PredictionLevel

torch.set_num_threads(1)

IMAGE_PRESETS = [name for name, config in PRESETS.items() if config.data.kind == "images"]
SMALL = ConvConfig(widths=(8, 12), blocks=1)
QUANTIZERS = {
    "stochastic": GumbelSoftmaxConfig(),
    "paper": GumbelSoftmaxConfig(init=RandomInit(s2=3.0), variance="one_plus_exp"),
    "ema": NearestCodeConfig(init=KMeansInit()),
    "restart": NearestCodeConfig(restart=True, init=KMeansInit()),
}
STOCHASTIC = ("stochastic", "paper")
LEVELS = {
    "one": (LevelConfig(4, 1, 16, 6),),
    "two": (LevelConfig(8, 1, 16, 6), LevelConfig(4, 1, 8, 5)),
    "three": (LevelConfig(8, 1, 16, 6), LevelConfig(4, 1, 8, 5), LevelConfig(2, 1, 8, 4)),
    "residual": (LevelConfig(4, 3, 16, 6),),
    "shared": (LevelConfig(4, 3, 16, 6, shared_codebook=True),),
    "hybrid": (LevelConfig(8, 2, 16, 6), LevelConfig(4, 3, 8, 5)),
}
FAMILY = [(quantizer, levels) for quantizer in QUANTIZERS for levels in LEVELS]


def build(quantizer: str, levels: str, axes: int = 2, started: bool = True, **config) -> HQVAE:
    """A small member of the family, the same at every call; top-down predictions are not zero."""
    torch.manual_seed(0)
    settings = {"injection": "concat" if quantizer == "paper" else "prediction", **config}
    model = HQVAE(
        HQVAEConfig(
            levels=LEVELS[levels], quantizer=QUANTIZERS[quantizer], net=SMALL, axes=axes, **settings
        )
    )
    if started:
        model.init_scale(signals(axes=axes))
    for level in model.levels:
        if isinstance(level, PredictionLevel):
            torch.nn.init.normal_(level.top_down.last.weight, std=0.05)
    if started:
        model.init_codebooks(signals(axes=axes), Noise(5))
    return model


def signals(count: int = 4, size: int = 16, axes: int = 2, seed: int = 1) -> torch.Tensor:
    """Smooth signals in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, *[4] * axes, generator=generator) * 2 - 1
    mode = "linear" if axes == 1 else "bilinear"
    return torch.nn.functional.interpolate(coarse, size=[size] * axes, mode=mode)


@pytest.fixture(params=FAMILY, ids=lambda pair: "-".join(pair))
def member(request: pytest.FixtureRequest) -> HQVAE:
    """Every system of the family in turn, started from a batch."""
    return build(*request.param)


@pytest.fixture(scope="session")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixty images of one colour each, in an .npz: 51 to train on, 3 for validation."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 3))
    path = tmp_path_factory.mktemp("data") / "smooth.npz"
    np.savez(path, x=colours.repeat(16, 1).repeat(16, 2).astype(np.uint8))
    return str(path)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty pictures in three classes; nobody changes it."""
    return token_files.photographs(tmp_path_factory.mktemp("photographs") / "d")


@pytest.fixture(scope="session")
def picture_run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on these; nobody changes it."""
    return token_files.train_pictures(str(photographs), tmp_path_factory.mktemp("picture_run"))


@pytest.fixture(scope="session")
def tokens(picture_run: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their tokens, in shards of eight; nobody changes them."""
    out = tmp_path_factory.mktemp("tokens") / "t"
    return token_files.encoded(picture_run, photographs, out, "--shard-items", 8)


@pytest.fixture
def copied(tokens: Path, tmp_path: Path) -> Path:
    """A copy of these, to be changed."""
    return shutil.copytree(tokens, tmp_path / "copied")


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four sounds; nobody changes it."""
    return token_files.sounds(tmp_path_factory.mktemp("sounds") / "d")


@pytest.fixture(scope="session")
def sound_run(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on these; nobody changes it."""
    return token_files.train_sounds(sounds, tmp_path_factory.mktemp("sound_run"))
