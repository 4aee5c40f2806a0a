"""The trie of IDs against looking at every ID, and language models that it keeps to IDs."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqvae.ids import IdTrie, make_ids

CODES = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40)
QUICK = settings(max_examples=50, deadline=None)


def keys_of(ids):
    return [f"item {number}" for number in range(len(ids))]


def ids_of(count=200, sizes=(6, 5, 4), rule="token", seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], 1)
    return make_ids(keys_of(codes), codes, None, rule, codebook_sizes=sizes)


def named(codes):
    return [tuple(f"<{letter}_{code}>" for letter, code in zip("abc", one)) for one in codes]


# ------------------------------------------------------------------------------ what it holds


@given(codes=CODES, as_strings=st.booleans())
@QUICK
def test_the_trie_agrees_with_looking_at_every_id(codes, as_strings):
    ids = named(codes) if as_strings else codes
    trie = IdTrie(ids, keys_of(ids))
    assert len(trie) == len(set(ids)) and trie.length == 3
    tokens = {token for one in ids for token in one}
    prefixes = {one[:length] for one in ids for length in range(4)}
    prefixes |= {(*prefix, token) for prefix in prefixes for token in tokens}
    for prefix in prefixes:
        after = {one[len(prefix)] for one in ids if one[: len(prefix)] == prefix != one}
        assert trie.allowed(prefix) == sorted(after)
        assert (prefix in trie) == (prefix in ids)
        holders = [key for one, key in zip(ids, keys_of(ids)) if one == prefix]
        assert trie.items(prefix) == sorted(holders)


def test_what_begins_no_id_is_followed_by_nothing():
    trie = IdTrie([("<a_1>", "<b_2>")], ["x"])
    for prefix in (["<b_2>"], ["<a_1>", "<a_1>"], ["?"], ["<a_1>", "<b_2>", "<b_2>"]):
        assert trie.allowed(prefix) == [] and trie.items(prefix) == [] and prefix not in trie


@pytest.mark.parametrize("rule", ["token", "none"])
def test_the_trie_of_ids_is_that_of_their_tokens(rule):
    ids = ids_of(rule=rule)
    quick = IdTrie.of(ids)
    slow = IdTrie(ids.tokens(), ids.keys)
    assert len(quick) == len(slow) == len(set(ids.tokens()))
    assert quick.length == slow.length == (4 if rule == "token" else 3)
    for key, one in zip(ids.keys, ids.tokens()):
        assert key in quick.items(one) and quick.items(one) == slow.items(one)
        for length in range(quick.length + 1):
            assert quick.allowed(one[:length]) == slow.allowed(one[:length])


def test_a_large_trie_is_built_from_arrays():
    count = 200_000
    ids = ids_of(count, (256, 256, 256))
    trie = IdTrie.of(ids)
    held = [*trie._of_depth, *trie._children, trie._rows]
    assert sum(array.nbytes for array in held) < 80 * count
    row = 12345
    assert trie.items(ids.tokens()[row]) == [ids.keys[row]]


@pytest.mark.parametrize(
    ("ids", "keys", "message"),
    [
        ([], [], "IDs of [] tokens; expected IDs of one length"),
        ([(1, 2), (1,)], ["x", "y"], "IDs of [1, 2] tokens; expected IDs of one length"),
        ([()], ["x"], "IDs of [0] tokens; expected IDs of one length"),
        ([(1, "b")], ["x"], "tokens of types ['int', 'str']; expected all strings, or all int"),
        ([(1, 2)], ["x", "y"], "2 keys of 1 IDs; expected one for each"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, keys, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IdTrie(ids, keys)


# ------------------------------------------------------------------------------ generation

END, START, FIRST = 1, 0, 10  # numbers of a language model; tokens of IDs from FIRST on


def numbering(ids):
    """A language model's numbers of the tokens, in no order, and the way back."""
    tokens = ids.vocabulary.tokens()
    random.Random(0).shuffle(tokens)
    return {token: FIRST + number for number, token in enumerate(tokens)}


def write(allowed, prompt, vocabulary, generator, most=20):
    """Draw tokens from random logits, as far as allowed, until `END`."""
    written = list(prompt)
    while written[-1] != END or len(written) == len(prompt):
        assert len(written) < len(prompt) + most
        logits = torch.randn(vocabulary, generator=generator)
        mask = torch.full_like(logits, -torch.inf)
        mask[allowed(0, torch.tensor(written))] = 0
        written.append(int((logits + mask).argmax()))
    return written[len(prompt) :]


@pytest.mark.parametrize("prompt", [[START], [7, 8, START, 9, 12, 13, START], [5, 6, 7]])
@pytest.mark.parametrize("rule", ["token", "none"])
def test_what_is_written_at_random_is_always_an_item(prompt, rule):
    ids = ids_of(rule=rule)
    trie = IdTrie.of(ids)
    numbers = numbering(ids)
    tokens = {number: token for token, number in numbers.items()}
    where = {"start": START} if START in prompt else {"prompt_length": len(prompt)}
    allowed = trie.prefix_allowed_tokens_fn(numbers.__getitem__, end=END, **where)
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(400):
        *written, end = write(allowed, prompt, FIRST + len(numbers), generator)
        one = [tokens[number] for number in written]
        assert end == END and one in trie
        found.update(trie.items(one))
    assert len(found) > 50 and found <= set(ids.keys)


def test_beams_that_ids_have_no_room_for_may_end():
    """Of three first tokens, a search of eight beams fills five with what is impossible."""
    ids = ids_of(40, (3, 5, 4))
    trie = IdTrie.of(ids)
    numbers = numbering(ids)
    tokens = {number: token for token, number in numbers.items()}
    allowed = trie.prefix_allowed_tokens_fn(numbers.__getitem__, end=END, start=START)
    done = beam_search(allowed, FIRST + len(numbers), width=8, steps=trie.length + 1)
    possible = [written for score, written in done if score > IMPOSSIBLE]
    assert len(possible) == 8 < len(done)
    for written in possible:
        assert [tokens[number] for number in written[1:-1]] in trie


IMPOSSIBLE = -1e9


def beam_search(allowed, vocabulary, width, steps):
    """(score, tokens) of what ended: forbidden tokens fill the beams that have nothing better."""
    generator = torch.Generator().manual_seed(0)
    beams = [(0.0, [START])]
    done = []
    for _ in range(steps):
        grown = []
        for score, written in beams:
            scores = torch.randn(vocabulary, generator=generator).log_softmax(0)
            mask = torch.full_like(scores, 2 * IMPOSSIBLE)
            following = allowed(0, torch.tensor(written))
            assert following, "which transformers refuses"
            mask[following] = 0
            values = (scores + mask).tolist()
            grown += [(score + value, [*written, token]) for token, value in enumerate(values)]
        grown.sort(key=lambda pair: -pair[0])
        done += [pair for pair in grown[:width] if pair[1][-1] == END]
        beams = [pair for pair in grown if pair[1][-1] != END][:width]
    return done


def test_after_an_id_only_the_end_is_allowed():
    trie = IdTrie([(0, 5), (3, 5)], ["x", "y"])
    allowed = trie.prefix_allowed_tokens_fn(lambda token: FIRST + token, end=END, start=START)
    assert allowed(0, torch.tensor([START, 10])) == [15]
    for after in ([10, 15], [10, 15, END], [10, 15, 15], [15], [END]):
        assert allowed(0, torch.tensor([START, *after])) == [END]
    whole = trie.prefix_allowed_tokens_fn(lambda token: FIRST + token, end=END)
    assert sorted(whole(0, torch.tensor([], dtype=torch.long))) == [10, 13]


def test_numbers_that_cannot_be_told_apart_are_refused():
    trie = IdTrie([("<a_0>", "<b_5>")], ["x"])
    with pytest.raises(
        ValueError, match="tokens <a_0> and <b_5> have the number 3; expected a tok"
    ):
        trie.prefix_allowed_tokens_fn(lambda token: 3, end=1)
    numbers = {"<a_0>": 3, "<b_5>": 4}
    with pytest.raises(ValueError, match="end=4 is the number of token <b_5>; expected another"):
        trie.prefix_allowed_tokens_fn(numbers.__getitem__, end=4)
    with pytest.raises(ValueError, match="start=3 is the number of token <a_0>; expected another"):
        trie.prefix_allowed_tokens_fn(numbers.__getitem__, end=1, start=3)


def test_a_prompt_without_its_start_token_is_refused():
    trie = IdTrie([(4,)], ["x"])
    allowed = trie.prefix_allowed_tokens_fn(int, end=1, start=0)
    with pytest.raises(ValueError, match="no token 0, after which the ID would begin, among the 2"):
        allowed(0, torch.tensor([7, 8]))
