"""Training: the one loop, and what it can train."""

from .setup import rank_slices, train

__all__ = ["rank_slices", "train"]
