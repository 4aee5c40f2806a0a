"""A run and vectors → a folder of IDs: an item's codes are its name, and the way back is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqvae.apart import check_apart
from hqvae.coded import coded_source
from hqvae.console import scan_bars
from hqvae.data.sources import Label
from hqvae.errors import InputError, nearest_name, printable
from hqvae.files import said_if_full, write_json_lines
from hqvae.ids import RULES, Ids, StoredIds, make_ids, read_ids, write_ids
from hqvae.item_codes import ItemCodes
from hqvae.metrics import IdMeasures, measure_ids
from hqvae.ranks import pick_device
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.trained import load_with_digest, open_trained

LEFT_OUT = "left-out.jsonl"


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
    measures: of all items' codes, before any rule
    explained: share of the vectors' variance that the codes explain; None beside existing IDs, of
        whose items there are no vectors
    explained_by_ids: the same of the IDs, which the rule `nearest` moves
    existing: IDs that were there before
    new_tokens: of the place after the codes, which a model of the existing IDs does not know
    left_out: items that no code can be had of
    """

    ids: Ids
    measures: IdMeasures
    explained: float | None
    explained_by_ids: float | None
    existing: int
    new_tokens: tuple[str, ...]
    left_out: int

    @property
    def moved(self) -> int:
        """New items that the rule has moved to a free ID."""
        new = slice(self.existing, None)
        return int((self.ids.codes[new] != self.ids.model_codes[new]).any(1).sum())

    def entry(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.measures.entry(),
            "explained": self.explained,
            "explained_by_ids": self.explained_by_ids,
            "moved": self.moved,
        }


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
    opened = _opened(run, out, options.rule)
    device = pick_device(options.accelerator)
    weights, model = load_with_digest(opened)
    existing = _existing(opened, weights, options)
    coded, indexes = coded_source(opened, source, options.column)
    check_apart(out, coded.config.source, tables=True)
    with scan_bars() as progress:
        splits = coded.open_splits(indexes, opened.config.model.channels, progress=progress)
    tokenizer = Tokenizer(model.to(device))
    with said_if_full(out, "the same command goes on into another folder"):
        found = ItemCodes.read(tokenizer, splits)
        ids = make_ids(
            found.keys,
            found.codes,
            found.candidates,
            options.rule,
            None if existing is None else existing.ids,
            codebook_sizes=found.codebook_sizes,
        )
        _check_numbered(ids, found, coded.config.source)
        labels = _labels(ids, found, existing)
        left_out = splits.left_out()
        identified = _identified(ids, found, existing, labels, len(left_out))
        made = {"model": weights, "source": coded.config.source}
        write_ids(out, ids, labels, made, identified.entry())
        if left_out:
            write_json_lines(Path(out) / LEFT_OUT, left_out)
    return identified


def _opened(run: str, out: str, rule: str) -> Run:
    """The run. Raises InputError where it is of no vectors, and for `rule` or `out`."""
    if rule not in RULES:
        raise InputError(f"rule {rule!r} does not exist; {nearest_name(rule, RULES)}")
    opened = open_trained(run)
    if opened.config.model.axes:
        raise InputError(
            f"run {run!r} gives an item codes at several positions; IDs are of vectors, so "
            "hqvae encode is meant"
        )
    if Path(out).is_file():
        raise InputError(f"out={out!r} is a file; expected a new folder")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise InputError(f"out={out!r} already holds files; choose another folder")
    return opened


def _identified(
    ids: Ids,
    found: ItemCodes,
    existing: StoredIds | None,
    labels: list[Label] | None,
    left_out: int,
) -> Identified:
    old = None if existing is None else existing.ids
    extra = ids.vocabulary.extra
    known = extra if old is None else old.vocabulary.extra
    vectors = found.vectors if old is None else None  # of the others there is none
    explained = found.explained(ids.model_codes) if old is None else None
    moved = old is None and ids.rule == "nearest"
    return Identified(
        ids,
        measure_ids(ids.model_codes, found.codebook_sizes, labels, vectors),
        explained,
        found.explained(ids.codes) if moved else explained,
        0 if old is None else len(old),
        tuple(ids.vocabulary.of_place(len(found.codebook_sizes))[known:]) if extra > known else (),
        left_out,
    )


def about_ids(found: Identified) -> list[str]:
    """What is to be known of IDs beside their measures, in sentences."""
    sentences = []
    if found.explained is not None:
        sentences.append(f"The codes explain {found.explained:.1%} of the variance.")
    if found.moved:
        sentences.append(f"{found.moved:,} item(s) have moved to a free ID.")
    if found.moved and found.explained_by_ids is not None:
        sentences[-1] = f"{sentences[-1][:-1]}: the IDs explain {found.explained_by_ids:.1%}."
    if found.existing:
        new = len(found.ids) - found.existing
        sentences.append(f"{new:,} item(s) are new beside {found.existing:,} that had an ID.")
    if found.ids.changed:
        sentences.append(
            f"{len(found.ids.changed):,} item(s) have other codes now, such as "
            f"{printable(found.ids.changed[0])!r}: their vectors have changed, and their IDs stay."
        )
    if found.new_tokens:
        sentences.append(
            f"{len(found.new_tokens):,} token(s) are new, from {found.new_tokens[0]} on, which a "
            "model of the existing IDs does not know."
        )
    return sentences


def _check_numbered(ids: Ids, found: ItemCodes, source: str) -> None:
    """Raises InputError where rows were taken for others that have IDs, and have other codes."""
    numbered = any(dataset.index.is_numbered for dataset in found.splits.values())
    if numbered and ids.changed:
        raise InputError(
            f"data {source!r} names its items by row number, and {len(ids.changed):,} of them have "
            "other codes than the items of these numbers that have IDs; expected names, such as a "
            "column id"
        )


def _existing(run: Run, weights: str, options: IdOptions) -> StoredIds | None:
    """IDs that stay. Raises InputError for those of another model."""
    if options.existing is None:
        return None
    stored = read_ids(options.existing)
    if stored.made.get("model") != weights:
        raise InputError(
            f"the IDs in {options.existing!r} are of another model than run {str(run.path)!r}; "
            "expected those of this run, whose codebooks have not changed"
        )
    return stored


def _labels(ids: Ids, found: ItemCodes, existing: StoredIds | None) -> list[Label] | None:
    """In the order of the IDs: those that exist first."""
    if found.labels is None and (existing is None or existing.labels is None):
        return None
    known: dict[str, Label] = {}
    if existing is not None and existing.labels is not None:
        known.update(zip(existing.ids.keys, existing.labels))
    known.update(zip(found.keys, found.labels or ()))
    return [known.get(key) for key in ids.keys]
