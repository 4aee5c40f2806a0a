"""The library's and the parser's messages in the command's words.

The library speaks of values (`out='runs/a'`); here they become flags (`--out 'runs/a'`). The parser
says what is missing or unknown; here it also says what would have worked.
"""

import re
from collections.abc import Sequence

from .app import app

_FLAGS = (
    "accelerator|address|batch_size|data|devices|engine|jobs|layers|limit|nodes|out|resume|seconds|"
    "seeds|shard_items|shuffle_items|size|split|whole|workers"
)
_WITH_COLUMN = ("encode", "ids")  # verbs that take no settings, and have a flag for this one
_FLAG = re.compile(rf"(?<![\w.'\"/-])({_FLAGS})=(?=\S)")


def with_flags(sentence: str, verb: str = "") -> str:
    """A message of the library in a verb's words; keys of the config stay as they are.

    >>> with_flags("out='a' holds a run; continue it with resume=True")
    "--out 'a' holds a run; continue it with --resume"
    >>> with_flags("batch_size=0 and train.batch_size=0: expected at least 1")
    '--batch-size 0 and train.batch_size=0: expected at least 1'
    >>> with_flags("name one with data.column=NAME", "ids")
    'name one with --column NAME'
    """
    if verb in _WITH_COLUMN:
        sentence = sentence.replace("data.column=", "--column ")
    flags = _FLAG.sub(lambda match: f"--{match[1].replace('_', '-')} ", sentence)
    return re.sub(r"--(resume|whole) True", r"--\1", flags)


def with_example(sentence: str, words: Sequence[str]) -> str:
    """A message of the parser, with what would have worked.

    >>> with_example("Unknown option: --steps", ["train", "sqvae", "--steps", "10"])
    'Unknown option: --steps; settings have no dashes: train.steps=10'
    """
    sentence = sentence.rstrip(".")
    if unknown := re.search(r"Unknown option: --([\w.-]+)", sentence):
        if setting := _setting(unknown[1], words):
            return f"{sentence}; settings have no dashes: {setting}"
        return sentence
    if words and words[0] in app and "requires an argument" in sentence:
        documented = app[words[0]].default_command.__doc__ or ""
        examples = re.findall(rf"^\s+(hqvae {words[0]} .+)$", documented, re.MULTILINE)
        if examples:
            return f"{sentence}, such as: {examples[0]}"
    return sentence


def _setting(option: str, words: Sequence[str]) -> str | None:
    """The `key=value` that somebody meant who wrote `--option value`."""
    from hqvae.overrides import keys_named
    from hqvae.presets import PRESETS

    name = option.replace("-", "_")
    known = [config for preset, config in PRESETS.items() if preset in words]
    keys = keys_named(name, known[0] if known else PRESETS["hqvae"])
    given = [word for word in words if re.fullmatch(rf"--{re.escape(option)}(=.*)?", word)]
    if not keys or not given:
        return None
    after = [*words[words.index(given[0]) + 1 :], "…"]
    value = given[0].partition("=")[2] or after[0]
    return f"{keys[0]}={value}"
