"""Batches: every example once an epoch, the same for any number of processes and any start."""

import itertools
import time
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from data_files import TRAIN, noise, npz, train_split, write
from PIL import Image

from hqvae.data import (
    FileIndex,
    ImageConfig,
    ImageDataset,
    ShuffledBatches,
    sequential_batches,
    training_batches,
)
from hqvae.errors import InputError


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (7, 7), (5, 12), (3, 1)])
def test_shuffled_batches_deal_every_item_once_per_epoch(count, batch):
    order = ShuffledBatches(count, batch, seed=1)
    stream = np.concatenate([order.at(step)[0] for step in range(count * 3)])
    epochs = stream.reshape(-1, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_shuffled_batches_are_a_function_of_seed_and_step():
    def flat(seed, step):
        indices, augment_noise = ShuffledBatches(100, 8, seed).at(step)
        return np.concatenate([indices, augment_noise.ravel()]).tolist()

    forward = [flat(0, step) for step in range(30)]
    assert [flat(0, step) for step in reversed(range(30))] == forward[::-1]
    assert flat(1, 0) != flat(0, 0)
    augment_noise = ShuffledBatches(100, 8, 0).at(3)[1]
    assert augment_noise.shape == (8, 2)
    assert (augment_noise >= 0).all() and (augment_noise < 1).all()


@pytest.fixture
def mixed(tmp_path):
    """A folder of images of differing sizes, to be cropped and mirrored at random."""
    for i, (height, width) in enumerate([(8, 20), (20, 8), (16, 16), (9, 8), (30, 40), (8, 8)] * 2):
        write(tmp_path / "train" / f"{i:02d}.png", noise(height, width, i))
    return tmp_path


def batches_of(source, parts, start=0, stop=6, batch=8, **config):
    images = train_split(source, size=8, **{"crop": "random", "flip": True, **config})
    order = ShuffledBatches(len(images), batch, seed=2)
    return list(training_batches(images, order, start, stop, parts))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crop", ["random", "center"])
def test_images_that_are_not_kept_are_the_same(mixed, crop, workers):
    kept = batches_of(mixed, [slice(0, 8)], crop=crop)
    again = batches_of(mixed, [slice(0, 8)], crop=crop, cache_mb=0, workers=workers)
    assert len(kept) == len(again) == 6
    assert all(torch.equal(a, b) for a, b in zip(kept, again))
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    "cuts",
    [[slice(0, 4), slice(4, 8)], [slice(i, i + 1) for i in range(8)]],
    ids=["halves", "singles"],
)
def test_a_global_batch_is_the_same_however_it_is_cut(mixed, cuts):
    whole = batches_of(mixed, [slice(0, 8)])
    accumulated = batches_of(mixed, cuts)
    of_processes = [batches_of(mixed, [cut]) for cut in cuts]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat(accumulated[step * len(cuts) : (step + 1) * len(cuts)]), batch)
        assert torch.equal(torch.cat([mine[step] for mine in of_processes]), batch)


@pytest.mark.parametrize("start", [1, 3, 5])
def test_starting_later_is_skipping(mixed, start):
    whole = batches_of(mixed, [slice(0, 8)])
    later = batches_of(mixed, [slice(0, 8)], start=start)
    assert len(later) == 6 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], later))


@pytest.mark.parametrize("world", [1, 2, 3, 20])
@pytest.mark.parametrize("limit", [None, 5, 100])
def test_sequential_batches_deal_each_example_once_over_all_processes(tmp_path, world, limit):
    images = train_split(npz(tmp_path / "d.npz", x=TRAIN), size=8)
    shares = [
        [b[:, 0, 0, 0].tolist() for b in sequential_batches(images, 4, limit, rank, world)]
        for rank in range(world)
    ]
    dealt = [list(itertools.chain(*share)) for share in shares]
    spread = {
        None: TRAIN,
        5: [TRAIN[round(i * (len(TRAIN) - 1) / 4)] for i in range(5)],
        100: TRAIN,
    }[limit]
    assert sorted(itertools.chain(*dealt)) == spread
    assert all(share == sorted(share) for share in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(len(batch) == 4 for share in shares for batch in share[:-1])


def test_examples_that_cannot_be_read_are_counted_as_many_as_were_asked_for(tmp_path):
    for value in range(10):
        path = tmp_path / f"{value}.png"
        broken = value in (0, 9)
        path.write_text("x") if broken else Image.new("RGB", (8, 8), (value,) * 3).save(path)
    index = FileIndex(
        [f"{value}.png" for value in range(10)], lambda i: Image.open(tmp_path / f"{i}.png")
    )
    images = ImageDataset(index, ImageConfig(size=8), channels=3)
    with pytest.raises(InputError, match="none of the 2 images that a process was to measure"):
        list(sequential_batches(images, 4, limit=2))


@pytest.mark.parametrize("read", [0, 1, 6], ids=["none read", "one read", "all read"])
def test_closed_batches_leave_no_worker_behind(mixed, read):
    images = train_split(mixed, size=8, cache_mb=0, workers=2)
    batches = training_batches(images, ShuffledBatches(len(images), 8, 2), 0, 6, [slice(0, 8)])
    kept = list(itertools.islice(batches, read))
    assert len(kept) == read and len(active_children()) == (2 if read else 0)
    workers = active_children()
    batches.close()
    assert active_children() == []
    assert not any(worker.is_alive() for worker in workers)


def test_a_worker_that_does_not_end_is_killed(mixed, monkeypatch):
    """Torch asks it to end with a signal that workers leave to their parent."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.01)
    images = train_split(mixed, size=8, cache_mb=0, workers=1)
    read = type(images).training_batch

    def slow(self, indices, augment_noise):
        if len(indices) == 1:
            time.sleep(300)
        return read(self, indices, augment_noise)

    monkeypatch.setattr(type(images), "training_batch", slow)
    parts = [slice(0, 8), slice(0, 1)]
    batches = training_batches(images, ShuffledBatches(len(images), 8, 2), 0, 6, parts)
    next(batches)
    batches.close()
    assert active_children() == []
