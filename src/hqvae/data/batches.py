"""Batches whose order is a function of (seed, step) alone.

Resuming needs no state, and every process finds its part of a global batch.
"""

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from hqvae.errors import InputError
from hqvae.ranks import all_sum

from .broken import BrokenItem
from .dataset import Dataset

_ORDER = 0  # streams of random numbers
_NOISE = 1

_FAINT = 1e-3  # standard deviation of signals in [−1, 1]; −60 dB of waveforms


@dataclass(frozen=True)
class ShuffledBatches:
    """An endless stream over `count` examples: one shuffle after another.

    The global batch of a step is the next `batch_size` examples of the stream, so none is dropped
    at the end of an epoch.

    >>> batches = ShuffledBatches(count=5, batch_size=3, seed=0)
    >>> epoch = [*batches.at(0)[0], *batches.at(1)[0]][:5]
    >>> sorted(int(index) for index in epoch)
    [0, 1, 2, 3, 4]
    """

    count: int
    """Examples of the split."""
    batch_size: int
    """Examples of a global batch."""
    seed: int
    """Of the order and the augmentation."""

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices [B], augmentation noise [B, 2] in [0, 1)) of a step's global batch."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.count
        indices = [
            _shuffle(self.count, self.seed, int(epoch))[positions[epochs == epoch] % self.count]
            for epoch in np.unique(epochs)
        ]
        noise = np.random.default_rng((self.seed, _NOISE, step)).random((self.batch_size, 2))
        return np.concatenate(indices), noise


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


# ---------------------------------------------------------------------------------------- training


class _RankSampler:
    """(indices, augmentation noise) of the given slices of every global batch."""

    def __init__(self, order: ShuffledBatches, start: int, stop: int, slices: Sequence[slice]):
        self.order = order
        self.steps = range(start, stop)
        self.slices = slices

    def __len__(self) -> int:
        return len(self.steps) * len(self.slices)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in self.steps:
            indices, augment_noise = self.order.at(step)
            for part in self.slices:
                yield indices[part], augment_noise[part]


class _Loaded(NamedTuple):
    """What a worker sends: a batch or an error, and what it found broken."""

    batch: Tensor | None
    broken: dict[int, str]
    error: str


class _TrainingBatches(torch.utils.data.Dataset):
    """A split as a DataLoader reads it: a key is a whole batch.

    An InputError travels as text. Raised in a worker, it would arrive with a traceback inside.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> _Loaded:
        known = len(self.dataset.found_broken())
        try:
            batch = self.dataset.training_batch(*key)
        except InputError as error:
            return _Loaded(None, self.dataset.found_broken(known), str(error))
        return _Loaded(batch, self.dataset.found_broken(known), "")


def training_batches(
    dataset: Dataset, order: ShuffledBatches, start: int, stop: int, slices: Sequence[slice]
) -> Generator[Shaped[Tensor, "B C *S"], None, None]:
    """Raw batches: for each step from `start` to `stop`, the given slices of its global batch.

    A process takes one slice per batch that it accumulates. Closing the generator ends its workers.
    Raises InputError where the split turns out to be of no use.
    """
    workers = 0 if dataset.in_memory else dataset.config.workers
    loader = DataLoader(
        _TrainingBatches(dataset),
        sampler=_RankSampler(order, start, stop, slices),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Its own: to begin would else move the global one, which some quantizers draw from.
        generator=torch.Generator(),
        worker_init_fn=_leave_stopping_to_parent if workers else None,
    )
    before = active_children()
    loaded = iter(loader)
    started = [child for child in active_children() if child not in before]
    try:
        yield from _checked(dataset, loaded)
    finally:
        _end_workers(loaded, started)


def starting_signals(
    dataset: Dataset,
    order: ShuffledBatches,
    step: int,
    count: int = 1,
    device: torch.device | str = "cpu",
) -> Shaped[Tensor, "B C *S"]:
    """The signals that a model is initialised on: those of `count` global batches from `step` on.

    Batches whose signals hardly differ, as recordings have in long silences, give their places to
    the next of the epoch; faint ones stand where there are too few others. So a model starts
    whichever batch happens to be first.

    Raises InputError where the signals of an epoch are all the same constant.
    """
    kept: list[Tensor] = []
    faint: list[Tensor] = []
    for at in range(step, step + max(count, -(-order.count // order.batch_size))):
        signals = dataset.signal(dataset.training_batch(*order.at(at)), device)
        deviation = float(signals.std(correction=0))
        if deviation > _FAINT:
            kept.append(signals)
        elif deviation > 0 and len(faint) < count:
            faint.append(signals)
        if len(kept) == count:
            break
    if not kept and not faint:
        example = dataset.modality.example
        raise InputError(
            f"every {example} of the training split is silent or the same constant; "
            f"expected {dataset.modality.noun}s that differ from each other and within"
        )
    return torch.cat([*kept, *faint][:count])


def _checked(dataset: Dataset, loaded: Iterator[_Loaded]) -> Iterator[Tensor]:
    consequence = f"the next {dataset.modality.example} takes its place"
    for batch, broken, error in loaded:
        dataset.note_broken(broken, consequence)
        if batch is None:
            raise InputError(error)
        yield batch


def _end_workers(loaded: Any, started: Sequence[BaseProcess]) -> None:
    """They end now: as daemons that no signal stops, the interpreter would wait for them for ever.

    Torch ends them with its iterator, which lives on where an exception's traceback holds it.
    """
    if started:
        loaded._shutdown_workers()
    for worker in started:
        worker.kill()  # nothing happens where it has ended
        worker.join()


def _as_it_is(loaded: Any) -> Any:
    return loaded  # torch's own would look for arrays inside


def _leave_stopping_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole group, and the parent needs its workers to finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# -------------------------------------------------------------------------------------- evaluation


def sequential_batches(
    dataset: Dataset, batch_size: int, limit: int | None = None, rank: int = 0, world_size: int = 1
) -> Iterator[Shaped[Tensor, "B C *S"]]:
    """Raw batches of examples in order, each exactly once; broken ones are left out.

    Args:
        dataset: the split; its `broken` grows by what is left out
        batch_size: examples of a batch; the last may be short
        limit: at most so many examples, spread evenly: neighbours are often alike
        rank, world_size: this process and how many there are; examples are dealt to them in turn

    Raises InputError where none of them can be read.
    """
    count = len(dataset)
    spread = np.linspace(0, count - 1, min(count, limit or count)).round().astype(int)
    examples: list[np.ndarray] = []
    measured = 0
    for index in spread[rank::world_size]:
        example = _load_or_none(dataset, int(index))
        if example is None:
            continue
        examples.append(example)
        measured += 1
        if len(examples) == batch_size:
            yield torch.from_numpy(np.stack(examples))
            examples = []
    if examples:
        yield torch.from_numpy(np.stack(examples))
    share = len(spread[rank::world_size])
    # Asked of all processes: one that raised alone would leave the others waiting for its sums.
    if bool(all_sum(torch.tensor(int(share > 0 and not measured)))):
        raise InputError(
            f"none of the {share} {dataset.modality.example}s that a process was to measure can "
            "be read"
        )


def examples_for_figure(dataset: Dataset, count: int) -> Shaped[Tensor, "B C *S"]:
    """A raw batch of up to `count` readable examples, spread over the split.

    Where one is broken, the next one that is not stands in the figure.
    """
    total = len(dataset)
    chosen: dict[int, np.ndarray] = {}
    for wish in np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist():
        for index in [*range(wish, total), *range(wish)]:
            if index in chosen:
                continue
            example = _load_or_none(dataset, index)
            if example is not None:
                chosen[index] = example
                break
    if not chosen:
        raise dataset.nothing_left()
    return torch.from_numpy(np.stack([chosen[index] for index in sorted(chosen)]))


def _load_or_none(dataset: Dataset, index: int) -> np.ndarray | None:
    try:
        return dataset.load_raw(index)
    except BrokenItem as error:
        dataset.note_broken({dataset.item_of(index): error.reason}, "it is left out")
        return None
