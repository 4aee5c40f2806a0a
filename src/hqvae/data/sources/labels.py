"""Labels of items: what counts as one, and what tables say of theirs."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hqvae.errors import InputError
from hqvae.ranks import warn

from .index import Label

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("label", "labels", "class", "fine_label")  # the first that fits counts


def labels_of(values: Iterable[Any], names: Sequence[str] | None = None) -> list[Label] | None:
    """Values as labels: integers or strings; truth values are 0 and 1.

    Args:
        values: one for each item, None where it has none
        names: of the classes; with them a negative number is no label, as Hugging Face has it

    None where no item has a label, or where values are of other kinds or mixed.

    >>> labels_of([3, None, True]), labels_of([2, -1], ["cat", "dog", "owl"]), labels_of([0.5])
    ([3, None, 1], [2, None], None)
    """
    labels = [int(value) if isinstance(value, bool) else value for value in values]
    found = {type(label) for label in labels if label is not None}
    if found not in ({int}, {str}):
        return None
    if names is not None:
        labels = [None if isinstance(label, int) and label < 0 else label for label in labels]
    return None if all(label is None for label in labels) else labels


def labels_asked_for(
    named: str | None, values: Iterable[Any], names: Sequence[str] | None = None
) -> list[Label] | None:
    """`labels_of`. Raises InputError where a setting has `named` values of other kinds."""
    values = list(values)
    labels = labels_of(values, names)
    kinds = {int if isinstance(value, bool) else type(value) for value in values} - {type(None)}
    if named is not None and kinds not in (set(), {int}, {str}):
        raise InputError(
            f"data.labels={named!r}: these are no labels; expected whole numbers, or strings"
        )
    return labels


def label_column(schemas: Sequence["pa.Schema"]) -> str | None:
    """The column of labels that all tables of a split have, each of the same kind.

    None, with a warning, where only some have one; None without where none has.
    """
    in_part = []
    for name in _COLUMNS:
        kinds = [_kind(schema, name) for schema in schemas]
        if None not in kinds and len(set(kinds)) == 1:
            return name
        if not any(kinds) and all(name in schema.names for schema in schemas):
            warn("column %r holds %s, which are no labels", name, schemas[0].field(name).type)
        in_part += [name] if any(kinds) else []
    if in_part:
        warn(
            "labels are left out: not all %d tables of a split have a column %r of integers, "
            "or all of strings",
            *(len(schemas), in_part[0]),
        )
    return None


def _kind(schema: "pa.Schema", name: str) -> type[int] | type[str] | None:
    """What a column's labels are; None where it has none, or is not there once."""
    import pyarrow as pa

    index = schema.get_field_index(name)
    if index < 0:
        return None
    kind = schema.types[index]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return int
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return str if any(is_kind(kind) for is_kind in strings) else None


def class_names(schemas: Sequence["pa.Schema"], column: str) -> list[str] | None:
    """The classes' names by number; None where nothing says, or tables disagree.

    Source: the features that the library `datasets` writes into a schema's metadata, as
    `{"info": {"features": {column: {"_type": "ClassLabel", "names": [...]}}}}`.
    """
    names = [_class_names(schema, column) for schema in schemas]
    return names[0] if all(others == names[0] for others in names) else None


def _class_names(schema: "pa.Schema", column: str) -> list[str] | None:
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])
        names = written["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or _kind(schema, column) is not int:
        return None
    return names if all(isinstance(name, str) for name in names) else None
