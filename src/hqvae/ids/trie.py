"""From an ID to its items, and from the beginning of an ID to the tokens that may follow."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from .ids import Ids

Token = str | int


class IdTrie:
    """The IDs of items, all of one length, by their beginnings.

    Beginnings of one length lie side by side in arrays, in the order of their tokens, and each
    knows where those that go on from it lie. A million items take some tens of MB.

    Args:
        ids: of each item, as strings or as integers
        keys: the items' names

    Raises ValueError for no IDs, for IDs of several lengths or of strings and integers mixed, and
    for another number of keys.

    >>> trie = IdTrie([("<a_1>", "<b_0>"), ("<a_1>", "<b_2>"), ("<a_1>", "<b_0>")], ["x", "y", "z"])
    >>> len(trie), trie.allowed([]), trie.allowed(["<a_1>"]), trie.allowed(["<a_1>", "<b_0>"])
    (2, ['<a_1>'], ['<b_0>', '<b_2>'], [])
    >>> trie.items(["<a_1>", "<b_0>"]), ("<a_1>", "<b_7>") in trie
    (['x', 'z'], False)
    """

    def __init__(self, ids: Sequence[Sequence[Token]], keys: Sequence[str]):
        lengths = {len(one) for one in ids}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"IDs of {sorted(lengths)} tokens; expected IDs of one length")
        tokens = set(chain.from_iterable(ids))
        kinds = {type(token).__name__ for token in tokens}
        if kinds not in ({"str"}, {"int"}):
            raise ValueError(f"tokens of types {sorted(kinds)}; expected all strings, or all int")
        self._tokens: list[Token] = sorted(tokens)  # type: ignore[type-var]
        self._ranks = {token: rank for rank, token in enumerate(self._tokens)}
        ranks = map(self._ranks.__getitem__, chain.from_iterable(ids))
        table = np.fromiter(ranks, np.int32, len(ids) * min(lengths))
        self._build(table.reshape(len(ids), -1), keys)

    @classmethod
    def of(cls, ids: Ids) -> "IdTrie":
        """The trie of the tokens `<a_12>` … of IDs; faster than from their strings."""
        trie = cls.__new__(cls)
        names = [ids.vocabulary.of_place(place) for place in range(ids.places.shape[1])]
        trie._tokens = sorted(chain.from_iterable(names))
        trie._ranks = {token: rank for rank, token in enumerate(trie._tokens)}
        of_places = [np.array([trie._ranks[token] for token in of_place]) for of_place in names]
        columns = [ranks[codes] for ranks, codes in zip(of_places, ids.places.numpy().T)]
        trie._build(np.stack(columns, 1).astype(np.int32), ids.keys)
        return trie

    def _build(self, table: Int32[np.ndarray, "N P"], keys: Sequence[str]) -> None:
        if len(keys) != len(table):
            raise ValueError(f"{len(keys)} keys of {len(table)} IDs; expected one for each")
        self._keys = keys
        self._rows = np.lexsort(table.T[::-1])  # of the items in the order of their IDs
        ordered = table[self._rows]
        first = np.zeros(len(table), dtype=bool)
        first[0] = True
        starts = np.zeros(1, dtype=np.int64)
        # Of the nodes of each depth: their tokens, and from where on their children lie.
        self._of_depth: list[Int32[np.ndarray, M]] = []
        self._children: list[Int64[np.ndarray, M + 1]] = []
        for column in ordered.T:
            first[1:] |= column[1:] != column[:-1]
            deeper = np.flatnonzero(first)
            self._children.append(np.searchsorted(deeper, np.append(starts, len(table))))
            self._of_depth.append(column[deeper])
            starts = deeper
        self._children.append(np.append(starts, len(table)))  # of an ID: its items

    # ------------------------------------------------------------------------------ questions

    @property
    def length(self) -> int:
        """Tokens of an ID."""
        return len(self._of_depth)

    def __len__(self) -> int:
        """How many different IDs there are."""
        return len(self._of_depth[-1])

    def __contains__(self, one: Sequence[Token]) -> bool:
        return len(one) == self.length and self._find(self._to_ranks(one)) is not None

    def allowed(self, prefix: Sequence[Token]) -> list[Token]:
        """The tokens that may follow, sorted; none after an ID, and after what begins no ID."""
        return [self._tokens[rank] for rank in self._following(self._to_ranks(prefix))]

    def items(self, one: Sequence[Token]) -> list[str]:
        """The keys of the items of an ID, sorted; none of what is no ID."""
        place = self._find(self._to_ranks(one)) if len(one) == self.length else None
        if place is None:
            return []
        return sorted(self._keys[row] for row in self._rows[place[0] : place[1]])

    def prefix_allowed_tokens_fn(
        self,
        to_id: Callable[[Token], int],
        *,
        end: int,
        start: int | None = None,
        prompt_length: int = 0,
    ) -> Callable[[int, Tensor], list[int]]:
        """A function for `generate(prefix_allowed_tokens_fn=…)` of Hugging Face's transformers.

        With it a language model writes an ID that exists, and then `end`. What stands before the
        ID is skipped: all up to the last `start` token, or `prompt_length` tokens.

        A beam search may have more beams than an ID has beginnings. What it puts into the others
        begins no ID and is as good as impossible already: there `end` alone is allowed, for
        transformers refuses an empty list.

        Args:
            to_id: the language model's number of a token, as `tokenizer.convert_tokens_to_ids`
            end: the number of the token that ends a sequence
            start: the number of the token after which the ID begins, such as T5's decoder start
            prompt_length: how many tokens come before the ID, where there is no `start`

        Raises ValueError where two tokens have one number, as tokens have that the tokenizer does
        not know; the function does for a sequence without `start`.

        >>> trie = IdTrie([(0, 5), (0, 7)], ["x", "y"])
        >>> allowed = trie.prefix_allowed_tokens_fn(lambda token: 100 + token, end=1, start=2)
        >>> [allowed(0, torch.tensor(written)) for written in ([9, 2], [9, 2, 100], [2, 100, 107])]
        [[100], [105, 107], [1]]
        """
        numbers = np.array([int(to_id(token)) for token in self._tokens])
        self._check_numbers(numbers, {"end": end, "start": start})
        ranks = {number: rank for rank, number in enumerate(numbers.tolist())}

        def allowed(batch_id: int, input_ids: Tensor) -> list[int]:
            written = input_ids.tolist()
            begin = prompt_length if start is None else _after_last(start, written)
            prefix = [ranks.get(number, -1) for number in written[begin:]]
            return numbers[self._following(prefix)].tolist() or [end]

        return allowed

    # ---------------------------------------------------------------------------------- parts

    def _to_ranks(self, tokens: Sequence[Token]) -> list[int]:
        return [self._ranks.get(token, -1) for token in tokens]

    def _find(self, prefix: Sequence[int]) -> tuple[int, int] | None:
        """Where the nodes lie that go on from a prefix; of a whole ID, where its items do."""
        low = 0
        high = int(self._children[0][1])
        if len(prefix) > self.length:
            return None
        for depth, rank in enumerate(prefix):
            siblings = self._of_depth[depth][low:high]
            place = int(np.searchsorted(siblings, rank))
            if place == len(siblings) or siblings[place] != rank:
                return None
            low, high = self._children[depth + 1][low + place : low + place + 2].tolist()
        return low, high

    def _following(self, prefix: Sequence[int]) -> Int32[np.ndarray, "M"]:
        """The ranks of the tokens that may follow."""
        place = self._find(prefix) if len(prefix) < self.length else None
        if place is None:
            return self._of_depth[0][:0]
        return self._of_depth[len(prefix)][place[0] : place[1]]

    def _check_numbers(self, numbers: Int64[np.ndarray, "V"], special: dict) -> None:
        values, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        if (counts > 1).any():
            number = values[counts > 1][0]
            names = [self._tokens[rank] for rank in np.flatnonzero(numbers == number)[:2]]
            raise ValueError(
                f"tokens {names[0]} and {names[1]} have the number {number}; expected a tokenizer "
                "that knows all tokens of the IDs"
            )
        for name, number in special.items():
            if number in values:
                raise ValueError(
                    f"{name}={number} is the number of token "
                    f"{self._tokens[int(first[values == number][0])]}; expected another"
                )


def _after_last(start: int, written: list[int]) -> int:
    """The place after the last start token."""
    if start not in written:
        raise ValueError(
            f"no token {start}, after which the ID would begin, among the {len(written)} that "
            "stand there; expected it once, or prompt_length=… without start=…"
        )
    return len(written) - written[::-1].index(start)
