"""Tokens: the codes of data sets, as files and as sequences for whoever trains on them."""

from .layout import LayerPlace, Layout

__all__ = ["LayerPlace", "Layout"]
