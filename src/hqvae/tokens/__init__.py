"""Tokens: the codes of data sets, as files and as sequences for whoever trains on them."""

from .layout import LayerPlace, Layout
from .view import View
from .views import VIEWS, ByLayer, ByPosition, Delay, PerLayer
from .vocabulary import Vocabulary

__all__ = [
    "VIEWS",
    "ByLayer",
    "ByPosition",
    "Delay",
    "LayerPlace",
    "Layout",
    "PerLayer",
    "View",
    "Vocabulary",
]
