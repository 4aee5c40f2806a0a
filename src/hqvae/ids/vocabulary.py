"""The tokens of IDs by name: `<a_12>` is code 12 of the first layer, `<b_7>` code 7 of the next."""

from dataclasses import dataclass
from string import ascii_lowercase


def letters(layer: int) -> str:
    """The letters of a layer: a, b, …, z, aa, ab, …

    >>> letters(0), letters(25), letters(26), letters(27), letters(702)
    ('a', 'z', 'aa', 'ab', 'aaa')
    """
    before, last = divmod(layer, len(ascii_lowercase))
    return (letters(before - 1) if before else "") + ascii_lowercase[last]


@dataclass(frozen=True)
class IdVocabulary:
    """Which tokens IDs are made of.

    Args:
        codebook_sizes: K of every layer
        extra: how many tokens the place after the last layer has, which tells items of the same
            codes apart; 0 where IDs have no such place

    >>> vocabulary = IdVocabulary((2, 3), extra=1)
    >>> vocabulary.tokens()
    ['<a_0>', '<a_1>', '<b_0>', '<b_1>', '<b_2>', '<c_0>']
    >>> vocabulary.size, vocabulary.sizes
    (6, (2, 3, 1))
    """

    codebook_sizes: tuple[int, ...]
    extra: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many tokens each place of an ID has, the extra one included."""
        return (*self.codebook_sizes, self.extra) if self.extra else self.codebook_sizes

    @property
    def size(self) -> int:
        """How many tokens there are in all."""
        return sum(self.sizes)

    def of_place(self, place: int) -> list[str]:
        """The tokens of one place of an ID, by code."""
        return [f"<{letters(place)}_{code}>" for code in range(self.sizes[place])]

    def tokens(self) -> list[str]:
        """All tokens, as a language model's tokenizer takes them to be added."""
        return [token for place in range(len(self.sizes)) for token in self.of_place(place)]
