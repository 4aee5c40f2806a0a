"""A run and vectors → a folder of IDs: an item's codes are its name, and the way back is there."""

from dataclasses import dataclass
from pathlib import Path

from hqvae.apart import check_apart
from hqvae.coded import coded_source
from hqvae.console import scan_bars
from hqvae.data.sources import Label
from hqvae.errors import InputError, nearest_name
from hqvae.files import said_if_full, write_json_lines
from hqvae.ids import RULES, Ids, StoredIds, make_ids, read_ids, write_ids
from hqvae.item_codes import ItemCodes
from hqvae.metrics import IdMeasures
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
    if options.rule not in RULES:
        raise InputError(
            f"rule {options.rule!r} does not exist; {nearest_name(options.rule, RULES)}"
        )
    opened = open_trained(run)
    if opened.config.model.axes:
        noun = opened.config.data.modality.noun
        raise InputError(f"run {run!r} is of {noun}s; IDs are of vectors, so hqvae encode is meant")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise InputError(f"out={out!r} already holds files; choose another folder")
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
        measures = found.measures()
        stored = None if existing is None else existing.ids
        ids = make_ids(
            found.keys,
            found.codes,
            found.candidates,
            options.rule,
            stored,
            codebook_sizes=found.codebook_sizes,
        )
        made = {"model": weights, "source": coded.config.source}
        write_ids(out, ids, _labels(ids, found, existing), made, measures.entry())
        left_out = splits.left_out()
        if left_out:
            write_json_lines(Path(out) / LEFT_OUT, left_out)
    return Identified(ids, measures, len(left_out))


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
