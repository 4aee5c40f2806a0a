"""The whole of a run's settings."""

import math
import os
from typing import Literal

from pydantic import Field, model_validator

from hqvae.config_class import config_class, settings
from hqvae.data import DataConfig, ImageConfig
from hqvae.errors import InputError
from hqvae.model import HQVAEConfig
from hqvae.model.size import count_values
from hqvae.quantize import ExternalConfig, GumbelSoftmaxConfig, RandomInit

_LOWEST = 1e-6  # τ; samples are hard long before it, and a division by zero is no sample


@config_class
class TemperatureConfig:
    """τ of the relaxed samples: falls exponentially over the run, or by the step."""

    start: float = Field(default=1.0, gt=0)
    """τ at the first step"""
    end: float = Field(default=0.3, gt=0)
    """τ at the last step of the run, were there no nearest codes before it"""
    decay: float | None = Field(default=None, gt=0)
    """in place of `end`: τ = start · exp(−decay · step), as in the official code (1e-5)"""

    def at(self, step: int, total: int) -> float:
        """τ of a step, in a run of so many."""
        if self.decay is not None:
            return max(_LOWEST, self.start * math.exp(-self.decay * step))
        return max(_LOWEST, self.start * (self.end / self.start) ** (step / total))


@config_class
class PhaseConfig:
    """The phases of an autoencoder's training: pretraining, relaxed samples, nearest codes.

    Scale, pretraining, nearest codes and the mean of σ² are ours; without them training is the
    paper's.
    """

    init_scale: bool = True
    """whether features are first scaled to variance one, on the first batch"""
    pretrain_fraction: float = Field(default=0.0, ge=0, le=0.5)
    """share of the run in which the autoencoder learns by itself; codebooks start after it"""
    nearest_fraction: float = Field(default=0.0, ge=0, lt=1)
    """share of the run, at its end, in which codes are the nearest ones: the limit s² → 0"""
    temperature: TemperatureConfig = TemperatureConfig()
    """τ of the relaxed samples"""
    sigma2_decay: float = Field(default=0.9, ge=0, lt=1)
    """of the mean of σ² over batches that weighs each of them; 0: its own σ², as in the papers"""
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

    steps: int = Field(default=20_000, ge=1, le=10**12)
    """optimiser steps"""
    epochs: float | None = Field(default=None, gt=0, le=10**9)
    """passes over the training items, in place of `steps`"""
    batch_size: int = Field(default=64, ge=1, le=2**20)
    """items of one step, over all devices and accumulated batches"""
    accumulate: int = Field(default=1, ge=1, le=2**20)
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
    seed: int = Field(default=0, ge=0, lt=2**63)
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
    data: DataConfig = Field(default=ImageConfig(), discriminator="kind")
    """what it is trained on"""
    phases: PhaseConfig = PhaseConfig()
    """phases of an autoencoder's training"""
    train: TrainConfig = TrainConfig()
    """training as such"""


# The most that is of use, in place of a machine without memory or processes left.
_MOST: dict[str, float] = {
    "size": 2**14,
    "workers": 1024,
    "seconds": 3600,
    "frontend.n_fft": 2**20,
    "frontend.mels": 2**12,
}
_BYTES_PER_WEIGHT = 16  # in training: itself, its gradient, and Adam's two means, in float32


def check_data(data: DataConfig) -> None:
    """Raises InputError for sizes of data that no machine has room for."""
    for key, _, value in settings(data):
        if key in _MOST and value is not None and value > _MOST[key]:
            raise InputError(f"data.{key}={value:g}: expected at most {_MOST[key]:g}")


def check_memory(needed: int, of_what: str) -> None:
    """Raises InputError where this machine has less memory than these bytes."""
    if not hasattr(os, "sysconf"):
        return
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise InputError(
            f"{of_what} need {needed / 1e9:,.0f} GB of memory at least, "
            f"and this machine has {present / 1e9:,.0f}; expected less"
        )


def check_together(config: Config) -> None:
    """Raises InputError where settings, each good by itself, cannot go together or fit nowhere."""
    check_data(config.data)
    weights = count_values(config.model)
    check_memory(_BYTES_PER_WEIGHT * weights, f"the model's {weights:,} weights")
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
