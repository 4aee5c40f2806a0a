"""The local engine: this process, one thread for each device, and readers ahead of each."""

import logging
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import torch

from hqvae.data import Block, ItemBlock, Items, Splits, StackedBlock
from hqvae.data.broken import BrokenItem
from hqvae.errors import printable
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.shards import Row, RowStack, Shard, ShardWriter, write_shard

from .engine import Engine
from .job import Job

log = logging.getLogger("hqvae")
_POINTS = 2**20  # of a block of signals, at least; whoever stops waits for one
_VECTORS = 2**14  # of a block, at least
_POLL = 0.1  # seconds
_READERS = 8  # threads that read for one device, at most


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
                self._code(block, writer)
                left_out += _entries(block.broken)
                yield block.items

    def _code(self, block: Block, writer: ShardWriter) -> None:
        keys = [printable(key) for key in block.keys]
        if isinstance(block, StackedBlock):
            codes = self.tokenizer.encode_batch(block.signals)
            writer.add_stack(RowStack(keys, block.labels, block.size, codes))
        elif isinstance(block, ItemBlock):
            tokens = self.tokenizer.encode_signals(block.signals)
            rows = map(Row, keys, block.labels, block.original_sizes, tokens)
            writer.add(list(rows))

    def _blocks(self, items: Items, shard: Shard) -> Iterator[Block]:
        """Items together that fill some batches."""
        blocks: list[Block] = []
        points = 0
        for read in items.read_in_order(shard.start, shard.stop, self.readers):
            blocks.append(read)
            points += read.points
            if points >= block_points(self.tokenizer):
                yield blocks[0].joined(blocks)
                blocks = []
                points = 0
        if blocks:
            yield blocks[0].joined(blocks)


def block_points(tokenizer: Tokenizer) -> int:
    """Of signals that are coded before rows are handed on."""
    return max(_POINTS if tokenizer.layout.axes else _VECTORS, 4 * tokenizer.points)


def _entries(broken: Iterable[BrokenItem]) -> list[dict[str, str]]:
    """What a shard's footer says of items that are left out."""
    return [{"key": printable(one.key), "reason": printable(one.reason)} for one in broken]


class LocalEngine(Engine):
    """This process: a thread for each GPU, or one for all cores, and readers beside them.

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
        tokenizers = self._tokenizers()
        readers = self.readers or max(1, min(_READERS, (os.cpu_count() or 1) // len(tokenizers)))
        encoders = [Encoder(one, self.splits, job, readers) for one in tokenizers]
        yield from _share(encoders, shards)

    def _tokenizers(self) -> list[Tokenizer]:
        """One for each GPU where it is on one; a GPU of another kind would round otherwise."""
        if self.tokenizer.device.type != "cuda":
            return [self.tokenizer]
        others = [self.tokenizer.on(f"cuda:{i}") for i in range(1, torch.cuda.device_count())]
        alike = [one for one in others if one.compute() == self.compute()]
        if len(alike) < len(others):
            log.warning("%d GPU(s) of another kind stay idle", len(others) - len(alike))
        return [self.tokenizer, *alike]


def _wait_for(working: Sequence[Future[None]]) -> None:
    """Until all have ended, whatever signals come: threads that compute cannot be left behind."""
    while True:
        try:
            wait(working)
            return
        except KeyboardInterrupt:
            continue


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
            _wait_for(working)
