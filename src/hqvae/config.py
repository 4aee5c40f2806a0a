"""The whole of a run's settings, and `key=value` on top of them."""

import json
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from hqvae.config_class import config_class
from hqvae.data import AudioConfig, ImageConfig
from hqvae.errors import InputError, nearest_name
from hqvae.model import HQVAEConfig
from hqvae.quantize import ExternalConfig, GumbelSoftmaxConfig, RandomInit


@config_class
class TemperatureConfig:
    """τ of the relaxed samples: falls exponentially over the run, or by the step."""

    start: float = Field(default=1.0, gt=0)
    """τ at the first step"""
    end: float = Field(default=0.3, gt=0)
    """τ at the last step"""
    decay: float | None = Field(default=None, gt=0)
    """in place of `end`: τ = start · exp(−decay · step), as in the official code (1e-5)"""

    def at(self, step: int, total: int) -> float:
        """τ of a step, in a run of so many."""
        if self.decay is not None:
            return self.start * 2.718281828459045 ** (-self.decay * step)
        return self.start * (self.end / self.start) ** (step / total)


@config_class
class PhaseConfig:
    """The phases of an autoencoder's training: pretraining, relaxed samples, nearest codes.

    Pretraining and the nearest-code phase are ours; without them training is the paper's.
    """

    pretrain_fraction: float = Field(default=0.0, ge=0, le=0.5)
    """share of the run in which the autoencoder learns by itself; codebooks start after it"""
    nearest_fraction: float = Field(default=0.0, ge=0, lt=1)
    """share of the run, at its end, in which codes are the nearest ones: the limit s² → 0"""
    temperature: TemperatureConfig = TemperatureConfig()
    """τ of the relaxed samples"""
    lr_log_s2: float = Field(default=1.0, gt=0)
    """learning rate of s² in multiples of `train.lr`: one scalar moves slowly"""

    @model_validator(mode="after")
    def _check_sum(self) -> "PhaseConfig":
        if self.pretrain_fraction + self.nearest_fraction >= 1:
            raise ValueError(
                f"pretrain_fraction={self.pretrain_fraction:g} and "
                f"nearest_fraction={self.nearest_fraction:g} leave no step for samples; "
                "expected less than 1 together"
            )
        return self

    def quantize_from(self, total: int) -> int:
        """The step at which codebooks start."""
        return round(self.pretrain_fraction * total)

    def nearest_from(self, total: int) -> int:
        """The step from which on codes are the nearest ones; `total` where that never happens."""
        return total - round(self.nearest_fraction * total)


@config_class
class TrainConfig:
    """How long and how training goes, whatever is trained."""

    steps: int = Field(default=20_000, ge=1)
    """optimiser steps"""
    epochs: float | None = Field(default=None, gt=0)
    """passes over the training items, in place of `steps`"""
    batch_size: int = Field(default=64, ge=1)
    """items of one step, over all devices and accumulated batches"""
    accumulate: int = Field(default=1, ge=1)
    """batches that a step's items are taken in, when they do not fit at once"""
    lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """decay of Adam's mean of gradients"""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """decay of Adam's mean of squared gradients"""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """of the rate: to zero, none, or halved when the validation loss stops improving"""
    patience: int = Field(default=3, ge=0)
    """plateau: validations without improvement that are borne; the next one halves the rate"""
    warmup: int = Field(default=0, ge=0)
    """steps over which the rate rises from zero"""
    clip: float | None = Field(default=None, gt=0)
    """largest norm of the gradient, in the unit of the loss; null for no limit"""
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    """mixed with bfloat16, or float32"""
    weight_ema: float | None = Field(default=None, gt=0, lt=1)
    """decay of an average of the weights that is evaluated and saved in their place"""
    compile: bool = False
    """use torch.compile"""
    tensorboard: bool = False
    """also write TensorBoard events (needs the extra of that name)"""
    log_every: int = Field(default=50, ge=1)
    """steps between log lines"""
    validate_every: int = Field(default=1000, ge=1)
    """steps between validations with their pictures, alarms and checkpoints"""
    validate_epochs: float | None = Field(default=None, gt=0)
    """passes over the training items between them, in place of `validate_every`"""
    validation_items: int = Field(default=512, ge=1)
    """at most so many are used while training"""
    seed: int = Field(default=0, ge=0)
    """of weights, noise and data order"""

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        if self.schedule == "plateau" and self.warmup:
            raise ValueError(
                f"schedule=plateau goes without warmup, which is {self.warmup}; "
                "expected warmup=0, or cosine or constant"
            )
        return self

    def total_steps(self, items: int) -> int:
        """Optimiser steps of the run, with so many training items."""
        return self.steps if self.epochs is None else self._steps_of(self.epochs, items)

    def validation_interval(self, items: int) -> int:
        """Steps between validations, with so many training items."""
        if self.validate_epochs is None:
            return self.validate_every
        return self._steps_of(self.validate_epochs, items)

    def _steps_of(self, epochs: float, items: int) -> int:
        return max(1, round(epochs * items / self.batch_size))


ModelConfig = HQVAEConfig  # a union by `kind` as soon as there is another


@config_class
class Config:
    """Everything a run depends on."""

    model: ModelConfig = HQVAEConfig()
    """the member of the family"""
    data: ImageConfig | AudioConfig = Field(default=ImageConfig(), discriminator="kind")
    """what it is trained on"""
    phases: PhaseConfig = PhaseConfig()
    """phases of an autoencoder's training"""
    train: TrainConfig = TrainConfig()
    """training as such"""


_CONFIG: TypeAdapter[Config] = TypeAdapter(Config)


def check_together(config: Config) -> None:
    """Raises InputError where two settings, each good by itself, cannot go together."""
    phases = config.phases
    quantizer = config.model.quantizer
    init = None if isinstance(quantizer, ExternalConfig) else quantizer.init
    if phases.pretrain_fraction and isinstance(init, RandomInit):
        raise InputError(
            f"phases.pretrain_fraction={phases.pretrain_fraction:g} leaves codebooks to start "
            "from features, and model.quantizer.init.kind=random starts them from none; "
            "expected model.quantizer.init.kind=kmeans, or phases.pretrain_fraction=0"
        )
    if phases.nearest_fraction and not isinstance(quantizer, GumbelSoftmaxConfig):
        raise InputError(
            f"phases.nearest_fraction={phases.nearest_fraction:g} replaces the posterior of a "
            f"stochastic quantizer, and model.quantizer.kind={quantizer.kind} has none; "
            "expected phases.nearest_fraction=0"
        )
    accumulate = config.train.accumulate
    if accumulate > 1 and isinstance(quantizer, ExternalConfig) and quantizer.updates_in_forward:
        raise InputError(
            f"train.accumulate={accumulate}: the codebook of model.quantizer.name={quantizer.name} "
            "moves with every batch that is passed through it, so accumulated ones are not one; "
            "expected train.accumulate=1"
        )


# ------------------------------------------------------------------------------- key=value


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
        if key.endswith("kind") or isinstance(
            value, dict | list
        ):  # later settings may name the keys that this one brought
            tree = to_dict(from_dict(tree))
    return from_dict(tree)


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


def explain(error: ValidationError, root: type = Config) -> str:
    """A validation error in one sentence: which key, what it got, what it expected."""
    first = error.errors()[0]
    tags, path = _union_tags(root), first["loc"]
    keys = [str(part) for before, part in zip(("", *path), path) if (before, part) not in tags]
    where = ".".join(keys)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}={json.dumps(first['input'], default=str)}: {message}"


def _union_tags(root: type) -> set[tuple[str, str]]:
    """(field, kind) of every union by kind below a config: pydantic's paths name the kind too."""
    found: set[tuple[str, str]] = set()
    for field in fields(root):  # type: ignore[arg-type]
        hint = get_type_hints(root)[field.name]
        members = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
        for member in members:
            assert isinstance(member, type)
            kind = get_type_hints(member).get("kind")
            found |= {(field.name, name) for name in get_args(kind)} | _union_tags(member)
    return found


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
        return (
            float(value)
            if isinstance(value, str)
            and text.strip()[:1] not in ("'", '"')
            and value[:1] in "0123456789.-"
            else value
        )
    except ValueError:
        return value


def _assign(tree: Any, path: list[str], key: str, value: Any) -> None:
    """Set the entry at `path`. A part that selects another kind (`kind=data`) replaces the whole branch by that kind's defaults."""
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(tree, list):
            if part not in [str(i) for i in range(-len(tree), len(tree))]:
                raise InputError(
                    f"{key}: {'.'.join(path[:depth])} has entries 0 to {len(tree) - 1}, not {part!r}"
                )
            slot: Any = int(part)
        elif isinstance(tree, dict):
            if part not in tree:
                nearest = nearest_name(part, tree)
                raise InputError(
                    f"key {key!r} does not exist: {'.'.join(path[:depth]) or 'the config'} has no {part!r}; {nearest}"
                )
            slot = part
        else:
            raise InputError(
                f"key {key!r} does not exist: {'.'.join(path[:depth])} is a single value"
            )
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
    return {
        k: v
        for key, value in items
        for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }
