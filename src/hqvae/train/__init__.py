"""Training: the one loop, and what it can train."""

from .resume import resumed_config
from .setup import rank_slices, train

__all__ = ["rank_slices", "resumed_config", "train"]
