"""The runs of a comparison, each a `hqvae train` and a `hqvae evaluate` in processes of their own, so many at a time.

    OUT/runs/NAME/           an ordinary run
    OUT/runs/NAME.log        what its commands printed
    OUT/results/NAME.json    its figures; a run that has them is done

A run is claimed by locking its log, so any number of `hqvae compare` on the same OUT, on one machine or several that share the
folder, divide the runs among themselves. What is cut off goes on from its checkpoint.
"""

import json
import os
import shlex
import signal
import subprocess
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
from typing import IO, Any

import torch

from hqvae.config import difference, from_dict, to_dict
from hqvae.console import ProgressBar
from hqvae.errors import InputError
from hqvae.files import atomic_write, lock
from hqvae.run import Run

from .spec import Entry, name_of

HQVAE_COMMAND = [sys.executable, "-m", "hqvae.cli"]


@dataclass(frozen=True)
class Machine:
    """What a run is trained on, as `hqvae train` takes it; `jobs` runs at a time, each on GPUs of its own where there are several."""

    accelerator: str = "auto"
    devices: int = 1
    jobs: int = 1

    def environment(self, slot: int) -> dict[str, str]:
        """What the `slot`-th of the runs at a time sets: its share of cores and of GPUs."""
        share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))}
        count = torch.cuda.device_count() if self.jobs > 1 and self.accelerator != "cpu" else 0
        if count > 1:
            named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            share["CUDA_VISIBLE_DEVICES"] = ",".join(named[(slot * self.devices + i) % count] for i in range(self.devices))
        return share


class Folder:
    """Where a comparison lies, and the only place that knows its layout."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def run(self, entry: Entry) -> Path:
        return self.path / "runs" / entry.name

    def log(self, entry: Entry) -> Path:
        return self.path / "runs" / f"{entry.name}.log"

    def result(self, entry: Entry, split: str) -> dict[str, Any] | None:
        """A finished run's figures; None while there are none. Raises InputError when they are another config's."""
        path = self._result(entry.name, split)
        if not path.is_file():
            return None
        saved = json.loads(path.read_text())
        changed = difference(from_dict(saved["config"]), entry.config)
        if changed:
            raise InputError(f"{path} is of another config: {changed}; choose another --out, or delete what is to be run again")
        return saved

    def save_result(self, split: str, result: dict[str, Any]) -> None:
        with atomic_write(self._result(name_of(result["case"], result["system"], result["seed"]), split)) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")

    def _result(self, name: str, split: str) -> Path:
        return self.path / "results" / f"{name}.{split}.json"

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Two processes that finish together write their reports one after the other."""
        with (self.path / "report.lock").open("ab") as held:
            lock(held, wait=True)
            yield


class Grid:
    """The runs of a comparison that are not done yet, and the processes that work on them."""

    def __init__(self, folder: Folder, entries: Sequence[Entry], split: str, machine: Machine):
        self.folder, self.entries, self.split, self.machine = folder, entries, split, machine
        self.stopping = threading.Event()
        self.children: set[subprocess.Popen[bytes]] = set()
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(machine.jobs):
            self.slots.put(slot)

    def work(self, screen: ProgressBar) -> list[str]:
        """Do all runs that are left; a sentence for each that failed or that another process is at.

        Raises KeyboardInterrupt when asked to stop, once the runs have written their checkpoints.
        """
        left = [entry for entry in self.entries if self.folder.result(entry, self.split) is None]
        (self.folder.path / "runs").mkdir(parents=True, exist_ok=True)
        with self._stoppable(), ThreadPoolExecutor(self.machine.jobs) as pool:
            futures = [pool.submit(self._train_and_measure, entry, screen) for entry in left]
            try:
                for done, future in enumerate(as_completed(futures), len(self.entries) - len(left) + 1):
                    future.result()
                    screen.advance_to(done)
            except BaseException:
                self.stop(signal.SIGINT)  # nothing more is begun, and what runs writes its checkpoint
                raise
        if self.stopping.is_set():
            raise KeyboardInterrupt
        outcomes = [(entry, future.result()) for entry, future in zip(left, futures)]
        return [said for entry, said in outcomes if said and self.folder.result(entry, self.split) is None]

    def _train_and_measure(self, entry: Entry, screen: ProgressBar) -> str | None:
        """Train and evaluate one run, unless somebody else does; why it has no figures, None when it has."""
        place, started = f"[{self.entries.index(entry) + 1}/{len(self.entries)}] {entry.title}", time.perf_counter()
        if self.stopping.is_set():
            return None
        with self.folder.log(entry).open("ab") as log:
            if not lock(log):
                return f"{entry.title}: another process is at it"
            if self.folder.result(entry, self.split) is not None:  # somebody else has finished it since
                return None
            again = (self.folder.run(entry) / "config.json").is_file()
            screen.print(f"{place}: {'goes on' if again else 'begins'}")
            slot = self.slots.get()
            try:
                for command in (train_command(entry, self.folder, self.machine, again), self._evaluate_command(entry)):
                    code = self._run(command, log, self.machine.environment(slot))
                    if self.stopping.is_set():
                        return None
                    if code:
                        screen.print(f"{place}: failed")
                        return f"{entry.title} failed with code {code}: {self._last_words(entry)}"
            finally:
                self.slots.put(slot)
            result = result_of(entry, self.folder.run(entry))
            self.folder.save_result(self.split, result)
            measures, minutes = result["measures"], (time.perf_counter() - started) / 60
            screen.print(f"{place}: RMSE {measures['rmse']:.4g}, {measures['psnr']:.2f} dB, {minutes:.1f} minutes")
            return None

    def _run(self, command: list[str], log: IO[bytes], share: dict[str, str]) -> int:
        environment = {**os.environ, **share}
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        # In a session of their own: a terminal's Ctrl-C reaches them through us, once, and once only is a polite stop.
        child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
        self.children.add(child)
        if self.stopping.is_set():
            child.send_signal(signal.SIGINT)
        try:
            return child.wait()
        finally:
            self.children.discard(child)

    def _evaluate_command(self, entry: Entry) -> list[str]:
        words = ["evaluate", str(self.folder.run(entry)), "--split", self.split, "--accelerator", self.machine.accelerator]
        return [*HQVAE_COMMAND, *words, "--batch-size", str(min(64, entry.config.train.batch_size))]

    def _last_words(self, entry: Entry) -> str:
        path = self.folder.log(entry)
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1].removeprefix('hqvae: ')} (all of it: {path})"

    def stop(self, how: signal.Signals) -> None:
        """Begin nothing more, and send this to what runs."""
        self.stopping.set()
        for child in list(self.children):
            child.send_signal(how)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and a polite kill are passed on to the runs, which write a checkpoint; a second one kills them."""

        def asked(number: int, frame: Any) -> None:
            self.stop(signal.SIGKILL if self.stopping.is_set() else signal.SIGINT)

        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_command(entry: Entry, folder: Folder, machine: Machine, again: bool) -> list[str]:
    """The command of one run, that a person could type too."""
    data, out = entry.config.data.source, str(folder.run(entry))
    words = [*HQVAE_COMMAND, "train", entry.preset, *entry.settings, "--data", data, "--out", out, "--accelerator", machine.accelerator]
    return [*words, "--devices", str(machine.devices), *["--resume"] * again]


def result_of(entry: Entry, path: Path) -> dict[str, Any]:
    """What a finished and evaluated run says of itself, with its place in the comparison and its training speed."""
    report = json.loads((path / "report" / "report.json").read_text())
    speeds = [line["images_per_second"] for line in Run.open(path).entries("train")]
    place = {"case": entry.case, "system": entry.system, "seed": entry.seed, "config": to_dict(entry.config)}
    return {**place, **report, "images_per_second": median(speeds[1:] or speeds)}
