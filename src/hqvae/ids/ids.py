"""IDs of items: keys and codes in, an ID for every item out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from hqvae.errors import InputError, nearest_name

from .checks import check_keys, checked_codes
from .new_items import Candidates, NewItems
from .resolve import RULES
from .vocabulary import IdVocabulary


@dataclass(frozen=True, eq=False)
class Ids:
    """The IDs of N items.

    keys: the items' names, all different
    codes: [N, L], of the IDs
    extra: [N], the token after the codes; None where the rule gives none
    vocabulary: which tokens there are
    rule: what became of items with the same codes, a name of `RULES`
    model_codes: [N, L], which the model gave the items when they got their IDs; `nearest` moves
        some of them
    changed: keys of items that had their ID before, and to which the model now gives other codes
    """

    keys: tuple[str, ...]
    codes: Int64[Tensor, "N L"]
    extra: Int64[Tensor, "N"] | None
    vocabulary: IdVocabulary
    rule: str
    model_codes: Int64[Tensor, "N L"]
    changed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def places(self) -> Int64[Tensor, "N P"]:
        """The IDs as numbers: the codes, and the extra token if there is one."""
        return self.codes if self.extra is None else torch.cat([self.codes, self.extra[:, None]], 1)

    def tokens(self) -> list[tuple[str, ...]]:
        """The IDs as tokens, in the order of `keys`."""
        names = [self.vocabulary.of_place(place) for place in range(self.places.shape[1])]
        columns = [
            map(of_place.__getitem__, numbers.tolist())
            for of_place, numbers in zip(names, self.places.unbind(1))
        ]
        return list(zip(*columns))


def make_ids(
    keys: Sequence[str],
    codes: Integer[Tensor, "n L"],
    candidates: Candidates | None,
    rule: str,
    existing: Ids | None = None,
    *,
    codebook_sizes: Sequence[int],
) -> Ids:
    """An ID for every item, the same in whatever order and batches items come.

    Args:
        keys: the items' names, all different
        codes: the model's, layer by layer
        candidates: asked for the IDs nearest to items, by the rule `nearest` alone: for row numbers
            [q] and a count B → codes [q, B, L] and errors [q, B]; `ResidualQuantizer.candidates`
            of these rows' latents
        rule: `none`, `token` or `nearest`
        existing: IDs that stay as they are, of the same model and rule. Items among them keep
            their ID; those whose codes are others now are named in `changed`
        codebook_sizes: K of every layer

    The result has the existing IDs first, then the new items in the order of `keys`.

    Raises InputError for a rule that does not exist, no keys or duplicate ones, existing IDs of
    another rule or other codebooks, and where `nearest` finds no room or no scipy. Raises
    ValueError for codes that are not of these codebooks.

    >>> codes = torch.tensor([[3, 1], [0, 2], [3, 1]])
    >>> ids = make_ids(["song", "film", "book"], codes, None, "token", codebook_sizes=(4, 4))
    >>> ids.tokens()
    [('<a_3>', '<b_1>', '<c_1>'), ('<a_0>', '<b_2>', '<c_0>'), ('<a_3>', '<b_1>', '<c_0>')]
    >>> more = make_ids(["disc"], codes[:1], None, "token", ids, codebook_sizes=(4, 4))
    >>> more.keys, more.extra, more.vocabulary.size
    (('song', 'film', 'book', 'disc'), tensor([1, 0, 0, 2]), 11)
    """
    if rule not in RULES:
        raise InputError(f"rule {rule!r} does not exist; {nearest_name(rule, RULES)}")
    if rule == "nearest" and candidates is None:
        raise ValueError("rule 'nearest' without candidates; expected a function that gives them")
    keys = list(keys)
    check_keys(keys)
    sizes = tuple(map(int, codebook_sizes))
    array = checked_codes(codes, sizes, len(keys))
    old = _nothing(sizes, rule) if existing is None else existing
    _check_existing(old, sizes, rule)
    known = dict(zip(old.keys, range(len(old))))
    new = [row for row, key in enumerate(keys) if key not in known]
    by_key = np.array(sorted(new, key=keys.__getitem__), dtype=np.int64)
    resolved, extra = RULES[rule](_new_items(old, array, by_key, candidates))
    back = torch.from_numpy(np.argsort(by_key, kind="stable"))  # to the order of rows
    numbers = None if extra is None else _joined(old.extra, torch.from_numpy(extra)[back])
    return Ids(
        keys=(*old.keys, *(keys[row] for row in new)),
        codes=torch.cat([old.codes, torch.from_numpy(resolved)[back]]),
        extra=numbers,
        vocabulary=IdVocabulary(sizes, 0 if numbers is None else int(numbers.max()) + 1),
        rule=rule,
        model_codes=torch.cat([old.model_codes, torch.from_numpy(array[new])]),
        changed=_changed(old, known, keys, array),
    )


def _new_items(
    old: Ids,
    codes: Int64[np.ndarray, "n L"],
    rows: Int64[np.ndarray, "r"],
    candidates: Candidates | None,
) -> NewItems:
    return NewItems(
        codes=codes[rows],
        rows=rows,
        taken=old.codes.numpy(),
        taken_extra=None if old.extra is None else old.extra.numpy(),
        codebook_sizes=old.vocabulary.codebook_sizes,
        candidates=candidates,
    )


def _nothing(sizes: tuple[int, ...], rule: str) -> Ids:
    codes = torch.zeros(0, len(sizes), dtype=torch.long)
    extra = codes.flatten() if rule == "token" else None
    return Ids((), codes, extra, IdVocabulary(sizes), rule, codes)


def _check_existing(existing: Ids, sizes: tuple[int, ...], rule: str) -> None:
    if existing.rule != rule:
        raise InputError(
            f"rule {rule!r} for new items, and the existing IDs are of rule {existing.rule!r}; "
            "expected one rule for all"
        )
    if existing.vocabulary.codebook_sizes != sizes:
        raise InputError(
            f"codebooks of {list(sizes)} codes, and the existing IDs are of "
            f"{list(existing.vocabulary.codebook_sizes)}; expected IDs of this model"
        )


def _joined(old: Tensor | None, new: Tensor) -> Int64[Tensor, "N"]:
    return new if old is None else torch.cat([old, new])


def _changed(
    old: Ids, known: dict[str, int], keys: list[str], codes: Int64[np.ndarray, "n L"]
) -> tuple[str, ...]:
    """Keys of items that have their ID, and to which the model would now give other codes."""
    there = np.array([row for row, key in enumerate(keys) if key in known], dtype=np.int64)
    before = old.model_codes.numpy()[[known[keys[row]] for row in there]]
    other = (before != codes[there]).any(1)
    return tuple(keys[row] for row in there[other])
