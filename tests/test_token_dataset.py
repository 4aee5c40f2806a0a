"""Tokens in a training loop: every item once per epoch, whoever reads, and nothing in memory."""

import errno
import itertools
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from token_files import same_tokens
from torch.utils.data import DataLoader

from hqvae.errors import InputError
from hqvae.tokens import ByLayer, LayerPlace, Layout, TokenDataset, Tokens, Vocabulary, mapped
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


def row(i, sizes, label, layout=LAYOUT):
    generator = np.random.default_rng(i)
    size = sizes[i % len(sizes)]
    shapes = layout.shapes(layout.coarsest(size))
    codes = tuple(
        torch.from_numpy(generator.integers(0, place.codebook_size, shape))
        for place, shape in zip(layout.layers, shapes)
    )
    return Row(f"{i:03d}", label(i), size, Tokens(codes, size))


def write_tokens(
    folder,
    sizes=SIZES,
    label=lambda i: i % 5,
    kind="integer",
    items=ITEMS,
    layout=LAYOUT,
    rows=None,
):
    """A folder as `encode` writes it: of rows in one shard, or of known ones in shards of ten."""
    shard_items = 10 if rows is None else len(rows)
    rows = rows or [row(i, sizes, label, layout) for i in range(items)]
    made = {
        "model": {"sha256": "0" * 64, "posterior": "nearest_code", "beam_size": 1},
        "layers": describe_layers(layout),
        "axes": layout.axes,
        "data": {
            "prepared": {},
            "splits": {"train": {"items": len(rows), "fingerprint": "f"}},
            "labels": kind and {"type": kind, "names": None},
        },
        "whole": True,
        "compute": {},
        "shard_items": shard_items,
    }
    folder.mkdir()
    files = []
    for shard in plan_shards({"train": len(rows)}, shard_items):
        path = folder / shard.name
        with write_shard(path, schema(layout, kind), {}) as writer:
            writer.add(rows[shard.start : shard.stop])
        count = shard.stop - shard.start
        files.append(ShardFile(path.name, count, path.stat().st_size, file_sha256(path)))
    splits = {"train": SplitFiles(len(rows), len(rows), 0, tuple(files))}
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
    columns = dataset._open[0]._open[0]
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


def test_a_shard_of_many_rows_is_read_to_its_end(tmp_path):
    """More than the 65,536 rows that Arrow puts into a record batch by itself."""
    layout = Layout((LayerPlace(0, 0, 8, 16),), 1)
    count = 70_000
    rows = [Row(str(i), None, (8,), Tokens((torch.tensor([i % 16]),), (8,))) for i in range(count)]
    folder = write_tokens(tmp_path / "t", layout=layout, rows=rows, kind=None)
    dataset = TokenDataset(folder)
    assert len(dataset) == count
    for i in (0, 1023, 1024, 65_535, 65_536, count - 1):
        found = dataset.row(i)
        assert (found.key, found.tokens.codes[0].item()) == (str(i), i % 16)


def test_rows_lie_in_record_batches_of_any_size(folder, tmp_path, monkeypatch):
    """A shard is copied some rows at a time, and a row group of it at most."""
    monkeypatch.setattr("hqvae.tokens.shards._AT_ONCE", 4)
    dataset = TokenDataset(folder, cache=tmp_path / "cache")
    other = TokenDataset(folder)
    for i in reversed(range(ITEMS)):
        assert dataset.row(i)[:3] == other.row(i)[:3]
        assert same_tokens([dataset.row(i).tokens], [other.row(i).tokens])
    assert [shard._file.num_record_batches for shard in dataset._open.values()] == [1, 3, 3]


def test_of_several_at_once_one_makes_the_copy(folder, tmp_path, monkeypatch):
    made = []
    lay_out = mapped._lay_out

    def slow(shard, path):
        made.append(shard.name)
        time.sleep(0.05)
        lay_out(shard, path)

    monkeypatch.setattr(mapped, "_lay_out", slow)
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: TokenDataset(folder, cache=cache), range(4)))
    assert len(made) == len(set(made)) == 3
    assert {one[ITEMS - 1]["key"] for one in found} == {f"{ITEMS - 1:03d}"}
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow"] * 3


def test_a_file_system_without_locks_serves(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("cannot be locked")

    monkeypatch.setattr(mapped, "lock", fail)
    assert len(TokenDataset(folder, cache=tmp_path / "cache")) == ITEMS


@pytest.mark.parametrize(
    "number, said",
    [
        (errno.EROFS, r"cache cannot be written \(.*\), where tokens"),
        (errno.EACCES, r"cache cannot be written \(.*\), where tokens"),
        (errno.ENOSPC, "no space left on the disk of .*cache, where tokens"),
        (errno.EDQUOT, "no space left on the disk of .*cache, where tokens"),
    ],
)
@pytest.mark.parametrize("place", ["pathlib.Path.mkdir", "os.fsync"])
def test_a_place_that_takes_no_copy_is_said(place, number, said, folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, fail)
    with pytest.raises(InputError, match=f"{said}.*; expected room there, or cache=FOLDER"):
        TokenDataset(folder, cache=tmp_path / "cache")


# ------------------------------------------------------------------------------ batches


PAIR = Layout((LayerPlace(0, 0, 8, 300), LayerPlace(0, 1, 8, 16)), 2)


def test_every_axis_is_padded(tmp_path):
    """Rows and columns of pictures whose heights differ too."""
    folder = write_tokens(tmp_path / "t", layout=PAIR)
    dataset = TokenDataset(folder, view="per_layer")
    items = [dataset[i] for i in range(3)]
    batch = dataset.collate(items)
    assert batch["lengths"].tolist() == [[2, 2], [2, 3], [2, 4]]
    assert batch["tokens"].shape == (3, 2, 2, 4)
    sizes = [(16, 16), (24, 9)]
    folder = write_tokens(tmp_path / "u", layout=PAIR, sizes=sizes)
    dataset = TokenDataset(folder, view="per_layer")
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["lengths"].tolist() == [[2, 2], [3, 2]]
    pad = dataset.vocabulary.id("pad")
    for i, (rows, columns) in enumerate(batch["lengths"].tolist()):
        whole = batch["tokens"][i]
        assert torch.equal(whole[:, :rows, :columns], dataset[i]["tokens"])
        assert (whole[:, rows:] == pad).all() and (whole[:, :, columns:] == pad).all()


@pytest.mark.parametrize("name", ["per_layer", "delay"])
def test_steps_alone_are_padded_where_layers_stand_side_by_side(name, tmp_path):
    layout = Layout((LayerPlace(0, 0, 8, 300), LayerPlace(0, 1, 8, 16)), 1)
    folder = write_tokens(tmp_path / "t", layout=layout, sizes=[(16,), (40,)])
    dataset = TokenDataset(folder, view=name)
    batch = dataset.collate([dataset[0], dataset[1]])
    more = name == "delay"
    assert batch["lengths"].tolist() == [2 + more, 5 + more]
    assert batch["tokens"].shape == (2, 2, 5 + more)
    assert (batch["tokens"][0, :, 2 + more :] == dataset.vocabulary.id("pad")).all()


def test_a_vocabulary_without_pad_serves_for_items_of_one_length(folder):
    view = ByLayer(LAYOUT, Vocabulary(LAYOUT, special=("bos",)), bos=True)
    dataset = TokenDataset(folder, view=view)
    batch = dataset.collate([dataset[0], dataset[3]])
    assert batch["tokens"].shape == (2, 37) and batch["lengths"].tolist() == [37, 37]
    with pytest.raises(
        InputError, match=r"of several lengths, up to \[55\].* no special token 'pad'"
    ):
        dataset.collate([dataset[0], dataset[1]])


def test_items_of_several_lengths_are_padded_with_zeros_without_a_vocabulary(folder):
    dataset = TokenDataset(folder, view=ByLayer(LAYOUT))
    batch = dataset.collate([dataset[0], dataset[1]])
    assert (batch["tokens"][0, 36:] == 0).all() and batch["tokens"].shape == (2, 54)


def test_a_batch_without_any_name_has_a_list_of_none(tmp_path):
    label = {0: None, 1: None, 2: "a"}.get
    folder = write_tokens(tmp_path / "t", label=label, kind="string", items=3)
    dataset = TokenDataset(folder, view="by_layer")
    assert dataset.collate([dataset[0], dataset[1]])["label"] == [None, None]
    assert dataset.collate([dataset[1], dataset[2]])["label"] == [None, "a"]


def test_batches_of_no_view_are_refused(folder):
    dataset = TokenDataset(folder)
    with pytest.raises(InputError, match="items without a view are no sequences"):
        dataset.collate([dataset[0]])
