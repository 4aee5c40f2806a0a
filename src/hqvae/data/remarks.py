"""Items that are used, but not whole or not as they are: each is said once, and listed."""

import logging
from collections.abc import Sequence

import torch

log = logging.getLogger("hqvae")

_NAMED_AT_ONCE = 5  # items that one line names
_NAMED_IN_ALL = 10  # items that get a line of their own


class Remarks:
    """What is to be said of items.

    Args:
        names: of all items
        noun: what an item is; its plural ends in s
    """

    def __init__(self, names: Sequence[str], noun: str):
        self.names = names
        self.noun = noun
        self._of: dict[int, str] = {}
        self._summed_up = False
        self._named = 0

    def add(self, item: int, remark: str | None) -> None:
        """Note a remark; once the others are summed up, it is said where it is news."""
        if remark is None or item in self._of:
            return
        self._of[item] = remark
        # Readers in processes of their own each see a part: the parent is the one that speaks.
        if self._summed_up and torch.utils.data.get_worker_info() is None:
            self._named += 1
            if self._named <= _NAMED_IN_ALL:
                log.warning("%s: %s", self.names[item], remark)

    def sum_up(self) -> None:
        """One line for all items so far."""
        self._summed_up = True
        items = sorted(self._of)
        if items:
            named = "; ".join(f"{self.names[i]} ({self._of[i]})" for i in items[:_NAMED_AT_ONCE])
            more = " …" if len(items) > _NAMED_AT_ONCE else ""
            of_all = f"{len(items)} of {len(self.names)} {self.noun}s"
            log.warning("%s are used in part or clipped: %s%s", of_all, named, more)

    def entries(self) -> list[tuple[str, str]]:
        """(name, remark) of all items that there are remarks of."""
        return [(self.names[item], f"in use, but {self._of[item]}") for item in sorted(self._of)]
