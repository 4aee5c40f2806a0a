"""manifest.json: what a folder of tokens is made of, and how far it has come.

format, complete, versions, source
made        all that rows depend on: model, layers, data, way of computing, size of shards
splits      items, rows and shards of every split
left_out    how many items, and why; `left-out.jsonl` names them
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hqvae.errors import InputError, nearest_name
from hqvae.files import create_json, read_json, write_json

from .content import Content, ShardFile, SplitFiles, check_content
from .layout import LayerPlace, Layout
from .shards import Shard
from .tokens import smallest_type

NAME = "manifest.json"
LEFT_OUT = "left-out.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    made: dict[str, Any]
    """What rows depend on, as plain values."""
    source: str
    """Where the data lay."""
    versions: dict[str, str]
    """Of the programs that wrote it."""
    complete: bool
    splits: dict[str, SplitFiles]
    """By name; empty until all is complete."""
    left_out: dict[str, int]
    """Reason → items."""

    @property
    def layout(self) -> Layout:
        """Where codes stand."""
        names = ("level", "layer", "stride", "codebook_size")
        places = [LayerPlace(*(layer[name] for name in names)) for layer in self.made["layers"]]
        return Layout(tuple(places), self.made["axes"])

    @property
    def rows(self) -> int:
        """Of all splits."""
        return sum(split.rows for split in self.splits.values())

    def id(self) -> str:
        """Of `made`, which every shard repeats."""
        text = json.dumps(self.made, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it, atomically."""
        write_json(folder / NAME, self._content())

    def create(self, folder: Path) -> bool:
        """Write it into a folder that has none; False where it has one."""
        return create_json(folder / NAME, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "versions": self.versions,
            "source": self.source,
            "made": self.made,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "left_out": {"reasons": self.left_out, "list": LEFT_OUT if self.left_out else None},
        }


def describe_layers(layout: Layout) -> list[dict[str, Any]]:
    """The layers as a manifest has them, with the type of their column."""
    return [
        {**asdict(place), "type": smallest_type(place.codebook_size).name}
        for place in layout.layers
    ]


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder of tokens.

    Raises InputError where there is none, or one that this version cannot read.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise InputError(
            f"{str(folder)!r} holds no tokens: it has no {NAME}; "
            "expected a folder that `hqvae encode` wrote"
        )
    try:
        content = read_json(path)
        if "codebook_sizes" in content and "splits" not in content:
            raise InputError(
                f"{str(folder)!r} holds IDs, which `hqvae ids` wrote; "
                "expected tokens, which `hqvae encode` writes"
            )
        made_in = content.get("format")
        if isinstance(made_in, int) and made_in != FORMAT:
            raise InputError(
                f"{path} has format {made_in}, and this version of hqvae reads format {FORMAT}; "
                "use the version that wrote it"
            )
        found = check_content(content)
        _check_plan(found)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return Manifest(
        content["made"],
        found.source,
        found.versions,
        found.complete,
        found.splits,
        found.left_out.reasons,
    )


def _check_plan(content: Content) -> None:
    """Raises ValueError for shards that are not those of the items."""
    items = {name: split.items for name, split in content.made.data.splits.items()}
    shard_items = content.made.shard_items
    # Counted before they are listed: a damaged number may be of any size.
    count = sum(-(-total // shard_items) for total in items.values()) if content.complete else 0
    there = [shard.name for split in content.splits.values() for shard in split.shards]
    if len(there) != count:
        raise ValueError(f"it names {len(there)} shards, and its items fill {count}")
    if there and there != [shard.name for shard in plan_shards(items, shard_items)]:
        raise ValueError("its shards are not those that its items fill")


class TokenFolder:
    """A complete folder of tokens: its manifest, and its shards one by one.

    Raises InputError for a folder that is none, is not complete, or has other files than its
    manifest says.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(path)
        if not self.manifest.complete:
            raise InputError(
                f"the tokens in {str(path)!r} are not complete; "
                "the same `hqvae encode` as before goes on with them"
            )
        self._check_files()

    def split(self, name: str) -> SplitFiles:
        """The shards of a split. Raises InputError for one that is not there."""
        splits = self.manifest.splits
        if name not in splits:
            raise InputError(
                f"the tokens in {str(self.path)!r} have no split {name!r}; "
                f"{nearest_name(name, splits)}"
            )
        return splits[name]

    def check(self, shard: ShardFile) -> Path:
        """The path of a shard. Raises InputError for one that is not as it was written."""
        return check_shard(self.path, shard)

    def shards(self) -> Iterator[tuple[str, ShardFile]]:
        """(split, shard), in order."""
        for name, split in self.manifest.splits.items():
            for shard in split.shards:
                yield name, shard

    def _check_files(self) -> None:
        expected = {shard.name: shard for _, shard in self.shards()}
        there = {path.name for path in self.path.glob("*.parquet")}
        for name, shard in expected.items():
            if name not in there:
                raise InputError(
                    f"shard {self.path / name} is missing, which {NAME} names; "
                    "the same `hqvae encode` as before writes it again"
                )
            _check_size(self.path / name, shard)
        if strange := sorted(there - expected.keys()):
            raise InputError(
                f"{self.path / strange[0]} is no shard that {NAME} names; "
                "rows may be there twice: take it out"
            )


def check_shard(folder: Path, shard: ShardFile) -> Path:
    """The path of a shard. Raises InputError for one that is not as it was written."""
    path = folder / shard.name
    _check_size(path, shard)
    if file_sha256(path) != shard.sha256:
        raise _damaged(path, f"it has not the checksum that {NAME} names")
    return path


def _check_size(path: Path, shard: ShardFile) -> None:
    size = path.stat().st_size
    if size != shard.bytes:
        raise _damaged(path, f"it has {size:,} bytes, and {NAME} says {shard.bytes:,}")


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"shard {path} is damaged: {why}; delete it, and the same `hqvae encode` writes it again"
    )


def file_sha256(path: Path) -> str:
    """The digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def plan_shards(items: dict[str, int], shard_items: int) -> list[Shard]:
    """The shards of splits of so many items.

    >>> [shard.name for shard in plan_shards({"test": 30}, 20)]
    ['test-00000-of-00002.parquet', 'test-00001-of-00002.parquet']
    """
    shards = []
    for split, total in items.items():
        count = -(-total // shard_items)
        for number in range(count):
            start = number * shard_items
            shards.append(Shard(split, number, count, start, min(total, start + shard_items)))
    return shards
