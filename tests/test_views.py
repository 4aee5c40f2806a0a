"""Views lay codes out as sequences and take them back exactly; a vocabulary names every code."""

import json
import math
import re
from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqvae.errors import InputError
from hqvae.tokens import VIEWS, ByLayer, ByPosition, Delay, LayerPlace, Layout, PerLayer, Vocabulary
from hqvae.tokens.view import _plan


def layout_of(*levels, axes=1):
    """A layout from (stride, layers, K) of every level."""
    places = [
        LayerPlace(level, layer, stride, size)
        for level, (stride, layers, size) in enumerate(levels)
        for layer in range(layers)
    ]
    return Layout(tuple(places), axes)


LEVELS = {
    "one": ((8, 1, 7),),
    "residual": ((8, 3, 5),),
    "two": ((8, 1, 6), (4, 1, 9)),
    "hybrid": ((8, 2, 6), (4, 3, 9)),
    "three": ((8, 1, 300), (4, 2, 5), (1, 1, 4)),
}
LAYOUTS = {
    f"{name} of {axes}": layout_of(*levels, axes=axes)
    for name, levels in LEVELS.items()
    for axes in (1, 2)
}
LAYOUTS["vectors"] = layout_of((1, 3, 5), axes=0)
SHAPES = {0: (), 1: (5,), 2: (2, 3)}


def built_views():
    """Every view of every layout that it is of: raw, with a vocabulary, between bos and eos."""
    for (name, layout), view in product(LAYOUTS.items(), VIEWS):
        if len({place.level for place in layout.layers}) > 1 and view in ("per_layer", "delay"):
            continue
        yield f"{name}, {view}", VIEWS[view](layout)
        yield f"{name}, {view}, vocabulary", VIEWS[view](layout, Vocabulary(layout))
    for (name, layout), view in product(LAYOUTS.items(), (ByLayer, ByPosition)):
        ends = view(layout, Vocabulary(layout), bos=True, eos=True)
        yield f"{name}, {view.__name__}, ends", ends


BUILT = dict(built_views())
views = pytest.mark.parametrize("view", BUILT.values(), ids=BUILT)
with_vocabulary = pytest.mark.parametrize(
    "view", [pytest.param(view, id=name) for name, view in BUILT.items() if view.vocabulary]
)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def random_codes(layout, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(place.codebook_size, of_layer, generator=generator)
        for place, of_layer in zip(layout.layers, layout.shapes(shape))
    )


def same(codes, others):
    return all(torch.equal(one, other) for one, other in zip(codes, others, strict=True))


def rows(*values):
    return [torch.tensor(row) for row in values]


TWO = layout_of((8, 1, 10), (4, 1, 10))  # codes of one axis: 2 positions and 4
TWO_CODES = rows([1, 2], [3, 4, 5, 6])
RESIDUAL = layout_of((8, 3, 10))
RESIDUAL_CODES = rows([1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2, 3])


# ------------------------------------------------------------------------------ by hand


def test_a_vocabulary_counts_through_the_layers_and_then_the_special_tokens():
    vocabulary = Vocabulary(layout_of((8, 2, 4), (4, 1, 3)))
    assert vocabulary.codebook_sizes == (4, 4, 3)
    assert vocabulary.offsets == (0, 4, 8)
    assert (vocabulary.code_count, vocabulary.size) == (11, 14)
    assert vocabulary.special_ids == {"pad": 11, "bos": 12, "eos": 13}
    assert [vocabulary.id(name) for name in vocabulary.special] == [11, 12, 13]
    expected = [0] * 4 + [1] * 4 + [2] * 3 + [-1] * 3
    assert vocabulary.layer_of(torch.arange(14)).tolist() == expected
    assert vocabulary.layer_of(np.arange(14, dtype=np.uint16).reshape(2, 7)).shape == (2, 7)
    assert [int(vocabulary.layer_of(token)) for token in (7, np.int64(8), 13)] == [1, 2, -1]


def test_special_names_are_the_callers():
    layout = layout_of((8, 1, 4))
    bare = Vocabulary(layout, special=())
    assert (bare.size, bare.special_ids) == (4, {})
    assert Vocabulary(layout, special=("mask",)).id("mask") == 4


def test_a_vocabulary_is_said_in_plain_values():
    said = Vocabulary(layout_of((8, 1, 4), (4, 1, 3)), special=("eos",)).to_dict()
    assert json.loads(json.dumps(said)) == {
        "size": 8,
        "layers": [
            {"name": "level 0 layer 0", "offset": 0, "codebook_size": 4},
            {"name": "level 1 layer 0", "offset": 4, "codebook_size": 3},
        ],
        "special": {"eos": 7},
    }


def test_per_layer_is_a_stack():
    layout = layout_of((8, 2, 10), axes=2)
    codes = rows([[1, 2], [3, 4]], [[5, 6], [7, 8]])
    assert PerLayer(layout).forward(codes).tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    with_offsets = PerLayer(layout, Vocabulary(layout)).forward(codes)
    assert with_offsets.tolist() == [[[1, 2], [3, 4]], [[15, 16], [17, 18]]]


def test_by_layer_is_one_layer_after_the_other():
    vocabulary = Vocabulary(TWO)
    assert ByLayer(TWO).forward(TWO_CODES).tolist() == [1, 2, 3, 4, 5, 6]
    assert ByLayer(TWO, vocabulary).forward(TWO_CODES).tolist() == [1, 2, 13, 14, 15, 16]
    with_ends = ByLayer(TWO, vocabulary, bos=True, eos=True)
    assert with_ends.forward(TWO_CODES).tolist() == [21, 1, 2, 13, 14, 15, 16, 22]
    assert with_ends.layers([2]).tolist() == [-1, 0, 0, 1, 1, 1, 1, -1]


def test_by_position_of_one_level_interleaves_the_layers():
    view = ByPosition(RESIDUAL)
    assert view.forward(RESIDUAL_CODES).tolist() == [1, 5, 0, 2, 6, 1, 3, 7, 2, 4, 8, 3]
    assert view.layers([4]).tolist() == [0, 1, 2] * 4


def test_by_position_goes_through_the_block_under_a_position_in_raster_order():
    layout = layout_of((8, 2, 100), (4, 2, 100), axes=2)
    codes = rows(
        [[1, 2]],
        [[11, 12]],
        [[21, 22, 23, 24], [25, 26, 27, 28]],
        [[41, 42, 43, 44], [45, 46, 47, 48]],
    )
    sequence = ByPosition(layout, Vocabulary(layout), eos=True).forward(codes)
    left = [1, 111, 221, 341, 222, 342, 225, 345, 226, 346]
    right = [2, 112, 223, 343, 224, 344, 227, 347, 228, 348]
    assert sequence.tolist() == [*left, *right, 402]


def test_by_position_of_three_levels_goes_level_by_level():
    layout = layout_of((8, 1, 100), (4, 1, 100), (1, 1, 100))
    codes = rows([90, 91], [80, 81, 82, 83], list(range(16)))
    first = [90, 80, 81, *range(8)]
    assert ByPosition(layout).forward(codes).tolist() == [*first, 91, 82, 83, *range(8, 16)]


def test_delay_shifts_each_layer_by_its_number():
    hole = 10
    expected = [[1, 2, 3, 4, hole, hole], [hole, 5, 6, 7, 8, hole], [hole, hole, 0, 1, 2, 3]]
    view = Delay(RESIDUAL)
    assert view.forward(RESIDUAL_CODES).tolist() == expected
    assert view.layers([4]).tolist() == [
        [0, 0, 0, 0, -1, -1],
        [-1, 1, 1, 1, 1, -1],
        [-1, -1, 2, 2, 2, 2],
    ]


def test_delay_goes_through_pictures_in_raster_order():
    layout = layout_of((8, 2, 9), axes=2)
    codes = rows([[1, 2], [3, 4]], [[5, 6], [7, 8]])
    view = Delay(layout, Vocabulary(layout))
    assert view.forward(codes).tolist() == [[1, 2, 3, 4, 18], [18, 14, 15, 16, 17]]


@pytest.mark.parametrize(
    "view, expected",
    [
        (Delay(RESIDUAL), 10),
        (Delay(RESIDUAL, hole=-100), -100),
        (Delay(RESIDUAL, Vocabulary(RESIDUAL, special=("eos", "pad"))), 31),
        (Delay(RESIDUAL, Vocabulary(RESIDUAL), hole=-100), -100),
        (Delay(RESIDUAL, Vocabulary(RESIDUAL, special=()), hole=30), 30),
    ],
)
def test_the_hole_of_a_delay(view, expected):
    sequence = view.forward(RESIDUAL_CODES)
    assert view.hole_token == expected == int(sequence[0, -1]) == int(sequence[2, 1])
    assert int((sequence == expected).sum()) == 6
    assert same(view.inverse(sequence, [4]), RESIDUAL_CODES)


# ------------------------------------------------------------------------------ every view


@views
def test_a_view_takes_back_what_it_laid_out(view):
    shape = SHAPES[view.layout.axes]
    codes = random_codes(view.layout, shape)
    sequence = view.forward(codes)
    assert sequence.dtype == torch.int64
    assert same(view.inverse(sequence, shape), codes)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_view_takes_back_any_codes_of_any_shape(data):
    view = data.draw(st.sampled_from(list(BUILT.values())))
    axes = view.layout.axes
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * axes))
    codes = random_codes(view.layout, shape, seed=data.draw(st.integers(0, 1000)))
    assert same(view.inverse(view.forward(codes), torch.Size(shape)), codes)


@views
def test_layers_says_which_layer_each_token_is_of(view):
    """Of codes that differ only in layer l, exactly the tokens of layer l differ."""
    shape = SHAPES[view.layout.axes]
    codes = random_codes(view.layout, shape)
    layers = view.layers(shape)
    sequence = view.forward(codes)
    for index, place in enumerate(view.layout.layers):
        others = list(codes)
        others[index] = (codes[index] + 1) % place.codebook_size
        assert torch.equal(view.forward(others) != sequence, layers == index)


@views
def test_what_a_view_hands_out_is_the_callers_own(view):
    shape = SHAPES[view.layout.axes]
    codes = random_codes(view.layout, shape)
    for ask in (lambda: view.layers(shape), lambda: view.forward(codes)):
        first = ask()
        kept = first.clone()
        first += 1
        assert torch.equal(ask(), kept)


@with_vocabulary
def test_layers_agrees_with_the_vocabulary(view):
    shape = SHAPES[view.layout.axes]
    for seed in range(3):
        sequence = view.forward(random_codes(view.layout, shape, seed))
        assert torch.equal(view.vocabulary.layer_of(sequence), view.layers(shape))


@views
def test_length_counts_the_steps(view):
    shape = SHAPES[view.layout.axes]
    sequence = view.forward(random_codes(view.layout, shape))
    tokens_per_step = len(view.layout.layers) if isinstance(view, PerLayer | Delay) else 1
    assert view.length(shape) * tokens_per_step == sequence.numel()


@views
def test_the_first_layers_have_a_sequence_of_their_own(view):
    """It is that of a view of these layers alone, with the vocabulary of all."""
    shape = SHAPES[view.layout.axes]
    codes = random_codes(view.layout, shape)
    for count in range(1, len(codes) + 1):
        sequence = view.forward(codes, layers=count)
        alone = replace(view, layout=view.layout.first(count))
        assert torch.equal(alone.forward(codes[:count]), sequence)
        assert torch.equal(view.forward(codes[:count], layers=count), sequence)
        assert same(view.inverse(sequence, shape, layers=count), codes[:count])
        assert torch.equal(view.layers(shape, layers=count), alone.layers(shape))
        assert view.length(shape, layers=count) == alone.length(shape)


def test_the_first_layers_begin_the_sequence_of_by_layer():
    layout = LAYOUTS["three of 2"]
    view = ByLayer(layout, Vocabulary(layout), bos=True)
    codes = random_codes(layout, (2, 3))
    sequence = view.forward(codes)
    for count in range(1, 5):
        part = sequence[: view.length((2, 3), layers=count)]
        assert same(view.inverse(part, (2, 3), layers=count), codes[:count])


@views
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int32, ">u2"])
def test_arrays_of_any_integer_type_are_taken(view, dtype):
    shape = SHAPES[view.layout.axes]
    codes = random_codes(view.layout, shape)
    expected = view.forward(codes)
    sequence = view.forward([of_layer.numpy().astype(dtype) for of_layer in codes])
    assert torch.equal(sequence, expected)
    assert same(view.inverse(expected.numpy().astype(dtype), shape), codes)


def test_tensors_of_any_integer_type_are_taken():
    for dtype in (torch.uint8, torch.uint16, torch.int16, torch.int32):
        sequence = ByLayer(TWO).forward([of_layer.to(dtype) for of_layer in TWO_CODES])
        assert sequence.tolist() == [1, 2, 3, 4, 5, 6]
        assert same(ByLayer(TWO).inverse(sequence.to(dtype), [2]), TWO_CODES)


@layouts
def test_tokens_of_two_layers_are_never_the_same(layout):
    """All codes of all layers, and the special tokens, are V different numbers from 0 to V − 1."""
    vocabulary, shape = Vocabulary(layout), SHAPES[layout.axes]
    view = ByLayer(layout, vocabulary)
    layers = view.layers(shape)
    of_layer = [set() for _ in layout.layers]
    for code in range(max(vocabulary.codebook_sizes)):
        codes = [
            torch.full(sides, min(code, place.codebook_size - 1))
            for place, sides in zip(layout.layers, layout.shapes(shape))
        ]
        sequence = view.forward(codes)
        for layer, tokens in enumerate(of_layer):
            tokens.update(sequence[layers == layer].tolist())
    assert [len(tokens) for tokens in of_layer] == list(vocabulary.codebook_sizes)
    every = sorted([*chain(*of_layer), *vocabulary.special_ids.values()])
    assert every == list(range(vocabulary.size))


@layouts
def test_by_position_keeps_what_stands_under_a_position_together(layout):
    """Each code is laid out as the number of the coarsest position above it: 0 0 0 … 1 1 1 …"""
    shape = SHAPES[layout.axes]
    layout = replace(layout, layers=tuple(replace(p, codebook_size=6) for p in layout.layers))
    codes = []
    for ratio in layout.ratios:
        above = torch.arange(math.prod(shape)).view(shape)
        for axis in range(layout.axes):
            above = above.repeat_interleave(ratio, axis)
        codes.append(above)
    sequence = ByPosition(layout).forward(codes)
    assert torch.equal(sequence, sequence.sort().values)


def test_plans_are_kept_but_not_without_end():
    _plan.cache_clear()
    view = ByPosition(TWO)
    for _ in range(3):
        view.inverse(view.forward(TWO_CODES), [2])
    assert (_plan.cache_info().misses, _plan.cache_info().hits) == (1, 5)
    for side in range(1, 101):
        view.layers([side])
    assert _plan.cache_info().currsize == _plan.cache_info().maxsize < 100


# ------------------------------------------------------------------------------ refusals


def refused(message, error=ValueError):
    """One sentence, in one line, that begins like this."""
    return pytest.raises(error, match="^" + re.escape(message))


@pytest.mark.parametrize("view", [PerLayer, Delay])
def test_several_levels_are_refused_where_they_have_no_form(view):
    with pytest.raises(InputError, match="use ByLayer or ByPosition"):
        view(TWO)
    assert view(TWO.first(1)).forward(TWO_CODES[:1]).tolist() == [[1, 2]]


def test_one_level_is_named_where_several_are_refused():
    with refused("layers of strides [8, 4] do not stack", InputError):
        PerLayer(TWO)
    with refused("a delay pattern is of the layers of one level, and these are of 2", InputError):
        Delay(TWO)


@pytest.mark.parametrize("view", [ByLayer, ByPosition])
def test_ends_need_a_vocabulary_that_has_them(view):
    with refused("bos without a vocabulary: raw codes leave no token for it", InputError):
        view(TWO, bos=True)
    with refused("bos and eos without a vocabulary", InputError):
        view(TWO, bos=True, eos=True)
    with refused("no special token 'eos'; did you mean 'eoi'?", InputError):
        view(TWO, Vocabulary(TWO, special=("eoi", "mask")), eos=True)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_vocabulary_of_other_codebooks_is_refused(view):
    other = Vocabulary(layout_of((8, 3, 11)))
    with refused("the vocabulary is of codebooks of [11, 11, 11] codes; those of the", InputError):
        view(RESIDUAL, other)
    with refused("the vocabulary is of codebooks of [10] codes; those of the", InputError):
        view(RESIDUAL, Vocabulary(RESIDUAL.first(1)))


def test_a_hole_that_is_a_code_is_refused():
    with refused("hole=9: a code has this token; expected 10 or more", InputError):
        Delay(RESIDUAL, hole=9)
    with refused("hole=10: a code has this token; expected 30 or more", InputError):
        Delay(RESIDUAL, Vocabulary(RESIDUAL), hole=10)
    with refused("no special token 'pad': this vocabulary has none", InputError):
        Delay(RESIDUAL, Vocabulary(RESIDUAL, special=()))


def test_what_a_vocabulary_does_not_have_is_refused():
    vocabulary = Vocabulary(TWO)
    with refused("no special token 'pda'; did you mean 'pad'?", InputError):
        vocabulary.id("pda")
    with refused("special=['pad', 'pad']: expected names that all differ", InputError):
        Vocabulary(TWO, special=("pad", "pad"))
    with refused("tokens range from 0 to 23; this vocabulary has tokens 0 to 22"):
        vocabulary.layer_of(torch.tensor([0, 23]))
    with refused("tokens range from -1 to 3; this vocabulary"):
        vocabulary.layer_of(torch.tensor([3, -1]))
    with refused("tokens are of type bool; expected"):
        vocabulary.layer_of(True)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_a_number_of_layers_that_there_is_not_is_refused(count):
    message = f"layers={count}: expected a whole number from 1 to 2"
    with refused(message):
        TWO.first(count)
    with refused(message):
        ByLayer(TWO).inverse(torch.zeros(6, dtype=torch.int64), [2], layers=count)


@pytest.mark.parametrize(
    "codes, message",
    [
        (TWO_CODES[:1], "codes of 1 layers; expected 2"),
        ([*TWO_CODES, TWO_CODES[1]], "codes of 3 layers; expected 2"),
        (torch.zeros(2, 2), "codes are of type Tensor; expected a list of 2 arrays"),
        ("ab", "codes are of type str; expected a list of 2 arrays"),
        ([torch.zeros(2), TWO_CODES[1]], "codes of layer 0 are of type torch.float32"),
        ([TWO_CODES[0], np.zeros(4)], "codes of layer 1 are of type float64"),
        ([TWO_CODES[0], [3, 4, 5, 6]], "codes of layer 1 are of type list"),
        (rows([1, 2], [3, 4, 5]), "codes of level 1 layer 0 have shape [3]; expected [4]"),
        (
            [TWO_CODES[0][None], TWO_CODES[1][None]],
            "the shape of the codes of level 0 layer 0 is [1, 2]; expected 1 whole number",
        ),
        (rows([1, 10], [3, 4, 5, 6]), "code 10 of level 0 layer 0 at position 1; expected 0 to 9"),
        (rows([1, 2], [3, 4, -1, 6]), "code -1 of level 1 layer 0 at position 2; expected 0 to 9"),
        ([np.array([1, 2**63 + 1], np.uint64), TWO_CODES[1]], "code -9223372036854775807 of level"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, message):
    with refused(message):
        ByLayer(TWO, Vocabulary(TWO)).forward(codes)


def test_a_wrong_code_of_a_picture_is_named_by_row_and_column():
    codes = random_codes(LAYOUTS["two of 2"], (2, 3))
    codes[1][3, 5] = 9
    with refused("code 9 of level 1 layer 0 at position [3, 5]; expected 0 to 8"):
        ByLayer(LAYOUTS["two of 2"]).forward(codes)


@pytest.mark.parametrize(
    "place, token, message",
    [
        (0, 22, "token 22 at place 0; expected 21, the special token that stands there"),
        (7, 3, "token 3 at place 7; expected 22, the special token that stands there"),
        (1, 13, "token 13 at place 1; expected 0 to 9, a code of level 0 layer 0"),
        (2, -1, "token -1 at place 2; expected 0 to 9, a code of level 0 layer 0"),
        (3, 9, "token 9 at place 3; expected 10 to 19, a code of level 1 layer 0"),
        (6, 20, "token 20 at place 6; expected 10 to 19, a code of level 1 layer 0"),
    ],
)
def test_a_token_at_a_place_of_another_layer_is_refused(place, token, message):
    view = ByLayer(TWO, Vocabulary(TWO), bos=True, eos=True)
    sequence = view.forward(TWO_CODES)
    sequence[place] = token
    with refused(message):
        view.inverse(sequence, [2])


def test_a_wrong_token_of_by_position_is_named_where_it_stands():
    view = ByPosition(TWO, Vocabulary(TWO))
    sequence = view.forward(TWO_CODES)  # 1 13 14 2 15 16
    sequence[4] = 2
    with refused("token 2 at place 4; expected 10 to 19, a code of level 1 layer 0"):
        view.inverse(sequence, [2])


def test_wrong_tokens_of_a_delay_are_named_by_layer_and_step():
    view = Delay(RESIDUAL)
    sequence = view.forward(RESIDUAL_CODES)
    sequence[1, 5] = 0
    with refused("token 0 at place [1, 5]; expected 10, the special token that stands there"):
        view.inverse(sequence, [4])
    sequence[1, 5] = 10
    sequence[2, 4] = 10
    with refused("token 10 at place [2, 4]; expected 0 to 9, a code of level 0 layer 2"):
        view.inverse(sequence, [4])


@pytest.mark.parametrize(
    "tokens, shape, message",
    [
        (torch.zeros(7, dtype=torch.int64), [2], "tokens have shape [7]; expected [6]: 2 layer(s)"),
        (torch.zeros(1, 6, dtype=torch.int64), [2], "tokens have shape [1, 6]; expected [6]"),
        (torch.zeros(6), [2], "tokens are of type torch.float32; expected"),
        (np.zeros(6), [2], "tokens are of type float64; expected"),
        (torch.zeros(6, dtype=torch.bool), [2], "tokens are of type torch.bool; expected"),
        ([0] * 6, [2], "tokens are of type list; expected"),
        (torch.zeros(6, dtype=torch.int64), [2, 1], "shape is [2, 1]; expected 1 whole number"),
        (torch.zeros(6, dtype=torch.int64), [2.0], "shape is [2.0]; expected 1 whole number"),
        (torch.zeros(6, dtype=torch.int64), [0], "shape is [0]; expected 1 whole number"),
        (torch.zeros(6, dtype=torch.int64), 2, "shape is 2; expected 1 whole number"),
    ],
)
def test_sequences_and_shapes_that_do_not_fit_are_refused(tokens, shape, message):
    with refused(message):
        ByLayer(TWO).inverse(tokens, shape)


def test_the_views_have_names():
    expected = {"per_layer": PerLayer, "by_layer": ByLayer, "by_position": ByPosition}
    assert {**expected, "delay": Delay} == VIEWS
