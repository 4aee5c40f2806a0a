"""The runs of a comparison, each `hqvae train` and `hqvae evaluate` in processes of their own.

A run is claimed by locking its log. So any number of `hqvae compare` on the same OUT, on one
machine or several that share the folder, divide the runs among themselves. What is cut off goes on
from its checkpoint.
"""

import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from subprocess import DEVNULL, Popen
from typing import IO, Any

import torch

from hqvae.console import ProgressBar
from hqvae.errors import InputError
from hqvae.files import lock, read_json
from hqvae.overrides import to_dict
from hqvae.run import Run

from .folder import ComparisonDir
from .spec import RunSpec

HQVAE_COMMAND = [sys.executable, "-m", "hqvae.cli"]
_EVALUATION_BATCH = 64
_LOOK_EVERY = 2.0  # seconds between two looks at how far a run is
_STEP = re.compile(r"step (\d+)/(\d+)")  # in what `hqvae train` prints


@dataclass(frozen=True)
class Resources:
    """What runs are trained on.

    Args:
        accelerator: auto, cpu or cuda
        devices: of each run
        jobs: runs at a time, each on GPUs of its own where there are several
    """

    accelerator: str = "auto"
    devices: int = 1
    jobs: int = 1

    def environment(self, slot: int) -> dict[str, str]:
        """What the `slot`-th of the runs at a time sets: its share of cores and of GPUs."""
        cores = max(1, (os.cpu_count() or 1) // self.jobs)
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
        count = torch.cuda.device_count() if self.jobs > 1 and self.accelerator != "cpu" else 0
        if count > 1:
            every = ",".join(map(str, range(count)))
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
            first = slot * self.devices
            own = [visible[(first + i) % count] for i in range(self.devices)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return variables


class JobPool:
    """The runs of a comparison that are not done yet, and the processes that work on them."""

    def __init__(
        self, folder: ComparisonDir, specs: Sequence[RunSpec], split: str, resources: Resources
    ):
        self.folder = folder
        self.specs = specs
        self.split = split
        self.resources = resources
        self.stopping = threading.Event()
        self.children: set[Popen[bytes]] = set()
        self.done = 0
        self.parts: dict[str, float] = {}  # run at work → share of it that is done
        self.slots: SimpleQueue[int] = SimpleQueue()
        self.at_once = min(resources.jobs, max(1, len(specs)))
        for slot in range(self.at_once):
            self.slots.put(slot)

    def work(self, progress: ProgressBar) -> list[str]:
        """Do all runs that are left; a sentence for each that has no figures after it.

        Raises KeyboardInterrupt when asked to stop, once the runs have written their checkpoints.
        """
        left = [spec for spec in self.specs if self.folder.result(spec, self.split) is None]
        self.done = len(self.specs) - len(left)
        (self.folder.path / "runs").mkdir(parents=True, exist_ok=True)
        with self._stoppable(), ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self._train_and_evaluate, spec, progress) for spec in left]
            try:
                for future in as_completed(futures):
                    future.result()
                    self.done += 1
                    progress.advance_to(self.done)
            except BaseException:
                # Begin nothing more; what runs writes its checkpoint.
                self.stop(signal.SIGINT)
                raise
        if self.stopping.is_set():
            raise KeyboardInterrupt
        reasons = [future.result() for future in futures]
        return [
            reason
            for spec, reason in zip(left, reasons)
            if reason and self.folder.result(spec, self.split) is None
        ]

    def _train_and_evaluate(self, spec: RunSpec, progress: ProgressBar) -> str | None:
        """One run, unless another process does it; why it has no figures, None when it has."""
        if self.stopping.is_set():
            return None
        with self.folder.log(spec).open("ab") as log:
            if not lock(log):
                return f"{spec.title}: another process is at it"
            if self.folder.result(spec, self.split) is not None:
                return None  # another process has finished it meanwhile
            title = f"[{self.specs.index(spec) + 1}/{len(self.specs)}] {spec.title}"
            start = time.perf_counter()
            code = self._run_commands(spec, title, log, progress)
            if self.stopping.is_set():
                return None
            if code:
                progress.print(f"{title}: failed")
                path = self.folder.log(spec)
                last = self._last_line(spec)
                return f"{spec.title} failed with code {code}: {last} (all of it: {path})"
            result = read_result(spec, self.folder.run(spec))
            self.folder.save_result(self.split, result)
            measures = result["measures"]
            minutes = (time.perf_counter() - start) / 60
            progress.print(
                f"{title}: RMSE {measures['rmse']:.4g}, {measures['psnr']:.2f} dB, "
                f"{minutes:.1f} minutes"
            )
            return None

    def _run_commands(
        self, spec: RunSpec, title: str, log: IO[bytes], progress: ProgressBar
    ) -> int:
        """Train, then evaluate; the exit code of the first that fails, 0 when none does."""
        resume = (self.folder.run(spec) / "config.json").is_file()
        progress.print(f"{title}: {'goes on' if resume else 'begins'}")
        train = train_command(spec, self.folder, self.resources, resume)
        slot = self.slots.get()
        try:
            for command in (train, self._evaluate_command(spec)):
                with self._watching(spec, title, progress):
                    code = self._run(command, log, self.resources.environment(slot))
                if code or self.stopping.is_set():
                    return code
        finally:
            self.parts.pop(title, None)
            self.slots.put(slot)
        return 0

    @contextmanager
    def _watching(self, spec: RunSpec, title: str, progress: ProgressBar) -> Iterator[None]:
        """Show how far a run is, meanwhile."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_EVERY):
                line = self._last_line(spec)
                if step := _STEP.search(line):
                    self.parts[title] = int(step[1]) / int(step[2])
                    progress.show(self.done + sum(self.parts.values()), f"{title}: {line}")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _run(self, command: list[str], log: IO[bytes], variables: dict[str, str]) -> int:
        log.write(f"$ {shlex.join(command)}\n".encode(errors="surrogateescape"))
        log.flush()
        # In a session of its own: a terminal's Ctrl-C reaches it through us, once. A second one
        # would stop it before it has written a checkpoint.
        child = Popen(
            command,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        self.children.add(child)
        if self.stopping.is_set():
            child.send_signal(signal.SIGINT)
        try:
            return child.wait()
        finally:
            self.children.discard(child)

    def _evaluate_command(self, spec: RunSpec) -> list[str]:
        batch_size = min(_EVALUATION_BATCH, spec.config.train.batch_size)
        options = {
            "--split": self.split,
            "--accelerator": self.resources.accelerator,
            "--batch-size": str(batch_size),
        }
        run = str(self.folder.run(spec))
        return [*HQVAE_COMMAND, "evaluate", run, *_words(options)]

    def _last_line(self, spec: RunSpec) -> str:
        """The last that a run has said."""
        text = self.folder.log(spec).read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("hqvae: ") if lines else ""

    def stop(self, how: signal.Signals) -> None:
        """Begin nothing more, and send this signal to what runs."""
        self.stopping.set()
        for child in list(self.children):
            child.send_signal(how)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask the runs to write a checkpoint and stop; a second kills them."""

        def handle(number: int, frame: Any) -> None:
            self.stop(signal.SIGKILL if self.stopping.is_set() else signal.SIGINT)

        stops = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, handle) for number in stops}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def train_command(
    spec: RunSpec, folder: ComparisonDir, resources: Resources, resume: bool
) -> list[str]:
    """The command of one run, which a person could type too."""
    options = {
        "--data": spec.config.data.source,
        "--out": str(folder.run(spec)),
        "--accelerator": resources.accelerator,
        "--devices": str(resources.devices),
    }
    command = [*HQVAE_COMMAND, "train", spec.preset, *spec.settings, *_words(options)]
    return [*command, "--resume"] if resume else command


def _words(options: dict[str, str]) -> list[str]:
    return [word for option in options.items() for word in option]


def read_result(spec: RunSpec, path: Path) -> dict[str, Any]:
    """An evaluated run's report, with its place in the comparison and its training speed."""
    try:
        report = read_json(path / "report" / "report.json")
    except ValueError as error:
        raise InputError(f"{spec.title}: {error}") from error
    entries = Run.open(path).entries("train")
    speeds = [entry["items_per_second"] for entry in entries if "items_per_second" in entry]
    return {
        "case": spec.case,
        "system": spec.system,
        "seed": spec.seed,
        "config": to_dict(spec.config),
        **report,
        "items_per_second": median(speeds[1:] or speeds or [math.nan]),
    }
