"""What is said while training: log lines, validations with alarms, figures, TensorBoard events.

It reads and never changes what is trained.
"""

from types import TracebackType
from typing import Any

from hqvae.config import TrainConfig
from hqvae.console import ProgressBar
from hqvae.errors import InputError
from hqvae.run import Run

from .state import TrainState
from .task import Validation


class Monitor:
    """The first process writes into the run and speaks; the others are silent."""

    def __init__(self, run: Run, state: TrainState, config: TrainConfig):
        self.run = run
        self.state = state
        self.batch_size = config.batch_size
        self.first = state.fabric.global_rank == 0
        self.bar = ProgressBar(state.total, state.step, quiet=not self.first)
        self.status = ""  # the last line on what is trained
        self.writer = None
        if config.tensorboard:
            writer_class = summary_writer_class()
            self.writer = writer_class(str(run.path / "tensorboard")) if self.first else None

    def __enter__(self) -> "Monitor":
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, trace)
        if self.writer is not None:
            self.writer.close()

    def say(self, sentence: str) -> None:
        self.bar.print(sentence)

    def advance(self) -> None:
        self.bar.advance_to(self.state.step)

    def working(self, on: str) -> None:
        """What keeps the bar from moving."""
        self.bar.standing(on)

    def log(self, entry: dict[str, Any], status: str) -> None:
        """One line of the log, and of the screen."""
        rate = self.state.timer.rate(self.state.step) * self.batch_size
        entry = {
            "kind": "train",
            "step": self.state.step,
            "total": self.state.total,
            **entry,
            "lr": self.state.lr,
            "items_per_second": rate,
        }
        self.status = f"{status}  {rate:.0f}/s"
        self.bar.update(self.state.step, self.status)
        if self.first:
            self.run.log(entry)
            self._write_tensorboard(entry)

    def validation(self, validation: Validation) -> None:
        """A validation's log entry, alarms and figures."""
        step = self.state.step
        self.say(f"validation at step {step}: {validation.summary}")
        self.bar.standing(self.status)
        if not self.first:
            return
        self.run.log({"kind": "validation", "step": step, **validation.entry})
        known = {
            (alarm["where"], alarm["finding"])
            for alarm in self.run.entries("alarm")
            if alarm["step"] == self.state.validated
        }
        for alarm in validation.alarms:
            self.run.log({"kind": "alarm", "step": step, **alarm})
            # The screen shows what is new, and at the end all that holds.
            if self.state.step == self.state.total or (
                (alarm["where"], alarm["finding"]) not in known
            ):
                self.say(f"ALARM, on validation data: {alarm['sentence']}")
        figures = {**validation.figures, **self.state.task.history(self.run.entries("train"))}
        for name, figure in figures.items():
            self.run.save_figure(name, figure)

    def stopped(self, has_weights: bool) -> None:
        state = self.state
        unstarted = "" if has_weights else ", before there are weights of use"
        self.say(
            f"stopped at step {state.step} of {state.total}{unstarted}; "
            "the same command with --resume goes on from there"
        )

    def _write_tensorboard(self, entry: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in entry.items():
            values = value if isinstance(value, list) else [value]
            for index, number in enumerate(values):
                if isinstance(number, int | float) and name != "step":
                    label = f"{name}/{index}" if isinstance(value, list) else name
                    self.writer.add_scalar(label, number, entry["step"])
        self.writer.flush()


def summary_writer_class() -> Any:
    """TensorBoard's writer. Raises InputError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "train.tensorboard=true needs TensorBoard: pip install 'hqvae[tensorboard]'"
        ) from error
    return SummaryWriter
