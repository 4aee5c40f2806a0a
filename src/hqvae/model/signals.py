"""Signals from outside: checked for `encode`, made from files, and made into what can be saved."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hqvae.data import DataConfig, Modality, SourceConfig, to_signal
from hqvae.errors import InputError, summary_of

from .config import HQVAEConfig

_SLACK = 0.01  # by which interpolation may overshoot the range
# Of pictures and of sounds, by the number of axes: the type in which they are stored, and its name.
_STORED = {2: (torch.uint8, "uint8 pictures of 0 … 255"), 1: (torch.int16, "int16 sounds")}
_SPACE = {0: "", 1: ", T", 2: ", H, W"}


def as_signal(
    x: Any, config: HQVAEConfig, like: Tensor, limit: float | None = 1.0
) -> Float[Tensor, "B C *S"]:
    """A batch from outside as a model takes it: floats of the type of `like`.

    Args:
        x: a tensor or array: floats in [−1, 1], uint8 pictures of 0 … 255, or int16 sounds
        config: of the model
        like: a weight of the model; arrays go to its device
        limit: the largest absolute value; None for signals without, as arrays are

    Raises ValueError for other types, and for values that are not finite or outside of the range.

    >>> pictures = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    >>> as_signal(pictures, HQVAEConfig(), like=torch.zeros(1)).unique()
    tensor([1.])
    """
    x = as_tensor(x, like)
    stored, name = _STORED.get(config.axes, (None, "")) if limit is not None else (None, "")
    if isinstance(x, Tensor) and x.dtype == stored:
        return to_signal(x, x.device).to(like.dtype)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        expected = f"floats in [−1, 1], or {name}" if name else "floats"
        raise ValueError(f"x is of type {kind}; expected {expected}")
    _check_range(x, limit)
    return x.to(like.dtype)


def limit_of(config: HQVAEConfig, data: DataConfig | None) -> float | None:
    """The largest absolute value of a model's signals; None where there is none."""
    if data is None:
        return None if config.axes == 0 else 1.0
    modality: Modality[Any] = data.modality
    return modality.unit(data).limit


def as_tensor(x: Any, like: Tensor) -> Any:
    """An array of numbers as a tensor where `like` is; anything else as it is."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "iuf":
        return torch.from_numpy(np.ascontiguousarray(x)).to(like.device)
    return x


def usual_size(config: HQVAEConfig, data: DataConfig | None) -> tuple[int, ...] | None:
    """*S of training's signals, where a model knows it."""
    if data is None:
        return None
    modality: Modality[Any] = data.modality
    shape = modality.shape(data, config.channels)
    return None if shape is None else shape[1:]


def check_list(items: Any, what: str) -> None:
    """Raises ValueError for one item, where a list of them is wanted."""
    if isinstance(items, Tensor) or (
        isinstance(items, Sequence) and not isinstance(items, str | bytes)
    ):
        return
    raise ValueError(f"{what} are a {type(items).__name__}; expected a list, be it of one")


def check_shape(x: Tensor, config: HQVAEConfig) -> None:
    """Raises ValueError for what are no floats of the model's channels and axes."""
    if x.ndim != config.axes + 2 or x.shape[1] != config.channels:
        raise ValueError(
            f"x has shape {list(x.shape)}; "
            f"this model expects [B, {config.channels}{_SPACE[config.axes]}]"
        )
    if not x.is_floating_point():
        raise ValueError(f"x is of type {x.dtype}; expected floats")
    if 0 in x.shape[2:]:
        raise ValueError(f"x has shape {list(x.shape)}; expected at least one point")


def _check_range(x: Tensor, limit: float | None) -> None:
    """Raises ValueError for values outside of the range. A compiled graph cannot ask for values."""
    if torch.compiler.is_compiling() or not x.numel():
        return
    low, high = (float(bound) for bound in x.aminmax())
    if limit is None:
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("x has values that are not finite")
        return
    if not (low >= -limit - _SLACK and high <= limit + _SLACK):
        raise ValueError(
            f"x has values from {low:.4g} to {high:.4g}; expected floats in [−1, 1] "
            "(pictures of 0 … 255: as uint8, or x / 127.5 − 1)"
        )


# --------------------------------------------------------------------------- files and back


def preparation(data: DataConfig) -> dict[str, Any]:
    """What a config says of signals, as plain values: not where a data set lies, nor its splits."""
    saved: dict[str, Any] = TypeAdapter(type(data)).dump_python(data, mode="json")
    for field in fields(SourceConfig):
        del saved[field.name]
    return saved


def read_preparation(saved: Any) -> DataConfig | None:
    """The config that `preparation` or a run saved; None where nothing was.

    Raises ValueError for what is none.
    """
    if saved is None:
        return None
    names = {field.name for field in fields(SourceConfig)}
    try:
        if isinstance(saved, dict):
            saved = {key: value for key, value in saved.items() if key not in names}
        return TypeAdapter[DataConfig](DataConfig).validate_python(saved)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"its data are no description of signals: {reason}") from error


def postprocess(x_hat: Any, data: DataConfig, config: HQVAEConfig) -> list[Any]:
    """`HQVAE.postprocess` with data and config of the model."""
    shape = list(getattr(x_hat, "shape", ()))
    if (
        not isinstance(x_hat, Tensor)
        or len(shape) != config.axes + 2
        or shape[1] != config.channels
    ):
        space = _SPACE[config.axes]
        what = f"shape {shape}" if shape else f"type {type(x_hat).__name__}"
        raise ValueError(f"x_hat is of {what}; expected a tensor [B, {config.channels}{space}]")
    modality: Modality[Any] = data.modality
    return modality.restore(x_hat.detach(), data)


def require_data(data: DataConfig | None) -> DataConfig:
    """Raises ValueError where a model does not know what its signals are."""
    if data is None:
        raise ValueError(
            "this model does not know what its signals are; "
            "expected model.data=hqvae.data.ImageConfig(size=…), AudioConfig(rate=…) or ArrayConfig"
        )
    return data


def preprocess(
    file: Any, data: DataConfig, config: HQVAEConfig, whole: bool
) -> Float[Tensor, "1 C *S"]:
    """`HQVAE.preprocess` with data and config of the model."""
    modality: Modality[Any] = data.modality
    modality.check_model(data, config.channels, config.axes)
    name = str(file) if isinstance(file, str | os.PathLike) else type(file).__name__
    source = _source(file)
    try:
        opened = _from_memory(file, data) if source is None else modality.open(source)
        signal = modality.prepare(opened, data, config.channels, whole)
    except InputError:
        raise
    except Exception as error:  # decoders raise anything, for cut files OSError too
        raise ValueError(f"{name} cannot be used: {summary_of(error)}") from error
    return signal[None]


def _source(file: Any) -> Path | BytesIO | None:
    """What can be opened; None for what is no file."""
    if isinstance(file, str | os.PathLike):
        path = Path(file).expanduser()
        path.stat()  # raises FileNotFoundError with the name, whoever decodes
        return path
    if isinstance(file, bytes | bytearray | memoryview):
        return BytesIO(file)
    return file if isinstance(file, BytesIO) else None


def _from_memory(value: Any, data: DataConfig) -> Any:
    """Raises InputError for what is no item either."""
    modality: Modality[Any] = data.modality
    try:
        return modality.from_memory(value, data)
    except ValueError as error:
        of_array = isinstance(value, np.ndarray)
        what = f"{value.dtype} {list(value.shape)}" if of_array else type(value).__name__
        raise InputError(
            f"expected the path or the bytes of a file, or {error}, not {what}; "
            "a signal that is prepared already is a tensor of floats"
        ) from error
