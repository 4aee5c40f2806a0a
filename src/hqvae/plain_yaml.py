"""YAML as plain values, and nothing that a few lines of it could blow up into."""

from collections.abc import Iterator
from typing import Any

import yaml

_MOST_VALUES = 100_000  # with every alias written out; real settings have some hundreds
_PLAIN = (str, int, float, bool, type(None))


def read_yaml(text: str) -> Any:
    """Dicts, lists, texts, numbers, booleans and None.

    Raises ValueError, in one sentence, for text that is no YAML, for values of other kinds (dates,
    sets), for what contains itself, and for more than 100,000 values.

    >>> read_yaml("{train.steps: 400, model.net.widths: [32, 64]}")
    {'train.steps': 400, 'model.net.widths': [32, 64]}
    """
    try:
        value = yaml.safe_load(text)
        for count, part in enumerate(_walk(value), 1):
            if count > _MOST_VALUES:
                raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
            if not isinstance(part, (dict, list, *_PLAIN)):
                raise ValueError(f"it holds a {type(part).__name__}, {part}; quote what is a text")
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or contains itself") from error
    except (yaml.YAMLError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return value


def _walk(value: Any) -> Iterator[Any]:
    """A value and all inside it, as often as aliases name it."""
    yield value
    if isinstance(value, dict):
        yield from value
        value = value.values()
    elif not isinstance(value, list):
        return
    for part in value:
        yield from _walk(part)
