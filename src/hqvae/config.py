"""The whole of a run's settings: presets, and `key=value` on top of them."""

import json
from dataclasses import replace
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as config

from hqvae.data import AudioConfig, ImageConfig, WaveConfig
from hqvae.errors import InputError, nearest_name
from hqvae.likelihood import SpectralConfig
from hqvae.model import HQVAEConfig, Level
from hqvae.nets import NetConfig
from hqvae.quantize import DataStart, EMAConfig, StochasticConfig


@config(frozen=True, config=ConfigDict(extra="forbid"))
class TemperatureConfig:
    """τ of the relaxed samples: falls exponentially from `start` to `end` over the share `over` of the run, then stays."""

    start: float = Field(default=1.0, gt=0)
    end: float = Field(default=0.3, gt=0)
    over: float = Field(default=1.0, gt=0, le=1)

    def at(self, progress: float) -> float:
        """τ when `progress` (0 … 1) of the run is done."""
        return self.start * (self.end / self.start) ** min(1.0, progress / self.over)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """How long and how training goes.

    Args:
        steps: optimiser steps; `epochs`, when given, counts passes over the training images instead
        batch_size: images of one step, over all devices and accumulated batches
        accumulate: batches that a step's images are taken in, when they do not fit at once; the result is that of one batch
        lr: Adam's learning rate; `lr_log_s2` multiplies it for s²
        beta2: decay of Adam's mean of squared gradients; 0.999 is 1,000 steps late to see that they grow (docs/levers.md)
        schedule: `cosine` to zero, `constant`, or `plateau` (halved when the validation loss has not improved `patience` times)
        warmup: steps over which the rate rises from zero
        clip: largest norm of the gradient, None for no limit; in nats for a stochastic system, and as many of them once it has hardened
        precision: `bf16-mixed` or `32-true`
        ema: decay of an average of the weights that is evaluated and saved in their place, None for none
        unquantized: share of the run, at most half, in which the autoencoder learns alone; codebooks and s² start after it
        temperature: of the relaxed samples
        hard: share of the run, at its end, in which codes are the nearest ones for certain: the limit s² → 0 (docs/theory.md)
        compile: use torch.compile
        tensorboard: also write TensorBoard events (needs the extra of that name)
        log_every, validate_every: steps between log lines, and between validations with their pictures, alarms and checkpoints
        validation_images: at most so many are used while training
        seed: of weights, noise and data order
    """

    steps: int = Field(default=20_000, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    lr_log_s2: float = Field(default=1.0, gt=0)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    patience: int = Field(default=3, ge=1)
    warmup: int = Field(default=0, ge=0)
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    ema: float | None = Field(default=None, gt=0, lt=1)
    unquantized: float = Field(default=0.0, ge=0, le=0.5)
    temperature: TemperatureConfig = TemperatureConfig()
    hard: float = Field(default=0.0, ge=0, lt=1)
    compile: bool = False
    tensorboard: bool = False
    log_every: int = Field(default=50, ge=1)
    validate_every: int = Field(default=1000, ge=1)
    validation_images: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _what_goes_together(self) -> "TrainConfig":
        if self.schedule == "plateau" and self.warmup:
            raise ValueError(f"schedule=plateau goes without warmup, which is {self.warmup}; expected warmup=0, or cosine or constant")
        if self.unquantized + self.hard >= 1:
            raise ValueError(
                f"unquantized={self.unquantized:g} and hard={self.hard:g} leave no step for samples; expected less than 1 together"
            )
        return self


@config(frozen=True, config=ConfigDict(extra="forbid"))
class Config:
    """Everything a run depends on."""

    model: HQVAEConfig = HQVAEConfig()
    data: ImageConfig | AudioConfig = Field(default=ImageConfig(), discriminator="kind")
    train: TrainConfig = TrainConfig()


_CONFIG: TypeAdapter[Config] = TypeAdapter(Config)
_KINDS = ("stochastic", "ema", "other", "normal", "data", "own", "images", "audio", "mel", "wave")
_ONE = (Level(stride=4, codebook_size=512),)
_TWO = (Level(stride=8, codebook_size=512), Level(stride=4, codebook_size=512))
_DEEP = (Level(stride=4, layers=4, codebook_size=256),)
_DEEP_SHARED = (Level(stride=4, layers=4, codebook_size=256, shared=True),)
_HYBRID = (Level(stride=8, layers=2, codebook_size=256), Level(stride=4, layers=2, codebook_size=256))

_SOUNDS = AudioConfig()
_WAVES = AudioConfig(rate=16_000, seconds=1.024, frontend=WaveConfig())
# A net for waveforms passes on quiet signals from the start: without zeros and ELU it learns nothing in the first hundreds of steps.
_WAVE_NET = NetConfig(
    widths=(32, 64, 128, 256), blocks=3, inner_blocks=3, dilations=(1, 3, 9), factor=4, activation="elu", norm=False, zero_start=True
)
_CODEC = Level(stride=128, layers=8, codebook_size=256)  # 125 positions a second of 64 bits: 8 kbit/s


# Codebooks that start from features that already reconstruct are used from their first step, and once the posterior has filled
# them, nearest codes are what will be decoded (docs/results.md). Then a gradient that grows is seen within twenty steps: seen later
# it tears features from their codes (docs/levers.md). And what a level's codes stand for is their sum.
_ALONE = TrainConfig(unquantized=0.1)
_HARDENED = replace(_ALONE, hard=0.75, beta2=0.95)
_SEARCH = 8


def _mel(quantizer: StochasticConfig | EMAConfig, level: Level, train: TrainConfig = TrainConfig()) -> Config:
    return Config(model=HQVAEConfig(levels=(level,), quantizer=quantizer, channels=1), data=_SOUNDS, train=train)


def _audio(quantizer: StochasticConfig | EMAConfig, levels: tuple[Level, ...], spectral: float, progressive: float = 0.0) -> Config:
    model = HQVAEConfig(
        levels=levels, quantizer=quantizer, net=_WAVE_NET, channels=1, axes=1,
        progressive=progressive, spectral=SpectralConfig(weight=spectral, rate=_WAVES.rate),
    )  # fmt: skip
    return Config(model=model, data=_WAVES, train=TrainConfig(batch_size=16, lr=5e-4, lr_log_s2=10.0, warmup=200, clip=1.0))


PRESETS: dict[str, Config] = {
    "vqvae": Config(model=HQVAEConfig(levels=_ONE, quantizer=EMAConfig())),
    "vqvae2": Config(model=HQVAEConfig(levels=_TWO, quantizer=EMAConfig())),
    "rqvae": Config(model=HQVAEConfig(levels=_DEEP_SHARED, quantizer=EMAConfig(restart=True))),
    # What one layer cannot say nothing after it will: there a strong commitment clears it from the features (docs/levers.md).
    "sqvae": Config(model=HQVAEConfig(levels=_ONE, quantizer=StochasticConfig(beta=0.25)), train=_HARDENED),
    # Without the progressive objective the coarse levels of injected hierarchies starve: the finest does all the work.
    "sqvae2": Config(model=HQVAEConfig(levels=_TWO, quantizer=StochasticConfig(), progressive=1.0), train=_HARDENED),
    # The noise of the layers adds up: samples that end softer serve stacks better (experiments/levers/temperature.yaml).
    "rsqvae": Config(
        model=HQVAEConfig(levels=_DEEP, quantizer=StochasticConfig(), search=_SEARCH),
        train=replace(_HARDENED, temperature=TemperatureConfig(end=0.6)),
    ),
    # With more layers a little of it has the coarse ones carry as much, and costs less fidelity (docs/levers.md).
    "hqvae": Config(model=HQVAEConfig(levels=_HYBRID, quantizer=StochasticConfig(), progressive=0.1, search=_SEARCH), train=_HARDENED),
    # Sounds as log-mel spectra [1, 80, 344]: latents of 20 × 86, small codebooks, as the paper's experiment on sounds.
    "sqvae-mel": _mel(StochasticConfig(), Level(stride=4, codebook_size=512), _ALONE),
    "rsqvae-mel": _mel(StochasticConfig(), Level(stride=4, layers=4, codebook_size=8), _ALONE),
    "rqvae-mel": _mel(EMAConfig(restart=True), Level(stride=4, layers=4, codebook_size=8, shared=True)),
    # Waveforms at 16 kHz and 8 kbit/s; squared errors of log spectra are 10³ times those of samples, hence the small weight.
    "rsqvae-audio": _audio(StochasticConfig(), (_CODEC,), spectral=1.0),
    "rqvae-audio": _audio(EMAConfig(restart=True), (replace(_CODEC, shared=True),), spectral=1e-3),
    "hqvae-audio": _audio(
        StochasticConfig(),
        (Level(stride=512, layers=4, codebook_size=256), Level(stride=128, layers=7, codebook_size=256)),
        spectral=1.0,
        progressive=1.0,
    ),
}


def preset(name: str) -> Config:
    if name not in PRESETS:
        raise InputError(f"preset {name!r} does not exist; {nearest_name(name, PRESETS)}")
    return PRESETS[name]


def override(config: Config, settings: list[str]) -> Config:
    """The config with `key=value` settings applied: `train.lr=3e-4`, `model.levels.0.codebook_size=1024`, `model.net.widths=[64,128]`.

    Values are read as YAML. Raises InputError for a key that does not exist (with the nearest that does) or a value of a wrong type.
    """
    tree = to_dict(config)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise InputError(f"setting {setting!r} is not of the form key=value")
        value = _value(key, text)
        _assign(tree, key.strip().split("."), key, value)
        if key.endswith("kind") or isinstance(value, dict | list):  # later settings may name the keys that this one brought
            tree = to_dict(from_dict(tree))
    return from_dict(tree)


def refuse_contradictions(config: Config) -> None:
    """Raises InputError where two settings, each good alone, cannot go together: known before there is any data."""
    settings, quantizer, spectral = config.train, config.model.quantizer, config.model.spectral
    start = getattr(quantizer, "start", DataStart())
    if settings.unquantized and not isinstance(start, DataStart):
        raise InputError(
            f"train.unquantized={settings.unquantized} leaves codebooks to start from features, and "
            f"model.quantizer.start.kind={start.kind} starts them from none; expected model.quantizer.start.kind=data, "
            "or train.unquantized=0"
        )
    if settings.hard and quantizer.kind != "stochastic":
        raise InputError(
            f"train.hard={settings.hard:g} hardens the posterior of a stochastic system, and model.quantizer.kind={quantizer.kind} has "
            "none; expected train.hard=0"
        )
    if settings.hard and spectral.weight:
        raise InputError(
            f"train.hard={settings.hard:g} takes the decoder's variances away, which hold the waveform and its spectra in balance "
            f"(model.spectral.weight={spectral.weight:g}); expected train.hard=0"
        )
    if settings.accumulate > 1 and getattr(quantizer, "name", None) == "rotation":
        raise InputError(
            f"train.accumulate={settings.accumulate}: the codebook of model.quantizer.name=rotation moves with every batch that is "
            "passed through it, so accumulated ones are not one; expected train.accumulate=1"
        )


def setting(key: str, value: Any) -> str:
    """A plain value as the `key=value` that `override` reads back."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return _CONFIG.dump_python(config, mode="json")


def from_dict(tree: dict[str, Any]) -> Config:
    """The config from plain values. Raises InputError that names the first wrong one."""
    try:
        return _CONFIG.validate_python(tree)
    except ValidationError as error:
        raise InputError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """A validation error in one sentence: which key, what it got, what it expected."""
    first = error.errors()[0]
    loc = first["loc"]  # below a field that has kinds, pydantic names the kind too; it is no key
    where = ".".join(
        str(part) for before, part in zip(("", *loc), loc) if before not in ("quantizer", "start", "data", "frontend") or part not in _KINDS
    )
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where}: {message}" if first["type"] == "value_error" else f"{where}={json.dumps(first['input'], default=str)}: {message}"


def difference(one: Config, other: Config) -> str | None:
    """The first key in which two configs differ, with both values; None when they agree."""
    flat_one, flat_other = flatten(to_dict(one)), flatten(to_dict(other))
    for key in sorted(flat_one | flat_other):
        if flat_one.get(key) != flat_other.get(key):
            return f"{key} is {flat_one.get(key)} there and {flat_other.get(key)} here"
    return None


def _value(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key}={text!r} is not a readable value") from error
    try:  # YAML 1.1 reads 1e-3 as a string; nobody who trains networks does. What is quoted stays a string.
        return float(value) if isinstance(value, str) and text.strip()[:1] not in ("'", '"') and value[:1] in "0123456789.-" else value
    except ValueError:
        return value


def _assign(tree: Any, path: list[str], key: str, value: Any) -> None:
    """Set the entry at `path`. A part that selects another kind (`kind=data`) replaces the whole branch by that kind's defaults."""
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(tree, list):
            if part not in [str(i) for i in range(-len(tree), len(tree))]:
                raise InputError(f"{key}: {'.'.join(path[:depth])} has entries 0 to {len(tree) - 1}, not {part!r}")
            slot: Any = int(part)
        elif isinstance(tree, dict):
            if part not in tree:
                nearest = nearest_name(part, tree)
                raise InputError(f"key {key!r} does not exist: {'.'.join(path[:depth]) or 'the config'} has no {part!r}; {nearest}")
            slot = part
        else:
            raise InputError(f"key {key!r} does not exist: {'.'.join(path[:depth])} is a single value")
        if last and slot == "kind" and tree[slot] != value:
            tree.clear()
        if last:
            tree[slot] = value
        else:
            tree = tree[slot]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a tree of plain values, as `key=value` settings name them."""
    if not isinstance(tree, dict | list) or not tree:
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in items for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()}
