"""Tokens in a training loop: every item once per epoch, whoever reads, and nothing in memory."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hqvae.errors import InputError
from hqvae.tokens import ByLayer, LayerPlace, Layout, TokenDataset, Tokens, Vocabulary
from hqvae.tokens.manifest import (
    Manifest,
    ShardFile,
    SplitFiles,
    describe_layers,
    file_sha256,
    plan_shards,
)
from hqvae.tokens.shards import Row, schema, write_shard

LAYOUT = Layout((LayerPlace(0, 0, 8, 300), LayerPlace(1, 0, 4, 16), LayerPlace(1, 1, 4, 16)), 2)
SIZES = [(16, 16), (16, 24), (9, 30)]
ITEMS = 23


def row(i, sizes, label):
    generator = np.random.default_rng(i)
    size = sizes[i % len(sizes)]
    shapes = LAYOUT.shapes(LAYOUT.coarsest(size))
    codes = tuple(
        torch.from_numpy(generator.integers(0, place.codebook_size, shape))
        for place, shape in zip(LAYOUT.layers, shapes)
    )
    return Row(f"{i:03d}", label(i), size, Tokens(codes, size))


def write_tokens(folder, sizes=SIZES, label=lambda i: i % 5, kind="integer", items=ITEMS):
    """A folder as `encode` writes it, of rows that are known; shards of ten."""
    made = {
        "model": {"sha256": "0" * 64, "posterior": "nearest_code", "beam_size": 1},
        "layers": describe_layers(LAYOUT),
        "axes": 2,
        "data": {
            "prepared": {},
            "splits": {"train": {"items": items, "fingerprint": "f"}},
            "labels": kind and {"type": kind, "names": None},
        },
        "whole": True,
        "compute": {},
        "shard_items": 10,
    }
    folder.mkdir()
    files = []
    for shard in plan_shards({"train": items}, 10):
        path = folder / shard.name
        with write_shard(path, schema(LAYOUT, kind), {}) as writer:
            writer.add([row(i, sizes, label) for i in range(shard.start, shard.stop)])
        count = shard.stop - shard.start
        files.append(ShardFile(path.name, count, path.stat().st_size, file_sha256(path)))
    splits = {"train": SplitFiles(items, items, 0, tuple(files))}
    Manifest(made, "somewhere", {"hqvae": "0"}, True, splits, {}).write(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "t")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "s", sizes=[(16, 16)])


def keys(dataset, **loader):
    batches = DataLoader(dataset, 4, collate_fn=dataset.collate, **loader)
    return [key for batch in batches for key in batch["key"]]


# ------------------------------------------------------------------------------ items


def test_items_are_the_rows(folder):
    dataset = TokenDataset(folder)
    assert len(dataset) == ITEMS
    for i in range(ITEMS):
        expected = row(i, SIZES, lambda i: i % 5)
        found = dataset.row(i)
        assert found[:3] == expected[:3] and found.tokens.size == expected.tokens.size
        assert all(map(torch.equal, found.tokens.codes, expected.tokens.codes))
        item = dataset[i]
        assert (item["key"], item["label"]) == (expected.key, expected.label)
        assert all(map(torch.equal, item["tokens"], expected.tokens.codes))
    assert dataset[-1]["key"] == f"{ITEMS - 1:03d}"
    with pytest.raises(IndexError, match=f"item {ITEMS} of {ITEMS}"):
        dataset[ITEMS]


@pytest.mark.parametrize("name, shape", [("by_layer", (36,)), ("by_position", (36,))])
def test_a_view_makes_sequences_of_one_vocabulary(squares, name, shape):
    dataset = TokenDataset(squares, view=name)
    vocabulary = Vocabulary(LAYOUT)
    assert dataset.vocabulary == vocabulary and vocabulary.size == 300 + 16 + 16 + 3
    tokens = dataset[7]["tokens"]
    assert tokens.shape == shape
    back = dataset.view.inverse(tokens, (2, 2))
    assert all(map(torch.equal, back, dataset.row(7).tokens.codes))


def test_a_view_of_ones_own_is_taken_as_it_is(squares):
    view = ByLayer(LAYOUT, Vocabulary(LAYOUT, special=("pad", "eos")), eos=True)
    tokens = TokenDataset(squares, view=view)[0]["tokens"]
    assert len(tokens) == 37 and tokens[-1] == view.vocabulary.id("eos")


def test_sequences_of_several_lengths_are_padded(folder):
    dataset = TokenDataset(folder, view="by_layer")
    batch = dataset.collate([dataset[i] for i in range(3)])
    pad = dataset.vocabulary.id("pad")
    assert batch["lengths"].tolist() == [36, 54, 72] and batch["tokens"].shape == (3, 72)
    for i, length in enumerate(batch["lengths"]):
        assert torch.equal(batch["tokens"][i, :length], dataset[i]["tokens"])
        assert (batch["tokens"][i, length:] == pad).all()
    assert batch["key"] == ["000", "001", "002"] and batch["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "label, kind, expected",
    [
        (lambda i: None if i == 1 else i, "integer", torch.tensor([0, -1, 2])),
        (lambda i: None if i == 1 else f"class {i}", "string", ["class 0", None, "class 2"]),
        (lambda i: None, None, None),
    ],
)
def test_labels_are_numbers_names_or_none(tmp_path, label, kind, expected):
    folder = write_tokens(tmp_path / "t", label=label, kind=kind, items=3)
    dataset = TokenDataset(folder, view="by_layer")
    batch = dataset.collate([dataset[i] for i in range(3)])
    if expected is None:
        assert "label" not in batch and "label" not in dataset[0]
    elif kind == "integer":
        assert torch.equal(batch["label"], expected)
    else:
        assert batch["label"] == expected


# ------------------------------------------------------------------------------ order


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_once_per_epoch_in_the_order_of_the_seed(folder, workers):
    dataset = TokenDataset(folder, view="by_layer", seed=5)
    first = keys(dataset, num_workers=workers)
    assert sorted(first) == [f"{i:03d}" for i in range(ITEMS)] and first != sorted(first)
    assert first == keys(TokenDataset(folder, view="by_layer", seed=5))
    assert first != keys(TokenDataset(folder, view="by_layer", seed=6))
    dataset.set_epoch(1)
    second = keys(dataset, num_workers=workers)
    assert sorted(second) == sorted(first) and second != first
    dataset.set_epoch(0)
    assert keys(dataset) == first


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_live_on_hear_of_the_next_epoch(folder, method):
    dataset = TokenDataset(folder, view="by_layer", seed=5)
    loader = DataLoader(
        dataset,
        4,
        collate_fn=dataset.collate,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=method,
    )
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append([key for batch in loader for key in batch["key"]])
        assert orders[-1] == keys(dataset)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("world_size", [1, 2, 5, 30])
@pytest.mark.parametrize("seed", [None, 3])
def test_processes_share_the_items(folder, world_size, seed):
    parts = [
        [item["key"] for item in TokenDataset(folder, seed=seed, rank=rank, world_size=world_size)]
        for rank in range(world_size)
    ]
    assert sorted(itertools.chain(*parts)) == [f"{i:03d}" for i in range(ITEMS)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    even = [
        len(TokenDataset(folder, rank=rank, world_size=world_size, even=True))
        for rank in range(world_size)
    ]
    assert set(even) == {ITEMS // world_size}


def test_a_data_set_goes_to_another_process_without_what_it_has_open(folder):
    dataset = TokenDataset(folder, seed=2)
    before = dataset[0]["key"]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._open == {} and copy[0]["key"] == before


# ------------------------------------------------------------------------------ on disk


def test_codes_are_mapped_and_not_read(folder):
    """Values lie in the mapped file: Arrow has allocated nothing for them."""
    import pyarrow

    dataset = TokenDataset(folder)
    before = pyarrow.total_allocated_bytes()
    dataset[0]
    columns = dataset._open[0]
    assert all(not of_layer.values.flags.owndata for of_layer in columns.codes)
    held = sum(of_layer.values.nbytes for of_layer in columns.codes)
    assert pyarrow.total_allocated_bytes() - before < held


def test_the_copy_is_made_once_and_anywhere(squares, tmp_path):
    TokenDataset(squares, cache=tmp_path / "cache")
    files = sorted((tmp_path / "cache").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    dataset = TokenDataset(squares, cache=tmp_path / "cache")
    assert len(files) == 3 and [path.stat().st_mtime_ns for path in files] == times
    assert len(dataset) == ITEMS


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "tset"}, "have no split 'tset'; expected one of: train"),
        ({"view": "by_layr"}, "view 'by_layr' does not exist; did you mean 'by_layer'"),
        ({"view": "delay"}, "a delay pattern is of the layers of one level"),
        ({"rank": 2, "world_size": 2}, "rank=2: expected 0 to 1"),
    ],
)
def test_what_cannot_be_is_said(folder, arguments, message):
    with pytest.raises(InputError, match=message):
        TokenDataset(folder, **arguments)


def test_a_damaged_shard_is_found_before_it_is_used(tmp_path):
    folder = write_tokens(tmp_path / "t")
    path = sorted(folder.glob("*.parquet"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00001-of-00003.parquet is damaged"):
        TokenDataset(folder)
    assert not (folder / ".arrow").exists() or len(list((folder / ".arrow").iterdir())) == 1


def test_batches_of_no_view_are_refused(folder):
    dataset = TokenDataset(folder)
    with pytest.raises(InputError, match="items without a view are no sequences"):
        dataset.collate([dataset[0]])
