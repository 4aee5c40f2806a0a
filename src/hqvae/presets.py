"""The presets: a model of `hqvae.model.presets`, its data, its phases and its training."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from hqvae.config import Config, PhaseConfig, TemperatureConfig, TrainConfig
from hqvae.config_class import settings
from hqvae.data import ArrayConfig, AudioConfig, ImageConfig, WaveConfig
from hqvae.errors import InputError, nearest_name
from hqvae.model.presets import MODELS

_IMAGES = ImageConfig()
_SPECTRA = AudioConfig()
_WAVES = AudioConfig(rate=16_000, seconds=1.024, frontend=WaveConfig())
# All items get an ID, so all of them are trained on, and measured.
_VECTORS = ArrayConfig(validation=0.0, test=0.0)
_SERIES = ArrayConfig()

# Codebooks that start from features that already reconstruct are used from their first step.
_PRETRAIN = PhaseConfig(pretrain_fraction=0.1)
# Once the posterior has filled the codebooks, nearest codes are what will be decoded.
_TO_NEAREST = PhaseConfig(pretrain_fraction=0.1, nearest_fraction=0.75)
# The noise of the layers adds up: samples that end softer serve stacks better.
_TO_NEAREST_STACK = replace(_TO_NEAREST, temperature=TemperatureConfig(end=0.6))
# Samples for longer than this cost fidelity: experiments/posterior/arms.yaml.
_TO_NEAREST_EARLY = replace(_TO_NEAREST_STACK, nearest_fraction=0.85)
_WAVE_PHASES = PhaseConfig(lr_log_s2=10.0)
_PAPER_START = PhaseConfig(init_scale=False, sigma2_decay=0.0)
_PAPER_PHASES = replace(_PAPER_START, temperature=TemperatureConfig(decay=1e-5))

_TRAIN = TrainConfig()
# With β₂ = 0.999 Adam reacts 1,000 steps late to gradients that grow in the nearest-code phase;
# encoder and codebook then diverge (experiments/diary/ablations.md).
_TRAIN_NEAREST = TrainConfig(beta2=0.95)
_TRAIN_VECTORS = TrainConfig(steps=3000, batch_size=256, lr=3e-3, beta2=0.95, precision="32-true")
_TRAIN_WAVES = TrainConfig(batch_size=16, lr=5e-4, warmup=200, clip=1.0)
_TRAIN_PAPER = TrainConfig(
    epochs=100, batch_size=32, schedule="plateau", patience=3, validate_epochs=1
)
# Of van den Oord et al. (2017) and Razavi et al. (2019), who train for 250,000 and 2,207,444 steps.
_TRAIN_VQ = TrainConfig(batch_size=128, lr=2e-4, schedule="constant")
_TRAIN_VQ2 = replace(_TRAIN_VQ, lr=3e-4)

PRESETS: dict[str, Config] = {
    "vqvae": Config(MODELS["vqvae"], _IMAGES, _PRETRAIN, _TRAIN_NEAREST),
    "vqvae2": Config(MODELS["vqvae2"], _IMAGES, _PRETRAIN, _TRAIN_NEAREST),
    "rqvae": Config(MODELS["rqvae"], _IMAGES, _PRETRAIN, _TRAIN_NEAREST),
    "sqvae": Config(MODELS["sqvae"], _IMAGES, _TO_NEAREST, _TRAIN_NEAREST),
    "sqvae2": Config(MODELS["sqvae2"], _IMAGES, _TO_NEAREST, _TRAIN_NEAREST),
    "rsqvae": Config(MODELS["rsqvae"], _IMAGES, _TO_NEAREST_EARLY, _TRAIN_NEAREST),
    "hqvae": Config(MODELS["hqvae"], _IMAGES, _TO_NEAREST, _TRAIN_NEAREST),
    "sqvae-mel": Config(MODELS["sqvae-mel"], _SPECTRA, _PRETRAIN, _TRAIN),
    "rsqvae-mel": Config(MODELS["rsqvae-mel"], _SPECTRA, _PRETRAIN, _TRAIN),
    "rqvae-mel": Config(MODELS["rqvae-mel"], _SPECTRA, PhaseConfig(), _TRAIN),
    "rsqvae-audio": Config(MODELS["rsqvae-audio"], _WAVES, _WAVE_PHASES, _TRAIN_WAVES),
    "rqvae-audio": Config(MODELS["rqvae-audio"], _WAVES, PhaseConfig(), _TRAIN_WAVES),
    "hqvae-audio": Config(MODELS["hqvae-audio"], _WAVES, _WAVE_PHASES, _TRAIN_WAVES),
    "sqvae-vector": Config(MODELS["sqvae-vector"], _VECTORS, _TO_NEAREST, _TRAIN_VECTORS),
    "rsqvae-vector": Config(MODELS["rsqvae-vector"], _VECTORS, _TO_NEAREST_STACK, _TRAIN_VECTORS),
    "rqvae-vector": Config(MODELS["rqvae-vector"], _VECTORS, PhaseConfig(), _TRAIN_VECTORS),
    "rsqvae-series": Config(MODELS["rsqvae-series"], _SERIES, _TO_NEAREST_STACK, _TRAIN_NEAREST),
    "vqvae-paper": Config(MODELS["vqvae-paper"], _IMAGES, _PAPER_START, _TRAIN_VQ),
    "vqvae2-paper": Config(MODELS["vqvae2-paper"], _IMAGES, _PAPER_START, _TRAIN_VQ2),
    "sqvae-paper": Config(MODELS["sqvae-paper"], _IMAGES, _PAPER_PHASES, _TRAIN_PAPER),
    "sqvae2-paper": Config(MODELS["sqvae2-paper"], _IMAGES, _PAPER_PHASES, _TRAIN_PAPER),
    "rsqvae-paper": Config(MODELS["rsqvae-paper"], _IMAGES, _PAPER_PHASES, _TRAIN_PAPER),
    "hqvae-paper": Config(MODELS["hqvae-paper"], _IMAGES, _PAPER_PHASES, _TRAIN_PAPER),
    "rqvae-paper": Config(
        MODELS["rqvae-paper"], _IMAGES, _PAPER_START, replace(_TRAIN, beta1=0.5, beta2=0.9)
    ),
}


def preset(name: str) -> Config:
    """The whole config of a preset: model, data, phases and training.

    Raises InputError for a name that is none, with the nearest.

    >>> preset("rsqvae").model.levels[0].layers
    4
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r} does not exist; {nearest_name(name, PRESETS)}")
    return PRESETS[name]


def overview() -> Iterator[list[str]]:
    """(name, quantizer, levels) of every preset, in words.

    >>> next(overview())
    ['vqvae', 'deterministic', 'stride 4: 1 × 512']
    """
    for name, config in PRESETS.items():
        levels = []
        for level in config.model.levels:
            size = f"{level.layers} × {level.codebook_size}{' shared' * level.shared_codebook}"
            levels.append(f"stride {level.stride}: {size}")
        yield [name, config.model.quantizer.kind, " + ".join(levels)]


def describe(config: Config, width: int = 80) -> Iterator[str]:
    """Every setting as a line `key=value`, below a comment that says what it is.

    Comments are at most `width` columns wide. Blank lines part model, data, phases and training.

    >>> list(describe(preset("sqvae")))[-2:]
    ['# of weights, noise and data order', 'train.seed=0']
    """
    group = ""
    for key, doc, value in settings(config):
        if group and not key.startswith(group):
            yield ""
        group = key[: key.index(".") + 1]
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        yield from textwrap.wrap(f"# {doc}", width, subsequent_indent="# ")
        yield f"{key}={text}"
