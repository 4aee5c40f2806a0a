"""Tokens: the codes of data sets, as files and as sequences for whoever trains on them."""

from .layout import LayerPlace, Layout
from .tokens import Tokens, same_tokens, smallest_type

__all__ = ["LayerPlace", "Layout", "Tokens", "same_tokens", "smallest_type"]
