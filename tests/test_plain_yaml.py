"""YAML: what settings are written in, and what a few lines of it must not do."""

import pytest

from hqvae.config import Config
from hqvae.errors import InputError
from hqvae.overrides import override
from hqvae.plain_yaml import read_yaml

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
REFUSED = {
    "a list in itself": ("&a [*a]", "contains itself"),
    "a dict in itself": ("&a {b: *a}", "contains itself"),
    "a bomb": (BOMB, "more than 100,000 values"),
    "deep": ("[" * 20_000, "nested too deeply"),
    "a long number": ("9" * 5000, "limit"),
    "a date": ("{a: 2024-01-01}", "holds a date, 2024-01-01"),
    "a set": ("!!set {a}", "holds a set"),
    "bytes": ("!!binary aGVsbG8=", "holds a bytes"),
    "a tuple for a key": ("{[1, 2]: 3}", "unhashable"),
    "code": ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "no YAML": ("[1", "expected"),
    "no text": ("\0", "special characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_value_is_one_sentence(name):
    text, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as error:
        read_yaml(text)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=words) as refused:
        override(Config(), [f"train.lr={text}"])
    assert len(str(refused.value)) < 600


def test_aliases_that_stay_small_are_read():
    assert read_yaml("{a: &x [1, 2], b: *x}") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("key", ["train.steps", "train.seed", "model.levels.0.dim"])
def test_a_number_beyond_what_a_machine_counts_to_is_one_sentence(key):
    with pytest.raises(InputError, match=f"{key}=100000000000000000000: ") as error:
        override(Config(), [f"{key}={10**20}"])
    assert "\n" not in str(error.value)
