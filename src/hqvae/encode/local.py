"""The local engine: this process, one thread for each device, and readers ahead of each."""

import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch

from hqvae.data import Item, Items, Splits
from hqvae.data.dataset import BrokenItem
from hqvae.errors import printable
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.shards import Row, Shard, write_shard

from .engine import Engine
from .job import Job

_BATCHES = 64  # that are coded before rows are handed on
_POLL = 0.1  # seconds
_READERS = 4  # threads that read, at most
_ENCODERS = 8  # threads that compute on the CPU, at most


class Encoder:
    """Writes shards with one tokenizer.

    Args:
        tokenizer: on its device
        splits: the data
        job: the folder of tokens
        readers: threads that read
    """

    def __init__(self, tokenizer: Tokenizer, splits: Splits, job: Job, readers: int):
        self.tokenizer = tokenizer
        self.splits = splits
        self.job = job
        self.readers = readers

    def write(self, shard: Shard) -> Generator[int, None, None]:
        """Code the items of a shard and write it; gives numbers of items as they are done."""
        items = Items(self.splits[shard.split], self.job.manifest.made["whole"])
        # What no shard asks for stands with the first.
        left_out = _entries(items.without_examples() if shard.number == 0 else [])
        footer = {**self.job.footer(), "left_out": left_out}
        with write_shard(self.job.folder / shard.name, self.job.columns, footer) as writer:
            for block in self._blocks(items, shard):
                whole = [item for item in block if isinstance(item, Item)]
                tokens = self.tokenizer.encode_signals([item.signal for item in whole])
                writer.add(
                    [
                        Row(printable(item.key), item.label, item.original_size, of_item)
                        for item, of_item in zip(whole, tokens)
                    ]
                )
                left_out += _entries(item for item in block if isinstance(item, BrokenItem))
                yield len(block)

    def _blocks(self, items: Items, shard: Shard) -> Iterator[list[Item | BrokenItem]]:
        """Items together that fill some batches."""
        block: list[Item | BrokenItem] = []
        points = 0
        for read in items.read_in_order(shard.start, shard.stop, self.readers):
            block += read
            points += sum(item.signal[0].numel() for item in read if isinstance(item, Item))
            if points >= _BATCHES * self.tokenizer.points:
                yield block
                block = []
                points = 0
        if block:
            yield block


def _entries(broken: Iterable[BrokenItem]) -> list[dict[str, str]]:
    """What a shard's footer says of items that are left out."""
    return [{"key": printable(one.key), "reason": printable(one.reason)} for one in broken]


class LocalEngine(Engine):
    """This process: a thread for each GPU, or for each core, and readers beside them.

    Args:
        tokenizer: on the first of the devices
        splits: the data
        readers: threads that read for each that computes; as many as fit when None
    """

    def __init__(self, tokenizer: Tokenizer, splits: Splits, readers: int | None = None):
        self.tokenizer = tokenizer
        self.splits = splits
        self.readers = readers

    def compute(self) -> dict[str, Any]:
        return self.tokenizer.compute()

    def write(self, job: Job, shards: Sequence[Shard]) -> Generator[int, None, None]:
        threads = torch.get_num_threads()
        tokenizers = self._tokenizers(min(threads, len(shards)))
        cores = min(_READERS, os.cpu_count() or 1)
        readers = self.readers or max(1, cores // len(tokenizers))
        encoders = [Encoder(one, self.splits, job, readers) for one in tokenizers]
        # Several that compute on one thread each do more than one that computes on several.
        torch.set_num_threads(max(1, threads // len(encoders)))
        try:
            yield from _share(encoders, shards)
        finally:
            torch.set_num_threads(threads)

    def _tokenizers(self, most: int) -> list[Tokenizer]:
        """One for each GPU where it is on one, else the same one for several threads."""
        if self.tokenizer.device.type != "cuda":
            return [self.tokenizer] * max(1, min(most, _ENCODERS))
        others = range(1, torch.cuda.device_count())
        return [self.tokenizer, *(self.tokenizer.on(f"cuda:{i}") for i in others)]


def _share(encoders: Sequence[Encoder], shards: Sequence[Shard]) -> Iterator[int]:
    """Write the shards, each by one of the encoders; gives numbers of items as they are done.

    Where it is stopped, what is half-written goes.
    """
    waiting: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = threading.Event()
    for shard in shards:
        waiting.put(shard)

    def work(encoder: Encoder) -> None:
        while not stop.is_set():
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            with closing(encoder.write(shard)) as written:
                for count in written:
                    done.put(count)
                    if stop.is_set():
                        return

    with ThreadPoolExecutor(len(encoders)) as pool:
        working = [pool.submit(work, encoder) for encoder in encoders]
        try:
            while not all(future.done() for future in working) or not done.empty():
                for future in working:
                    if future.done():
                        future.result()  # raises what it raised
                try:
                    yield done.get(timeout=_POLL)
                except queue.Empty:
                    continue
            for future in working:
                future.result()
        finally:
            stop.set()
