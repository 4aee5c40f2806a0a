"""Tokens: the codes of data sets, as files and as sequences for whoever trains on them."""

from .dataset import TokenDataset
from .layout import LayerPlace, Layout
from .tokens import Tokens, smallest_type
from .view import View
from .views import VIEWS, ByLayer, ByPosition, Delay, Flat, PerLayer
from .vocabulary import Vocabulary

__all__ = [
    "VIEWS",
    "ByLayer",
    "ByPosition",
    "Delay",
    "Flat",
    "LayerPlace",
    "Layout",
    "PerLayer",
    "TokenDataset",
    "Tokens",
    "View",
    "Vocabulary",
    "smallest_type",
]
