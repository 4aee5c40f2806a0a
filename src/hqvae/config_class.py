"""What every config class is: frozen, without unknown keys, with a docstring under each field."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import Field as DataclassField
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(Field, DataclassField))
def config_class(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose values are checked and which has no other keys.

    Numbers are finite.

    >>> @config_class
    ... class NoiseConfig:
    ...     scale: float = Field(default=1.0, gt=0)
    >>> NoiseConfig(scale=2)
    NoiseConfig(scale=2.0)
    """
    # Not a number and infinity pass every bound, and are no setting of anything.
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: Any = dataclass(frozen=True, config=config)(cls)
    return checked


@cache  # files do not change while they run, and every check of a config asks
def field_docs(cls: type) -> dict[str, str]:
    """{field: the docstring under it, on one line} of a config class and those it inherits from.

    Read from the source, because Python keeps no docstrings of fields.

    >>> from hqvae.config import TrainConfig
    >>> field_docs(TrainConfig)["steps"]
    'optimiser steps'
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            match (field, below):
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = " ".join(text.split())
    return docs


class Setting(NamedTuple):
    """A single value of a config: its dotted key, what it is, and what it says."""

    key: str
    doc: str
    value: Any


def settings(config: Any, prefix: str = "", doc: str = "") -> Iterator[Setting]:
    """All values of a config and of those inside it, in the order of their fields.

    A `kind` has the doc of the field that it is the kind of, with the kinds that there are.

    >>> from hqvae.config import Config
    >>> next(setting for setting in settings(Config()) if setting.key == "train.lr")
    Setting(key='train.lr', doc="Adam's learning rate", value=0.001)
    """
    kind: Any = type(config)  # mypy has it that types cannot be hashed
    docs = field_docs(kind)
    hints = get_type_hints(kind)
    for field in fields(config):
        key = f"{prefix}{field.name}"
        value = getattr(config, field.name)
        # A kind is told by the field that holds it.
        own_doc = docs.get(field.name, doc) if field.name != "kind" else doc
        kinds = _kinds(hints[field.name])
        if len(kinds) > 1:
            own_doc = f"{own_doc.rstrip('.')} ({', '.join(kinds)})"
        if is_dataclass(value):
            yield from settings(value, f"{key}.", own_doc)
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for index, part in enumerate(value):
                yield from settings(part, f"{key}.{index}.", own_doc)
        else:
            yield Setting(key, own_doc, value)


def _kinds(hint: Any) -> list[str]:
    """The kinds of a union of configs; empty for any other type."""
    members = [member for member in get_args(hint) if is_dataclass(member)]
    kinds = [get_type_hints(member).get("kind") for member in members]
    return [name for kind in kinds for name in get_args(kind)]
