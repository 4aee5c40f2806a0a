"""What `encode` asks of whoever computes: on what, and shards one after the other."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any

from hqvae.tokens.shards import Shard

from .job import Job


class Engine(ABC):
    """Computes shards. What it computes on is had while its block lasts."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """What tokens depend on beside the model, as `Tokenizer.compute` says it."""

    @abstractmethod
    def write(self, job: Job, shards: Sequence[Shard]) -> Generator[int, None, None]:
        """Write these shards, in any order; gives numbers of items as they are done.

        Raises InputError for what cannot be used.
        """
