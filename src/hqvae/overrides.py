"""A config as plain values and back, and `key=value` on top of it."""

import json
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hqvae.config import Config
from hqvae.errors import InputError, nearest_name
from hqvae.plain_yaml import read_yaml
from hqvae.quantize import ExternalConfig

_NAMED = 3  # keys that a message names
_LONGEST_SHOWN = 200  # characters of a value in a message
_CONFIG: TypeAdapter[Config] = TypeAdapter(Config)


def override(config: Config, settings: list[str]) -> Config:
    """The config with `key=value` settings applied, such as `model.net.widths=[64,128]`.

    Values are read as YAML. Raises InputError for a key that does not exist (with the nearest that
    does) or a value of a wrong type.

    >>> override(Config(), ["train.lr=3e-4", "model.levels.0.codebook_size=64"]).train.lr
    0.0003
    """
    tree = to_dict(config)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise InputError(f"setting {setting!r} is not of the form key=value")
        value = _value(key, text)
        _check_known(tree, key.strip(), value, text)
        _assign(tree, key.strip().split("."), key, value)
        if key.endswith("kind") or isinstance(value, dict | list):
            tree = to_dict(from_dict(tree))  # later settings may name the keys that came with it
    return from_dict(tree)


def keys_named(name: str, config: Config) -> list[str]:
    """Whole keys of settings that are this name, or whose last part it is.

    >>> keys_named("steps", Config())
    ['train.steps']
    """
    return [key for key in flatten(to_dict(config)) if name in (key, key.split(".")[-1])]


def _check_known(tree: dict[str, Any], key: str, value: Any, text: str) -> None:
    """Raises InputError, with what was meant, for half a key, or a name in place of a kind."""
    meant = [known for known in flatten(tree) if known.split(".")[-1] == key]
    if key not in tree and meant:
        raise InputError(f"key {key!r} does not exist; did you mean {meant[0]}={text}?")
    if key == "model.quantizer.kind" and value in get_args(get_type_hints(ExternalConfig)["name"]):
        raise InputError(
            f"{key}={value}: it is an external quantizer; "
            f"expected {key}=external model.quantizer.name={value}"
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


def explain(error: ValidationError, root: type = Config) -> str:
    """A validation error in one sentence: which key, what it got, what it expected."""
    first = error.errors()[0]
    tags = _union_tags(root)
    path = first["loc"]
    keys = [str(part) for before, part in zip(("", *path), path) if (before, part) not in tags]
    where = ".".join(keys)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}={_short(json.dumps(first['input'], default=str))}: {message}"


def _short(text: str) -> str:
    """A value as a sentence can hold it."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


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


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """{key: its values in both} of all keys in which two configs differ, in order."""
    flat_one = flatten(to_dict(one))
    flat_other = flatten(to_dict(other))
    return {
        key: (flat_one.get(key), flat_other.get(key))
        for key in sorted(flat_one | flat_other)
        if flat_one.get(key) != flat_other.get(key)
    }


def difference(one: Config, other: Config, but: Collection[str] = ()) -> str | None:
    """The first keys in which two configs differ, with both values; None when they agree.

    Keys in `but` may differ.
    """
    found = [
        f"{key} is {there} there and {here} here"
        for key, (there, here) in differences(one, other).items()
        if key not in but
    ]
    more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join([*found[:_NAMED], *more]) or None


def _value(key: str, text: str) -> Any:
    """A value as YAML has it, but for numbers such as 1e-3.

    YAML 1.1 reads those as strings; nobody who trains networks does. What is quoted stays a string.
    """
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise InputError(f"{key}={_short(text)!r} is not a readable value: {error}") from error
    quoted = text.strip()[:1] in ("'", '"')
    if not isinstance(value, str) or quoted or value[:1] not in tuple("0123456789.-"):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _assign(tree: Any, path: list[str], key: str, value: Any) -> None:
    """Set the entry at `path`.

    A part that selects another kind (`kind=kmeans`) replaces the whole branch by that kind's
    defaults.
    """
    for depth, part in enumerate(path):
        slot = _slot(tree, part, key, ".".join(path[:depth]))
        if depth < len(path) - 1:
            tree = tree[slot]
            continue
        if slot == "kind" and tree[slot] != value:
            tree.clear()
        tree[slot] = value


def _slot(tree: Any, part: str, key: str, above: str) -> str | int:
    """The index that `part` names in a list or mapping. Raises InputError where it has none."""
    if isinstance(tree, list):
        if part not in [str(i) for i in range(-len(tree), len(tree))]:
            raise InputError(f"{key}: {above} has entries 0 to {len(tree) - 1}, not {part!r}")
        return int(part)
    if isinstance(tree, dict):
        if part not in tree:
            where = above or "the config"
            raise InputError(
                f"key {key!r} does not exist: {where} has no {part!r}; {nearest_name(part, tree)}"
            )
        return part
    raise InputError(f"key {key!r} does not exist: {above} is a single value")


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
