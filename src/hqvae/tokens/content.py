"""What a manifest must hold, so that a damaged one is found where it is read."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ShardFile:
    """A shard that is there: its file, and what it must be."""

    name: str
    rows: _Count
    bytes: _Count
    sha256: str


@dataclass(frozen=True)
class SplitFiles:
    """The shards of a split, in order."""

    items: _Count
    """Of the source, with those left out."""
    rows: _Count
    left_out: _Count
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class _Model:
    sha256: str
    posterior: str
    beam_size: int


@dataclass(frozen=True)
class _Layer:
    level: _Count
    layer: _Count
    stride: _Positive
    codebook_size: _Positive
    type: str


@dataclass(frozen=True)
class _Split:
    items: _Count
    fingerprint: str
    content: str | None = None  # manifests of older versions have neither
    labels: str | None = None


@dataclass(frozen=True)
class _Labels:
    type: Literal["integer", "string"]
    names: list[str] | None


@dataclass(frozen=True)
class _Data:
    prepared: dict[str, Any]
    splits: dict[str, _Split]
    labels: _Labels | None


@dataclass(frozen=True)
class _Made:
    model: _Model
    layers: Annotated[list[_Layer], Field(min_length=1)]
    axes: Literal[0, 1, 2]
    data: _Data
    whole: bool
    compute: dict[str, Any]
    shard_items: _Positive
    rate_weight: float | None = None  # manifests of older versions have none


@dataclass(frozen=True)
class _LeftOut:
    reasons: dict[str, _Count]
    list: str | None


@dataclass(frozen=True)
class Content:
    """`manifest.json`; there may be more in it."""

    format: int
    complete: bool
    versions: dict[str, str]
    source: str
    made: _Made
    splits: dict[str, SplitFiles]
    left_out: _LeftOut


_CONTENT = TypeAdapter(Content)


def check_content(content: dict[str, Any]) -> Content:
    """The content of a manifest, as JSON gives it. Raises ValueError for anything else."""
    try:
        return _CONTENT.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}") from error
