"""A run and vectors → a folder of IDs: an item's codes are its name, and the way back is there."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hqvae.apart import check_apart
from hqvae.coded import coded_source
from hqvae.console import ProgressBar, print_table, scan_bars
from hqvae.data import ArrayDataset, Splits
from hqvae.errors import InputError, printable
from hqvae.files import said_if_full, write_json_lines
from hqvae.ids import RULES, Ids, StoredIds, make_ids, read_ids, write_ids
from hqvae.metrics import IdMeasures, LayerUse, PrefixMeasures, measure_ids
from hqvae.ranks import pick_device
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.trained import open_trained

LEFT_OUT = "left-out.jsonl"
_AT_ONCE = 2**14  # items that are read and coded together
_MEASURED = 2**30  # bytes of vectors that are kept to measure neighbours by


@dataclass(frozen=True)
class IdOptions:
    """What a caller of `identify` chooses.

    rule: what becomes of items with the same codes: none, token (one more token counts them), or
        nearest (all but one move to the nearest free ID)
    existing: folder of IDs that stay as they are; new items are put beside them
    column: of a table, with the items; that of the training, or the only one, when None
    accelerator: auto, cpu or cuda
    """

    rule: str = "token"
    existing: str | None = None
    column: str | None = None
    accelerator: str = "auto"


@dataclass(frozen=True)
class Identified:
    """What came of it.

    ids: of all items
    measures: of the codes, before any rule
    left_out: items that no code can be had of
    """

    ids: Ids
    measures: IdMeasures
    left_out: int


def identify(
    run: str, source: str | None, out: str, options: IdOptions = IdOptions()
) -> Identified:
    """Write `ids.parquet`, `index.json`, `inverse.json` and `manifest.json` into a new folder.

    Args:
        run: folder of a run on vectors
        source: data as for training; the training data when None
        out: folder for the IDs, new
        options: rule, IDs that exist and more

    Raises InputError for a run, data or folder that cannot be used.
    """
    opened = open_trained(run)
    if opened.config.model.axes:
        noun = opened.config.data.modality.noun
        raise InputError(f"run {run!r} is of {noun}s; IDs are of vectors, so hqvae encode is meant")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise InputError(f"out={out!r} already holds files; choose another folder")
    device = pick_device(options.accelerator)
    existing = _existing(opened, options)
    coded, indexes = coded_source(opened, source, options.column)
    check_apart(out, coded.config.source, tables=True)
    with scan_bars() as progress:
        splits = coded.open_splits(indexes, opened.config.model.channels, progress=progress)
    tokenizer = Tokenizer(opened.load_model().to(device))
    with said_if_full(out, "the same command goes on into another folder"):
        found = _Items.read(tokenizer, splits)
        sizes = [place.codebook_size for place in tokenizer.layout.layers]
        measures = measure_ids(found.codes, sizes, found.labels, found.vectors)
        stored = None if existing is None else existing.ids
        ids = make_ids(
            found.keys, found.codes, found.candidates, options.rule, stored, codebook_sizes=sizes
        )
        made = {"model": opened.weights_sha256(), "source": coded.config.source}
        write_ids(out, ids, _labels(ids, found, existing), made, measures.entry())
        if found.left_out:
            write_json_lines(Path(out) / LEFT_OUT, found.left_out)
    return Identified(ids, measures, len(found.left_out))


def _existing(run: Run, options: IdOptions) -> StoredIds | None:
    """IDs that stay. Raises InputError for those of another model."""
    if options.rule not in RULES or options.existing is None:
        return None
    stored = read_ids(options.existing)
    if stored.made.get("model") != run.weights_sha256():
        raise InputError(
            f"the IDs in {options.existing!r} are of another model than run {str(run.path)!r}; "
            "expected those of this run, whose codebooks have not changed"
        )
    return stored


def _labels(ids: Ids, found: "_Items", existing: StoredIds | None) -> list[int | str | None] | None:
    """In the order of the IDs: those that exist first."""
    if found.labels is None and (existing is None or existing.labels is None):
        return None
    known: dict[str, int | str | None] = {}
    if existing is not None and existing.labels is not None:
        known.update(zip(existing.ids.keys, existing.labels))
    known.update(zip(found.keys, found.labels or ()))
    return [known.get(key) for key in ids.keys]


class _Items:
    """All items of a data set that have codes."""

    def __init__(self, tokenizer: Tokenizer, splits: Splits):
        self.tokenizer = tokenizer
        self.splits = splits
        self.keys: list[str] = []
        self.codes = torch.zeros(0, len(tokenizer.layout.layers), dtype=torch.long)
        self.labels: list[int | str | None] | None = None
        self.vectors: Tensor | None = None
        self.left_out: list[dict[str, str]] = []
        self.places: list[tuple[ArrayDataset, np.ndarray]] = []

    @classmethod
    def read(cls, tokenizer: Tokenizer, splits: Splits) -> "_Items":
        """Read and code them, with a bar."""
        items = cls(tokenizer, splits)
        total = sum(map(len, splits.values()))
        with_labels = any(dataset.labels is not None for dataset in splits.values())
        keeps = total * tokenizer.model.config.channels * 4 <= _MEASURED
        labels: list[int | str | None] = []
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        with closing(items._blocks()) as blocks, ProgressBar(total, 0, quiet=False) as bar:
            for dataset, numbers, signal, done in blocks:
                codes.append(torch.stack(tokenizer.encode_batch(signal), 1))
                items.keys += [printable(dataset.keys[i]) for i in numbers]
                of_items = dataset.labels
                labels += [None if of_items is None else of_items[i] for i in numbers]
                vectors += [signal] if keeps else []
                items.places.append((dataset, numbers))
                bar.show(done, f"{done:,} of {total:,} items")
        items.left_out = splits.left_out()
        if not codes:
            raise InputError("none of the items has a vector that can be used")
        items.codes = torch.cat(codes)
        items.labels = labels if with_labels else None
        items.vectors = torch.cat(vectors) if keeps else None
        return items

    def _blocks(self) -> Generator[tuple[ArrayDataset, np.ndarray, Tensor, int], None, None]:
        """(data, numbers of items, their signals, items so far)."""
        done = 0
        for dataset in self.splits.values():
            assert isinstance(dataset, ArrayDataset)
            for start in range(0, len(dataset), _AT_ONCE):
                stop = min(len(dataset), start + _AT_ONCE)
                done += stop - start
                numbers, raw = dataset.readable(np.arange(start, stop))
                if len(numbers):
                    yield dataset, numbers, dataset.signal(raw), done

    def candidates(self, rows: Int64[Tensor, "q"], count: int) -> tuple[Tensor, Tensor]:
        """The IDs nearest to items of these numbers: codes [q, B, L] and errors [q, B]."""
        ends = np.cumsum([len(numbers) for _, numbers in self.places])
        parts = []
        for row in rows.tolist():
            block = int(np.searchsorted(ends, row, side="right"))
            dataset, numbers = self.places[block]
            place = row - int(ends[block] - len(numbers))
            raw = dataset.readable(numbers[place : place + 1])[1]
            parts.append(dataset.signal(raw))
        model = self.tokenizer.model
        (level,) = model.levels

        def near(x: Tensor) -> tuple[Tensor, Tensor]:
            z_e = level.project_in(model.features(x)[0], None)
            return level.quantizer.candidates(z_e, count)

        codes, errors = self.tokenizer.in_batches(torch.cat(parts), near)
        return codes, errors


def print_measures(found: Identified) -> None:
    """The codes before any rule, as tables on standard output."""
    measures = found.measures
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
