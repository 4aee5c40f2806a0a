"""The engine of several machines: Ray Data hands shards to actors that hold the model.

An actor reads its items, codes them and writes its shard, so all nodes see the same folders of data
and tokens. A shard is there whole or not at all, and whoever writes it writes the same bytes: what
a lost actor or node has begun another does again, and nothing is there twice.
"""

import hashlib
import logging
import os
import platform
import re
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import OutOfMemoryError

from hqvae.coded import CodedSource
from hqvae.data import Modality, Splits
from hqvae.errors import InputError, summary_of
from hqvae.model.pretrained import CONFIG, WEIGHTS
from hqvae.run import Run
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.manifest import read_manifest
from hqvae.tokens.shards import Shard
from hqvae.versions import versions

from .engine import Engine
from .job import Job, describe_splits
from .local import Encoder
from .options import EncodeOptions

_OBJECT_STORE = 128 * 2**20  # bytes; what is handed around are names of shards
# Of Ray's own C++: it writes what it mends to the terminal.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_MUST_AGREE = ("hqvae", "torch")  # and what reads the data
_READERS = 2  # threads of an actor that read
_PATIENCE = 10.0  # seconds
# Of a cluster that is asked for and does not answer.
_NO_ANSWER = (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError)


class RayEngine(Engine):
    """A cluster of Ray: the one at an address, or one that is started on this machine.

    Args:
        run: whose model codes; actors get its files through Ray
        weights: the digest of its weights
        source: the data, which every actor opens itself
        options: address, workers and accelerator

    Raises InputError where Ray is not installed, where the cluster does not answer or has no GPU,
    and for weights that training has replaced meanwhile.
    """

    def __init__(self, run: Run, weights: str, source: CodedSource, options: EncodeOptions):
        self.files = {name: (run.path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        if hashlib.sha256(self.files[WEIGHTS]).hexdigest() != weights:
            raise InputError(
                f"run {str(run.path)!r} has saved other weights meanwhile; start again"
            )
        self.source = source
        self.options = options
        self.ray = _import_ray()

    def __enter__(self) -> "RayEngine":
        self.connected_before = self.ray.is_initialized()
        if not self.connected_before:
            self._connect()
        resources = self.ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0)) if self.options.accelerator != "cpu" else 0
        if self.options.accelerator == "cuda" and not self.gpus:
            raise InputError("accelerator 'cuda' was asked for, but the cluster has no GPU")
        self.workers = self.options.workers or self.gpus or max(1, int(resources.get("CPU", 1)))
        return self

    def __exit__(self, *_: object) -> None:
        if not self.connected_before:
            self.ray.shutdown()

    def _connect(self) -> None:
        address = self.options.address
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        here = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        if address is not None:
            _require_answer(address)
        try:
            self.ray.init(address=address or "local", **quiet, **({} if address else here))
        except _NO_ANSWER as error:
            if address is None:
                raise InputError(
                    f"Ray could not be started on this machine ({summary_of(error)}); "
                    "engine='local' does without it"
                ) from error
            raise _no_answer(address, error) from error

    def compute(self) -> dict[str, Any]:
        """As an actor sees it: this process may have no GPU where they have one."""
        remote = self.ray.remote(**self._resources())(_compute)
        with self._said_if_lost():
            return self.ray.get(remote.remote(self.files, bool(self.gpus)))

    def write(self, job: Job, shards: Sequence[Shard]) -> Generator[int, None, None]:
        if not shards:
            return
        data = self.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [asdict(shard) for shard in shards]
        most = min(self.workers, len(shards))
        done = data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(
                *(self.ray.put(self.files), bool(self.gpus)),
                *(self.source.anywhere(), job.anywhere(), versions()),
            ),
            compute=data.ActorPoolStrategy(size=most),
            **self._resources(),
        )
        with self._said_if_lost():
            for row in done.iter_rows():
                if row["error"]:
                    raise InputError(row["error"])
                yield row["items"]

    @contextmanager
    def _said_if_lost(self) -> Iterator[None]:
        """Raises InputError where Ray itself fails in the block, and has given up to mend it."""
        try:
            yield
        except self.ray.exceptions.RayTaskError:
            raise  # of this program, with its traceback
        except (self.ray.exceptions.RayError, self.ray.data.exceptions.SystemException) as error:
            raise InputError(f"Ray has failed: {_why(error)}; the same command goes on") from error

    def _resources(self) -> dict[str, int]:
        """Of one actor."""
        return {"num_gpus": 1} if self.gpus else {"num_cpus": 1}


def _import_ray() -> Any:
    for name, value in _ENVIRONMENT.items():  # read when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.data.exceptions
    except ImportError as error:
        raise InputError("engine='ray' needs Ray: pip install 'hqvae[ray]'") from error
    return ray


def _require_answer(address: str) -> None:
    """Raises InputError where nobody listens; Ray itself would ask for five minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if found is None:  # `auto`, which finds a cluster here or says that there is none
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _why(error: Exception) -> str:
    """The first line of an error of Ray's; the last where it begins with a traceback."""
    first = summary_of(error)
    return str(error).rstrip().splitlines()[-1].strip() if "ray::" in first else first


def _no_answer(address: str, error: Exception) -> InputError:
    return InputError(f"address={address!r}: no Ray cluster answers there ({summary_of(error)})")


# ------------------------------------------------------------------------------ on the nodes


def _tokenizer(
    files: Mapping[str, bytes], on_gpu: bool, rate_weight: float | None = None
) -> Tokenizer:
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        return Tokenizer.from_pretrained(folder, "cuda" if on_gpu else "cpu", rate_weight)


def _compute(files: Mapping[str, bytes], on_gpu: bool) -> dict[str, Any]:
    return _tokenizer(files, on_gpu).compute()


class _Worker:
    """An actor: holds the model, and writes shards.

    What cannot be used is said in a row. An exception would arrive with a traceback of Ray's.
    """

    def __init__(
        self, files: Any, on_gpu: bool, source: CodedSource, job: Job, installed: Mapping[str, str]
    ):
        import ray

        self.job = job
        self.error = ""
        try:
            _check_versions(source, installed)
            rate_weight = job.manifest.made["rate_weight"]
            tokenizer = _tokenizer(ray.get(files), on_gpu, rate_weight)
            _check_place(job, tokenizer)
            splits = _open(source, job.manifest.made, tokenizer.model.config.channels)
            self.encoder = Encoder(tokenizer, splits, job, _READERS)
        except (ValueError, OSError, MemoryError) as error:
            self.error = _on_this_node(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**row)
        items = shard.stop - shard.start
        if not self.error and not (self.job.folder / shard.name).exists():
            try:
                for _ in self.encoder.write(shard):
                    pass
            except (InputError, OSError, MemoryError, OutOfMemoryError) as error:
                self.error = _on_this_node(error)
        return {"items": items, "error": self.error}


def _on_this_node(error: Exception) -> str:
    return f"on node {platform.node()}: {summary_of(error)}"


def _check_versions(source: CodedSource, installed: Mapping[str, str]) -> None:
    """Raises InputError where this node has other versions than `installed` where it was started.

    Its pictures or sounds might be others.
    """
    modality: Modality[Any] = source.config.modality
    for name in (*_MUST_AGREE, *modality.readers):
        here = versions().get(name)
        there = installed.get(name)
        if here != there:
            raise InputError(
                f"{name} is {here or 'not installed'}, and {there or 'not installed'} where this "
                "was started"
            )


def _check_place(job: Job, tokenizer: Tokenizer) -> None:
    """Raises InputError where this node would compute other tokens, or write them elsewhere."""
    manifest = job.manifest
    if tokenizer.compute() != manifest.made["compute"]:
        device = manifest.made["compute"]["device"]
        raise InputError(f"it computes on {tokenizer.compute()['device']}, and others on {device}")
    try:
        seen = read_manifest(job.folder).id() == manifest.id()
    except InputError:
        seen = False
    if not seen:
        raise InputError(
            f"{job.folder} is not seen from here; expected a folder that all nodes share"
        )


def _open(source: CodedSource, made: Mapping[str, Any], channels: int) -> Splits:
    """The splits. Raises InputError where this node sees other data, or can read less of them."""
    wanted = made["data"]["splits"]
    splits = source.open(channels, next(iter(wanted)) if len(wanted) == 1 else "all")
    if describe_splits(splits, made["whole"]) != wanted:
        raise InputError(f"{source.config.source} holds other data than where it was started")
    return splits
