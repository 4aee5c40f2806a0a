"""TokenDataset: a folder of tokens for a training loop of one's own, in PyTorch.

Parquet is for keeping and exchange; to be read at random it is laid out once as Arrow files beside
the shards (`.arrow/`), which are memory-mapped: what is not looked at takes no memory, and the
processes of a machine share what is.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hqvae import ranks
from hqvae.errors import InputError, nearest_name

from .layout import Layout
from .manifest import TokenFolder
from .mapped import MappedShard, arrow_file
from .shards import Label, Row
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
        if (rank is None) != (world_size is None):
            raise InputError(
                f"rank={rank} and world_size={world_size}: expected both, or those of "
                "torch.distributed when neither is given"
            )
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
        self._paths = [arrow_file(self.folder, shard, place) for shard in shards]
        # Shared with workers that live on from one epoch to the next.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._open: dict[int, MappedShard] = {}

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
            self._open[shard] = MappedShard(self._paths[shard], self.layout)
        return self._open[shard].row(place - int(self._ends[shard]))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew: the order is a function of seed and epoch, in all workers."""
        self._epoch.fill_(epoch)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of items of any lengths, for `DataLoader(collate_fn=…)`.

        {"tokens" [B, N], "lengths" [B], "key", "label"}: sequences are followed by `pad` (0 where
        the view has no vocabulary). Of a view [L, T] only the steps T are padded, and of one
        [L, H, W] rows and columns are; then "lengths" are [B, 2].

        Labels that are numbers are a tensor, −1 where an item has none; names are a list, with None
        there. Raises InputError without a view, and where lengths differ and the vocabulary has no
        `pad`.
        """
        if self.view is None:
            raise InputError("items without a view are no sequences; expected view='by_layer' …")
        sequences = [item["tokens"] for item in items]
        tokens, lengths = _padded(sequences, self.view.vocabulary)
        batch = {"tokens": tokens, "lengths": lengths, "key": [item["key"] for item in items]}
        if self.labels is None:
            return batch
        labels = [item["label"] for item in items]
        return {**batch, "label": labels if self.labels["type"] == "string" else _numbers(labels)}

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


def _view(view: Any, layout: Layout) -> View | None:
    if view is None or isinstance(view, View):
        return view
    if not isinstance(view, str):
        raise InputError(f"view={view!r}: expected a view of hqvae.tokens, or the name of one")
    if view not in VIEWS:
        raise InputError(f"view {view!r} does not exist; {nearest_name(view, VIEWS)}")
    return VIEWS[view](layout, Vocabulary(layout))


def _padded(sequences: Sequence[Tensor], vocabulary: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """(sequences in one tensor, their lengths): the first of several axes is that of layers."""
    axes = max(1, sequences[0].dim() - 1)
    lengths = torch.tensor([one.shape[-axes:] for one in sequences])
    longest = lengths.amax(0).tolist()
    if (lengths == lengths[0]).all():
        return torch.stack(list(sequences)), lengths.squeeze(1)
    if vocabulary is not None and "pad" not in vocabulary.special:
        raise InputError(
            f"items of several lengths, up to {longest}, cannot be a batch: the vocabulary of the "
            "view has no special token 'pad'; give it one, or a batch of items of one length"
        )
    padding = 0 if vocabulary is None else vocabulary.id("pad")
    before = sequences[0].shape[:-axes]
    batch = sequences[0].new_full((len(sequences), *before, *longest), padding)
    for whole, one in zip(batch, sequences):
        place = (..., *map(slice, one.shape[-axes:]))
        whole[place] = one
    return batch, lengths.squeeze(1)


def _numbers(labels: Sequence[Label]) -> Tensor:
    return torch.tensor([_NO_LABEL if label is None else label for label in labels])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
