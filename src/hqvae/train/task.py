"""Task: what the loop asks of whatever it trains."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from matplotlib.figure import Figure
from torch import Tensor, nn

from hqvae.run import Run


@runtime_checkable
class Terms(Protocol):
    """What a step's objective is made of: at least the loss, a mean over the batch."""

    @property
    def loss(self) -> Tensor: ...


TermsT = TypeVar("TermsT", bound=Terms)


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    loss: the objective, whose fall a plateau schedule watches
    entry: plain values, for the log
    summary: one line, for people
    alarms: plain values for the log, of each thing that went wrong: at least `where`, `finding`
        and `sentence`
    figures: by file name
    """

    loss: float
    entry: dict[str, Any]
    summary: str
    alarms: Sequence[dict[str, Any]] = ()
    figures: dict[str, Figure] = field(default_factory=dict)


class Task(ABC, Generic[TermsT]):
    """A model and what training it means. The loop calls these in the order they stand here.

    `model` is the module whose weights are trained; what Fabric makes of it is given to `loss`.
    """

    model: nn.Module

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Adam's parameter groups, each with its learning rate."""

    @abstractmethod
    def batches(self, start: int) -> Generator[list[Tensor], None, None]:
        """From step `start` on, each step's batches of this process: one per accumulation.

        The loop closes it, and with it what it reads from.
        """

    @abstractmethod
    def enter(self, step: int, average: nn.Module | None) -> str | None:
        """Begin the phase that starts at this step, in the model and in its average.

        Returns a sentence for people where one begins. Changes state.
        """

    @abstractmethod
    def share(self, model: Any, batches: Sequence[Tensor], step: int) -> Any:
        """What the losses of a step's accumulated batches have to know of each other."""

    @abstractmethod
    def loss(
        self, model: Any, batches: Sequence[Tensor], part: int, step: int, shared: Any
    ) -> TermsT:
        """The objective's terms of one of a step's accumulated batches."""

    @abstractmethod
    def after_step(self, terms: Sequence[TermsT], step: int) -> None:
        """What moves beside the optimiser; counters. Changes state."""

    @abstractmethod
    def log(self, terms: Sequence[TermsT], step: int) -> tuple[dict[str, Any], str]:
        """(plain values for the log, one line for people); asked in every process."""

    @abstractmethod
    def clear_counters(self) -> None:
        """Begin to count anew, after a log line. Changes state."""

    @abstractmethod
    def finish(self, model: nn.Module) -> None:
        """The last step is done: fit to the weights that are saved what they leave open.

        Changes state.
        """

    @abstractmethod
    def validate(self, model: nn.Module, step: int) -> Validation | None:
        """Measure the weights that would be saved; None while there is nothing to measure."""

    @abstractmethod
    def history(self, entries: Sequence[dict[str, Any]]) -> dict[str, Figure]:
        """Figures of the log's entries of kind "train" so far, by file name."""

    @abstractmethod
    def can_save(self, step: int) -> bool:
        """Whether the weights are of use at this step."""

    @abstractmethod
    def save_weights(self, run: Run, model: nn.Module) -> None:
        """Write the weights that are to be used into the run."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimiser; asked in every process."""

    @abstractmethod
    def load_state(self, state: dict[str, Any], average: nn.Module | None) -> None:
        """Put the task, its model's phase and its average's back. Changes state."""

    @abstractmethod
    def describe(self) -> str:
        """One line: what is trained on what."""
