"""What a caller of `encode` chooses."""

from dataclasses import dataclass

from hqvae.data import SPLITS
from hqvae.errors import InputError, nearest_name
from hqvae.quantize import check_weight

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EncodeOptions:
    """What of the data is coded, and by whom. No token depends on engine or workers.

    split: all, or one of train, validation, test
    whole: items at their own size; else as the run saw them
    engine: local (this process) or ray
    address: of a Ray cluster; one is started here when None
    workers: local: threads that read for each device; ray: actors. As many as fit when None
    shard_items: items of a shard; 4096 when None, or more where that makes over 1000 shards
    accelerator: auto, cpu or cuda
    column: of a table, with the items; that of the training, or the only one, when None
    rate_weight: of a learned prior: the higher it is, the fewer bits tokens have. The model's own
        when None

    Raises InputError for what cannot be.
    """

    split: str = "all"
    whole: bool = False
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    shard_items: int | None = None
    accelerator: str = "auto"
    column: str | None = None
    rate_weight: float | None = None

    def __post_init__(self) -> None:
        if self.split not in ("all", *SPLITS):
            raise InputError(
                f"split {self.split!r} does not exist; {nearest_name(self.split, ('all', *SPLITS))}"
            )
        if self.engine not in ENGINES:
            raise InputError(
                f"engine {self.engine!r} does not exist; {nearest_name(self.engine, ENGINES)}"
            )
        for name in ("workers", "shard_items"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name}={count}: expected at least 1")
        if self.rate_weight is not None:
            check_weight(self.rate_weight)
        if self.address is not None and self.engine != "ray":
            raise InputError(f"address={self.address!r} is of a Ray cluster; expected engine='ray'")
