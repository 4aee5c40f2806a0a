"""One split: exact items, examples, what is broken; the same whether kept in memory or not."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch
from data_files import (
    TEST,
    TRAIN,
    WHOLE_SOURCES,
    folder,
    folders,
    noise,
    opened,
    png,
    solid,
    torn_png,
    train_split,
    values_of,
    write,
)
from PIL import Image

from hqvae.data import (
    BrokenItem,
    FileIndex,
    ImageConfig,
    ImageDataset,
    ShuffledBatches,
    examples_for_figure,
    open_data,
    sequential_batches,
    to_signal,
    training_batches,
)
from hqvae.errors import InputError


@pytest.fixture
def partly_broken(tmp_path):
    """Seven images; the second has no header, the fifth breaks below its header."""
    contents = [png(solid(10 * i, 32)) for i in range(7)]
    contents[1] = b"no image"
    contents[4] = torn_png()
    for i, content in enumerate(contents):
        write(tmp_path / f"{i}.png", content)
    return tmp_path


# ------------------------------------------------------------------------------------ exact reading


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_an_item_is_read_as_it_is(cache_mb, tmp_path):
    """At its own size, neither cropped nor mirrored, whatever the run does with it."""
    pixels = noise(9, 20)
    write(tmp_path / "deep" / "x.png", pixels)
    images = train_split(tmp_path, size=8, crop="random", flip=True, cache_mb=cache_mb)
    key, signal = images.read(0)
    assert key == "deep/x.png" and signal.dtype == torch.float32
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(signal, expected)


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_an_example_is_what_evaluation_sees(cache_mb, partly_broken):
    images = train_split(partly_broken, size=16, crop="random", flip=True, cache_mb=cache_mb)
    batch = images.signal(torch.cat(list(sequential_batches(images, 3))))
    readable = [0, 2, 3, 5, 6]
    for position, i in enumerate(readable):
        key, signal = images.load(i)
        assert key == f"{i}.png" and torch.equal(signal, batch[position])


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_broken_item_is_an_error_with_its_name_and_reason(cache_mb, partly_broken):
    images = train_split(partly_broken, size=16, cache_mb=cache_mb)
    for attempt in (images.read, images.load):
        with pytest.raises(BrokenItem, match=r"1\.png \(cannot identify image file") as raised:
            attempt(1)
        assert raised.value.key == "1.png" and "cannot identify" in raised.value.reason
        with pytest.raises(BrokenItem, match=r"4\.png"):
            attempt(4)


def test_a_broken_item_travels_between_processes():
    error = pickle.loads(pickle.dumps(BrokenItem("a.png", "no image")))
    assert (error.key, error.reason) == ("a.png", "no image")


# ------------------------------------------------------------------------------------- broken items


def test_broken_images_are_counted_named_and_left_out(tmp_path, caplog):
    write(tmp_path / "d" / "train" / "a.png", b"no image")
    write(tmp_path / "d" / "train" / "b.png", torn_png())
    folders(tmp_path / "d", "train", "val")
    folder(tmp_path / "d" / "test", TEST)
    _, images = opened(tmp_path / "d", channels=1, size=8)
    assert values_of(images["train"]) == [*TRAIN[::2], *TRAIN[1::2]]
    (warning,) = caplog.messages
    assert warning.startswith("2 of 14 images are broken")
    assert "train/a.png (cannot identify image file)" in warning and "train/b.png" in warning


@pytest.mark.parametrize("limit", [None, 4])
def test_evaluation_leaves_out_the_same_items_in_memory_or_not(limit, partly_broken):
    """None is replaced by its neighbour, and both count the same."""
    kept = train_split(partly_broken, size=32)
    read = train_split(partly_broken, size=32, cache_mb=0)
    assert kept.in_memory and not read.in_memory and len(kept) == len(read) == 7
    batches = [torch.cat(list(sequential_batches(images, 2, limit))) for images in (kept, read)]
    assert torch.equal(*batches)
    expected = {None: [0, 20, 30, 50, 60], 4: [0, 20, 60]}[limit]
    assert batches[0][:, 0, 0, 0].tolist() == expected
    assert (
        kept.broken.keys() == read.broken.keys() == {None: {"1.png", "4.png"}, 4: {"4.png"}}[limit]
    )


def test_all_broken_items_are_listed(partly_broken):
    kept = train_split(partly_broken, size=32)
    assert [key for key, _ in kept.left_out()] == ["1.png", "4.png"] and not kept.broken
    assert all(reason for _, reason in kept.left_out())
    read = train_split(partly_broken, size=32, cache_mb=0)
    assert read.left_out() == []
    list(sequential_batches(read, 4))
    assert read.left_out() == kept.left_out() == list(read.broken.items())


@pytest.mark.parametrize(("cache_mb", "workers"), [(16, 0), (0, 0), (0, 2)])
def test_training_puts_the_next_in_the_place_of_a_broken_one(
    cache_mb, workers, partly_broken, caplog
):
    """In every process alike, in memory or not; each is named once, by whatever worker found it."""
    images = train_split(partly_broken, size=32, cache_mb=cache_mb, workers=workers)
    order = ShuffledBatches(7, 7, seed=0)
    replaced = [0, 20, 20, 30, 50, 50, 60]
    batches = training_batches(images, order, 0, 4, [slice(0, 7)])
    for step, batch in enumerate(batches):
        expected = [replaced[i] for i in order.at(step)[0]]
        assert batch[:, 0, 0, 0].tolist() == expected
    assert images.broken.keys() == {"1.png", "4.png"}
    if cache_mb:
        (message,) = caplog.messages
        assert message.startswith("2 of 7 images are broken and left out: 1.png (")
    else:
        assert len(caplog.messages) == 2 and "the next image takes its place" in caplog.text
        assert "1.png cannot be used (" in caplog.text and "4.png cannot be used (" in caplog.text


def test_only_the_first_broken_items_are_named_one_by_one(tmp_path, caplog):
    for i in range(30):
        write(tmp_path / f"{i:02d}.png", b"no image" if i < 25 else solid(i))
    images = train_split(tmp_path, size=8, cache_mb=0)
    assert values_of(images) == [25, 26, 27, 28, 29] and len(images.broken) == 25
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "further images like these are counted and not named"


def test_broken_items_that_come_at_once_are_named_alike(tmp_path, caplog):
    """As from a worker: one batch may bring more of them than are named."""
    for i in range(30):
        write(tmp_path / f"{i:02d}.png", b"no image" if i < 25 else solid(i))
    images = train_split(tmp_path, size=8, cache_mb=0, workers=1)
    list(training_batches(images, ShuffledBatches(30, 30, 0), 0, 2, [slice(0, 30)]))
    assert len(images.broken) == 25 and len(caplog.messages) == 11


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_split_of_broken_images_is_refused(cache_mb, tmp_path):
    """When it is opened where it is kept, else when it is read, for training or evaluation."""
    for i in range(12):
        write(tmp_path / "d" / f"{i}.png", b"no image")
    message = r"none of the 10 images (of this split|that a process was to measure) can be read"
    if cache_mb:
        with pytest.raises(InputError, match=message):
            opened(tmp_path / "d", size=8, cache_mb=cache_mb)
        return
    for batches in (
        lambda images: sequential_batches(images, 4),
        lambda images: training_batches(images, ShuffledBatches(10, 4, 0), 0, 1, [slice(0, 4)]),
        lambda images: iter([examples_for_figure(images, 4)]),
    ):
        images = opened(tmp_path / "d", size=8, cache_mb=0, workers=0)[1]["train"]
        with pytest.raises(InputError, match=message):
            next(batches(images))


def test_figures_show_readable_examples(partly_broken):
    for cache_mb in (0, 16):
        images = train_split(partly_broken, size=32, cache_mb=cache_mb)
        values = [examples_for_figure(images, n)[:, 0, 0, 0].tolist() for n in (1, 4, 100)]
        assert values == [[0], [0, 20, 50, 60], [0, 20, 30, 50, 60]]


# ------------------------------------------------------------------------------------------ opening


def index_of(count, opened_items, size=8):
    def open_item(i):
        opened_items.append(i)
        return Image.new("L", (size, size), i % 256)

    return FileIndex([str(i) for i in range(count)], open_item)


def test_what_is_not_kept_is_not_read_when_it_is_opened():
    opened_items = []
    images = ImageDataset(index_of(5000, opened_items), ImageConfig(size=8, cache_mb=0), 3)
    assert opened_items == [] and len(images) == 5000
    images.load(17)
    assert opened_items == [17]


def test_a_long_scan_shows_progress():
    shown = []
    index = index_of(300, [])
    ImageDataset(index, ImageConfig(size=8), 3, progress=lambda *counts: shown.append(counts))
    assert shown == [(done, 300) for done in range(1, 301)]
    ImageDataset(
        index_of(200, []), ImageConfig(size=8), 3, progress=lambda *counts: shown.append(counts)
    )
    assert len(shown) == 300


def test_progress_is_passed_on(tmp_path):
    shown = []
    np.savez(tmp_path / "d.npz", x=np.zeros((600, 8, 8), np.uint8))
    config = ImageConfig(source=str(tmp_path / "d.npz"))
    open_data(config, 1, ("train",), progress=lambda *counts: shown.append(counts))
    assert shown[-1] == (510, 510)


def test_many_broken_files_do_not_use_up_the_files_a_process_may_open(tmp_path):
    resource = pytest.importorskip("resource")
    whole = png(noise(16, 16))
    for i in range(300):
        write(tmp_path / "d" / f"{i:03d}.png", whole if i % 4 == 3 else whole[: len(whole) // 2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, hard))
    try:
        images = train_split(tmp_path / "d", size=16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(images.left_out()) == 225
    assert sum(len(batch) for batch in sequential_batches(images, 64)) == 75


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_fault_of_the_machine_is_no_fault_of_an_item(error):
    """It is raised, and the item is read where it is asked for again."""
    answers = [error, Image.new("RGB", (8, 8))]

    def read(i):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    images = ImageDataset(FileIndex(["a"], read), ImageConfig(size=8, cache_mb=0), 3)
    with pytest.raises(type(error), match=str(error.args[-1])):
        images.read(0)
    assert images.read(0)[1].shape == (3, 8, 8) and images.left_out() == []


@pytest.mark.parametrize("name", WHOLE_SOURCES)
def test_a_split_travels_to_a_process_that_shares_nothing(name, tmp_path):
    """Where processes are spawned and not forked, workers get their images by pickle."""
    _, images = opened(WHOLE_SOURCES[name](tmp_path), cache_mb=0)
    assert values_of(pickle.loads(pickle.dumps(images["train"]))) == values_of(images["train"])


def test_a_signal_goes_from_minus_one_to_one():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert torch.allclose(to_signal(batch).flatten(), torch.tensor([-1.0, -0.6, 1.0]), atol=1e-7)
    assert batch.flatten().tolist() == [0, 51, 255]
