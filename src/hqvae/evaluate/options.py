"""What `evaluate` measures of which data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from hqvae.config import check_data
from hqvae.data import SPLITS, DataConfig
from hqvae.errors import InputError, nearest_name
from hqvae.model import HQVAE
from hqvae.overrides import explain
from hqvae.quantize import check_weight
from hqvae.rates import MEASURED_WEIGHTS, check_has_rates


@dataclass(frozen=True)
class EvalOptions:
    """What of the data is measured, and how it is read.

    split: train, validation or test
    batch_size: examples at a time; no number depends on it beyond rounding
    limit: at most so many of them
    size: side of the images; that of the training when None
    seconds: length of the segments that tile each audio file; that of the training when None
    shuffle_items: examples used for the ablation of every layer
    rate_weights: of a learned prior, at each of which error and bits are measured; some when None

    Raises InputError for what cannot be.
    """

    split: str = "test"
    batch_size: int = 64
    limit: int | None = None
    size: int | None = None
    seconds: float | None = None
    shuffle_items: int = 1000
    rate_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(
                f"split {self.split!r} does not exist; {nearest_name(self.split, SPLITS)}"
            )
        for name in ("batch_size", "limit", "size", "shuffle_items"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name}={count}: expected at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InputError(f"seconds={self.seconds}: expected a number above 0")
        for weight in self.rate_weights or ():
            check_weight(weight)

    def weights(self, model: HQVAE, run: str) -> Sequence[float]:
        """Those of the prior; none where it is uniform. Raises InputError for some of a uniform."""
        if model.config.prior == "learned":
            return MEASURED_WEIGHTS if self.rate_weights is None else self.rate_weights
        if self.rate_weights:
            check_has_rates(model, run)
        return ()

    def data(self, trained: DataConfig, source: str | None, run: str) -> DataConfig:
        """The data to measure on. Raises InputError for a size of audio, or seconds of images."""
        modality = trained.modality
        changes: dict[str, Any] = {} if source is None else {"source": source}
        for name, value in {"size": self.size, "seconds": self.seconds}.items():
            if value is None:
                continue
            if name not in modality.evaluation_options:
                raise InputError(
                    f"{name}={value:g}: run {run!r} is of {modality.noun}s, which have none"
                )
            changes[name] = value
        try:
            data = replace(trained, **changes)
        except ValidationError as error:
            raise InputError(explain(error, type(trained))) from error
        check_data(data)
        return data
