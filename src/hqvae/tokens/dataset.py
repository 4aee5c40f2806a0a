"""TokenDataset: a folder of tokens for a training loop of one's own, in PyTorch.

Parquet is for keeping and exchange; to be read at random it is laid out once as Arrow files beside
the shards (`.arrow/`), which are memory-mapped: what is not looked at takes no memory, and the
processes of a machine share what is.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from hqvae import ranks
from hqvae.errors import InputError, nearest_name
from hqvae.files import atomic_write

from .layout import Layout
from .manifest import ShardFile, TokenFolder
from .shards import Label, Row, read_shard, writer_name
from .tokens import Tokens
from .view import View
from .views import VIEWS
from .vocabulary import Vocabulary

_CACHE = ".arrow"
_NO_LABEL = -1  # in a batch, of an item that has none


class TokenDataset(Dataset[dict[str, Any]]):
    """The items of a split, each as {"tokens", "key", "label"} (the last where there are labels).

    Without a view `tokens` are L tensors [*S_l], coarse to fine; with one, the sequence it makes.
    A `DataLoader` may have any number of workers: each item comes once per epoch in all.

    Args:
        folder: that `hqvae encode` wrote
        split: train, validation or test
        view: of `hqvae.tokens`, or the name of one (`by_layer`, `by_position`, `delay`,
            `per_layer`), then with one vocabulary for all layers
        seed: shuffles; None leaves items in order
        rank, world_size: of this process and how many there are, which share the items; those of
            `torch.distributed` when None
        even: give every process as many items, and leave out up to `world_size` − 1: for DDP,
            which waits where one has fewer
        cache: folder for the memory-mapped copy; beside the shards when None

    Raises InputError for tokens that are not complete or damaged, and for names that do not exist.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        view: View | str | None = None,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool = False,
        cache: str | Path | None = None,
    ):
        self.folder = TokenFolder(folder)
        self.layout: Layout = self.folder.manifest.layout
        self.view = _view(view, self.layout)
        self.seed = seed
        self.rank = ranks.rank() if rank is None else rank
        self.world_size = ranks.world_size() if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank={rank}: expected 0 to {self.world_size - 1}")
        shards = [shard for shard in self.folder.split(split).shards if shard.rows]
        self._ends = np.cumsum([0, *(shard.rows for shard in shards)])
        self._count = int(self._ends[-1])
        if even:
            self._count -= self._count % self.world_size
        place = self.folder.path / _CACHE if cache is None else Path(cache)
        self._paths = [_arrow_file(self.folder, shard, place) for shard in shards]
        # Shared with workers that live on from one epoch to the next.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._open: dict[int, _Columns] = {}

    # -------------------------------------------------------------------------------- items

    def __len__(self) -> int:
        """Items of this process."""
        return len(range(self.rank, self._count, self.world_size))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The i-th item of this process in the order of the epoch."""
        row = self.row(i)
        codes = row.tokens.codes
        item: dict[str, Any] = {
            "tokens": codes if self.view is None else self.view.forward(list(codes)),
            "key": row.key,
        }
        return item if self.labels is None else {**item, "label": row.label}

    def row(self, i: int) -> Row:
        """The same with its sizes: `Tokenizer.decode([dataset.row(i).tokens])` shows it."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        place = self.rank + (i % len(self)) * self.world_size
        if self.seed is not None:
            place = int(_shuffled(int(self._ends[-1]), self.seed, int(self._epoch))[place])
        shard = int(np.searchsorted(self._ends, place, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = _Columns(self._paths[shard], self.layout)
        return self._open[shard].row(place - int(self._ends[shard]))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew: the order is a function of seed and epoch, in all workers."""
        self._epoch.fill_(epoch)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of items of any lengths, for `DataLoader(collate_fn=…)`.

        {"tokens" [B, N], "lengths" [B], "key", "label"}: sequences are followed by `pad` (0 where
        the view has no vocabulary); items without a label have −1. Raises InputError without a
        view.
        """
        if self.view is None:
            raise InputError("items without a view are no sequences; expected view='by_layer' …")
        sequences = [item["tokens"] for item in items]
        vocabulary = self.view.vocabulary
        padding = 0 if vocabulary is None else vocabulary.id("pad")
        # Time comes last in a view, and first where torch pads.
        padded = pad_sequence([one.movedim(-1, 0) for one in sequences], True, padding)
        batch = {
            "tokens": padded.movedim(1, -1),
            "lengths": torch.tensor([one.shape[-1] for one in sequences]),
            "key": [item["key"] for item in items],
        }
        if self.labels is None:
            return batch
        return {**batch, "label": _label_batch([item["label"] for item in items])}

    # ---------------------------------------------------------------------------------- about

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Of the view."""
        return None if self.view is None else self.view.vocabulary

    @property
    def labels(self) -> dict[str, Any] | None:
        """{"type", "names"} of the items' labels; None where there are none."""
        return self.folder.manifest.made["data"]["labels"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # another process opens its own


def _view(view: View | str | None, layout: Layout) -> View | None:
    if not isinstance(view, str):
        return view
    if view not in VIEWS:
        raise InputError(f"view {view!r} does not exist; {nearest_name(view, VIEWS)}")
    return VIEWS[view](layout, Vocabulary(layout))


def _label_batch(labels: Sequence[Label]) -> Tensor | list[Label]:
    """Numbers as a tensor, names as they are."""
    if any(isinstance(label, str) for label in labels):
        return list(labels)
    return torch.tensor([_NO_LABEL if label is None else label for label in labels])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


# ------------------------------------------------------------------------------ on disk


def _arrow_file(folder: TokenFolder, shard: ShardFile, cache: Path) -> Path:
    """The memory-mapped copy of a shard, written where it is not there yet.

    Raises InputError for a damaged shard, and a folder that cannot be written.
    """
    path = cache / f"{shard.sha256[:32]}.arrow"
    if path.exists():
        return path
    table = read_shard(folder.check(shard)).combine_chunks()
    try:
        with atomic_write(path, writer_name()) as temporary:
            feather.write_feather(table, temporary, compression="uncompressed")
    except PermissionError as error:
        raise InputError(
            f"{cache} cannot be written, where tokens are laid out to be read at random; "
            "expected cache=FOLDER that can"
        ) from error
    return path


class _Lists(NamedTuple):
    """A column of lists: those of row i are values[offsets[i] : offsets[i + 1]]."""

    offsets: np.ndarray
    values: np.ndarray

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class _Columns:
    """The columns of one memory-mapped shard."""

    def __init__(self, path: Path, layout: Layout):
        self.layout = layout
        table = feather.read_table(path, memory_map=True)
        columns = {name: table.column(name).chunk(0) for name in table.column_names}
        self.keys = columns["key"]
        self.labels = columns.get("label")
        self.original_sizes = _lists(columns["original_size"])
        self.sizes = _lists(columns["size"])
        self.codes = [_lists(columns[f"codes_{i}"]) for i in range(len(layout.layers))]

    def row(self, i: int) -> Row:
        size = tuple(self.sizes.row(i).tolist())
        shapes = self.layout.shapes(self.layout.coarsest(size))
        codes = tuple(
            torch.from_numpy(of_layer.row(i).astype(np.int64)).reshape(shape)
            for of_layer, shape in zip(self.codes, shapes)
        )
        label = None if self.labels is None else self.labels[i].as_py()
        original_size = tuple(self.original_sizes.row(i).tolist())
        return Row(self.keys[i].as_py(), label, original_size, Tokens(codes, size))


def _lists(column: pa.ListArray) -> _Lists:
    return _Lists(column.offsets.to_numpy(), column.values.to_numpy())
