"""A folder of IDs, written and read side by side.

    ids.parquet     key, label where items have one, codes_0, …, extra where there is one, id (its
                    tokens), and model_codes_0, … by the rule `nearest`, which moves items
    index.json      {"key": ["<a_12>", "<b_7>", …], …}, as generative recommenders read it
    inverse.json    {"<a_12><b_7>…": ["key", …], …}
    manifest.json   what made them, what they are, their measures, and the files' checksums

The manifest is written last: without it a folder holds no IDs. Nothing is written over IDs that
are there, so that no ID is lost; appended ones go into a folder of their own, with the old ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError

from hqvae.errors import InputError
from hqvae.files import read_json, write_json
from hqvae.tokens.manifest import file_sha256
from hqvae.versions import versions

from .checks import check_keys, checked_codes
from .ids import Ids
from .json_files import write_index, write_inverse
from .resolve import RULES
from .table import Label, label_type, read_table, write_table
from .vocabulary import IdVocabulary

MANIFEST = "manifest.json"
TABLE = "ids.parquet"
FORMAT = 1
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _File:
    bytes: _Count
    sha256: str


@dataclass(frozen=True)
class _Content:
    """`manifest.json`; there may be more in it."""

    format: int
    versions: dict[str, str]
    made: dict[str, Any]
    rule: str
    codebook_sizes: Annotated[list[_Positive], Field(min_length=1)]
    extra: _Count
    items: _Positive
    ids: _Positive
    labels: Literal["integer", "string"] | None
    measures: dict[str, Any] | None
    files: dict[str, _File]


_CONTENT = TypeAdapter(_Content)


@dataclass(frozen=True, eq=False)
class StoredIds:
    """What a folder of IDs holds.

    labels: of the items, None where they have none
    made: what made them, as the writer was told
    measures: as the writer was told
    """

    ids: Ids
    labels: list[Label] | None
    made: dict[str, Any]
    measures: dict[str, Any] | None
    versions: dict[str, str]


def write_ids(
    folder: str | Path,
    ids: Ids,
    labels: Sequence[Label] | None = None,
    made: Mapping[str, Any] | None = None,
    measures: Mapping[str, Any] | None = None,
) -> None:
    """Write IDs into a folder that holds none.

    Args:
        folder: which is made where it is not there
        ids: of `make_ids`
        labels: of the items in the order of `ids.keys`, integers or strings, None for one without
        made: what made them in plain values, such as the digest of the model
        measures: in plain values, as `IdMeasures.entry()`

    Raises InputError for a folder that holds IDs, and for labels of several kinds.

    >>> from tempfile import TemporaryDirectory
    >>> from hqvae.ids import make_ids
    >>> codes = torch.tensor([[12, 7], [3, 0]])
    >>> ids = make_ids(["song", "film"], codes, None, "none", codebook_sizes=(16, 8))
    >>> with TemporaryDirectory() as folder:
    ...     write_ids(folder, ids, labels=["music", "cinema"])
    ...     print((Path(folder) / "index.json").read_text(), end="")
    ...     stored = read_ids(folder)
    {
    "song": ["<a_12>", "<b_7>"],
    "film": ["<a_3>", "<b_0>"]
    }
    >>> stored.ids.keys, stored.labels
    (('song', 'film'), ['music', 'cinema'])
    """
    path = Path(folder)
    if (path / MANIFEST).exists():
        raise InputError(f"{str(folder)!r} has a {MANIFEST} already; expected a new folder")
    kind = None if labels is None else label_type(labels, len(ids))
    write_table(path / TABLE, ids, labels, kind)
    write_index(path / "index.json", ids)
    count = write_inverse(path / "inverse.json", ids)
    files = {
        name: {"bytes": (path / name).stat().st_size, "sha256": file_sha256(path / name)}
        for name in (TABLE, "index.json", "inverse.json")
    }
    content = {
        "format": FORMAT,
        "versions": versions(),
        "made": dict(made or {}),
        "rule": ids.rule,
        "codebook_sizes": list(ids.vocabulary.codebook_sizes),
        "extra": ids.vocabulary.extra,
        "items": len(ids),
        "ids": count,
        "labels": kind,
        "measures": None if measures is None else dict(measures),
        "files": files,
    }
    write_json(path / MANIFEST, content)


def read_ids(folder: str | Path) -> StoredIds:
    """The IDs of a folder.

    Raises InputError for a folder that holds none, for IDs that another version wrote, and for
    files that are missing or damaged.
    """
    path = Path(folder)
    content = _read_manifest(path)
    for name, file in content.files.items():
        _check_file(path / name, file)
    try:
        table = read_table(path / TABLE, content.codebook_sizes, content.labels)
        ids = _checked(table.keys, table.places, table.model_codes, content)
    except ValueError as error:
        raise InputError(f"{path / TABLE} is damaged: {error}") from error
    return StoredIds(ids, table.labels, content.made, content.measures, content.versions)


def _read_manifest(path: Path) -> _Content:
    if not (path / MANIFEST).is_file():
        raise InputError(
            f"{str(path)!r} holds no IDs: it has no {MANIFEST}; expected a folder of IDs"
        )
    try:
        content = read_json(path / MANIFEST)
        made_in = content.get("format")
        if isinstance(made_in, int) and made_in != FORMAT:
            raise InputError(
                f"{path / MANIFEST} has format {made_in}, and this version of hqvae reads format "
                f"{FORMAT}; use the version that wrote it"
            )
        found = _CONTENT.validate_python(content)
        if found.rule not in RULES or TABLE not in found.files:
            raise ValueError(f"it names rule {found.rule!r} and files {sorted(found.files)}")
        return found
    except InputError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path / MANIFEST} holds no IDs: {where}: {first['msg']}") from error
    except ValueError as error:
        raise InputError(f"{path / MANIFEST} is damaged: {error}") from error


def _check_file(path: Path, file: _File) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing, which {MANIFEST} names; expected the whole folder")
    size = path.stat().st_size
    if size != file.bytes:
        raise InputError(f"{path} is damaged: it has {size:,} bytes; expected {file.bytes:,}")
    if file_sha256(path) != file.sha256:
        raise InputError(f"{path} is damaged: it has not the checksum that {MANIFEST} names")


def _checked(
    keys: Sequence[str], places: torch.Tensor, model_codes: torch.Tensor | None, content: _Content
) -> Ids:
    """The IDs of a table. Raises ValueError where they are not those of the manifest."""
    vocabulary = IdVocabulary(tuple(content.codebook_sizes), content.extra)
    check_keys(keys)
    if len(keys) != content.items:
        raise ValueError(f"it has {len(keys):,} items, and {MANIFEST} says {content.items:,}")
    layers = len(vocabulary.codebook_sizes)
    checked_codes(places, vocabulary.sizes, content.items)
    codes = places[:, :layers]
    if model_codes is not None:
        checked_codes(model_codes, vocabulary.codebook_sizes, content.items)
    return Ids(
        keys=tuple(keys),
        codes=codes,
        extra=places[:, layers] if content.extra else None,
        vocabulary=vocabulary,
        rule=content.rule,
        model_codes=codes if model_codes is None else model_codes,
    )
