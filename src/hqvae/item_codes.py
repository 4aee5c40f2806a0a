"""The codes of vectors, which are their IDs: read, measured, and shown."""

from collections.abc import Generator, Mapping
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hqvae.console import ProgressBar, print_table
from hqvae.data import ArrayDataset, Dataset
from hqvae.data.sources import Label
from hqvae.errors import InputError, printable
from hqvae.metrics import IdMeasures, LayerUse, PrefixMeasures, measure_ids
from hqvae.tokenizer import Tokenizer
from hqvae.topdown import NearestCodes, walk

_AT_ONCE = 2**14  # items that are read and coded together
_MEASURED = 2**30  # bytes of vectors that are kept to measure neighbours by
Block = tuple[ArrayDataset, np.ndarray, Tensor, int]


class ItemCodes:
    """All items of a data set that have codes."""

    def __init__(self, tokenizer: Tokenizer, splits: Mapping[str, Dataset]):
        self.tokenizer = tokenizer
        self.splits = splits
        self.keys: list[str] = []
        self.codes = torch.zeros(0, len(tokenizer.layout.layers), dtype=torch.long)
        self.labels: list[Label] | None = None
        self.vectors: Tensor | None = None
        self.places: list[tuple[ArrayDataset, np.ndarray]] = []

    @classmethod
    def read(
        cls, tokenizer: Tokenizer, splits: Mapping[str, Dataset], limit: int | None = None
    ) -> "ItemCodes":
        """Read and code them, or so many of each split, with a bar."""
        items = cls(tokenizer, splits)
        total = sum(min(len(dataset), limit or len(dataset)) for dataset in splits.values())
        with_labels = any(dataset.labels is not None for dataset in splits.values())
        keeps = total * tokenizer.model.config.channels * 4 <= _MEASURED
        labels: list[Label] = []
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        with closing(items._blocks(limit)) as blocks, ProgressBar(total, 0, quiet=False) as bar:
            for dataset, numbers, signal, done in blocks:
                codes.append(torch.stack(tokenizer.encode_batch(signal), 1))
                items.keys += [printable(dataset.keys[i]) for i in numbers.tolist()]
                of_items = dataset.labels
                labels += [None if of_items is None else of_items[i] for i in numbers.tolist()]
                vectors += [signal] if keeps else []
                items.places.append((dataset, numbers))
                bar.show(done, f"{done:,} of {total:,} items")
        if not codes:
            raise InputError("none of the items has a vector that can be used")
        items.codes = torch.cat(codes)
        items.labels = labels if with_labels else None
        items.vectors = torch.cat(vectors) if keeps else None
        return items

    @property
    def codebook_sizes(self) -> list[int]:
        return [place.codebook_size for place in self.tokenizer.layout.layers]

    def measures(self) -> IdMeasures:
        """The codes as IDs, before any rule."""
        return measure_ids(self.codes, self.codebook_sizes, self.labels, self.vectors)

    def explained(self, codes: Int64[Tensor, "N L"]) -> float | None:
        """Share of the variance, in the data's unit, that codes explain, of up to 2^14 items.

        None where the items do not differ.
        """
        step = -(-len(codes) // _AT_ONCE)
        x = self._signals(torch.arange(0, len(codes), step))
        unit = next(iter(self.splits.values())).unit
        model = self.tokenizer.model
        (x_hat,) = self.tokenizer.in_batches(
            codes[::step], lambda of_batch: [model.decode(of_batch.unbind(1))]
        )
        variance = float(unit.mse(x, x.mean(0, keepdim=True).expand_as(x)).double().mean())
        return 1 - float(unit.mse(x, x_hat).double().mean()) / variance if variance else None

    def _blocks(self, limit: int | None) -> Generator[Block, None, None]:
        """(data, numbers of items, their signals, items so far)."""
        done = 0
        for dataset in self.splits.values():
            assert isinstance(dataset, ArrayDataset)
            count = min(len(dataset), limit or len(dataset))
            spread = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
            for start in range(0, count, _AT_ONCE):
                wanted = spread[start : start + _AT_ONCE]
                done += len(wanted)
                numbers, raw = dataset.readable(wanted)
                if len(numbers):
                    yield dataset, numbers, dataset.signal(raw), done

    def _signals(self, rows: Int64[Tensor, "q"]) -> Tensor:
        """What the networks see of items of these numbers."""
        if self.vectors is not None:
            return self.vectors[rows]
        ends = np.cumsum([len(numbers) for _, numbers in self.places])
        parts = []
        for row in rows.tolist():
            block = int(np.searchsorted(ends, row, side="right"))
            dataset, numbers = self.places[block]
            place = row - int(ends[block] - len(numbers))
            raw = dataset.readable(numbers[place : place + 1])[1]
            parts.append(dataset.signal(raw))
        return torch.cat(parts)

    def candidates(self, rows: Int64[Tensor, "q"], count: int) -> tuple[Tensor, Tensor]:
        """The IDs nearest to items of these numbers: codes [q, B, L] and errors [q, B]."""
        model = self.tokenizer.model
        (level,) = model.levels

        def near(x: Tensor) -> tuple[Tensor, Tensor]:
            z_e = walk(model.levels, NearestCodes(model.features(x)))[1][0].z_e
            return level.quantizer.candidates(z_e, count)

        codes, errors = self.tokenizer.in_batches(self._signals(rows), near)
        return codes, errors


def print_ids(measures: IdMeasures) -> None:
    """The codes before any rule, as tables on standard output."""
    whole = measures.collisions
    cells = {"items": f"{whole.items:,}", "own ID": f"{whole.alone:.1%}"}
    if measures.without_duplicates is not None:
        cells["duplicates aside"] = f"{measures.without_duplicates.alone:.1%}"
    cells["largest collision"] = str(whole.largest)
    print_table("codes, before the rule", list(cells), [list(cells.values())])
    rows = [_cells(*both) for both in zip(measures.layers, measures.prefixes)]
    print_table("layer by layer", list(rows[0]), [list(row.values()) for row in rows])


def _cells(layer: LayerUse, prefix: PrefixMeasures) -> dict[str, str]:
    cells = {
        "layer": str(prefix.layers - 1),
        "K": str(layer.codebook_size),
        "perplexity": f"{layer.perplexity:.1f}",
        "used": str(layer.used),
        "Gini": f"{layer.gini:.2f}",
        "prefixes": f"{prefix.distinct:,}",
        "items each": f"{prefix.mean_items:.2f}",
    }
    if prefix.purity is not None:
        purity = prefix.purity
        cells["purity (chance)"] = f"{purity.all_items:.2f} ({purity.all_items_chance:.2f})"
    if prefix.neighbours is not None:
        neighbours = prefix.neighbours
        cells["neighbours (chance)"] = f"{neighbours.recall:.3f} ({neighbours.chance:.3f})"
    return cells
