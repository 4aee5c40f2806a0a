"""Semantic IDs: the codes of items as names that a generative recommender can write.

vocabulary.py      tokens such as `<a_12>`
ids.py             keys and codes → IDs
resolve.py         rules for items with the same codes: nearest.py and matching.py move them
trie.py            from an ID to its items, and which tokens may follow
files.py           a folder of IDs, written and read side by side
"""

from .ids import Ids, make_ids
from .resolve import RULES
from .vocabulary import IdVocabulary

__all__ = ["RULES", "IdVocabulary", "Ids", "make_ids"]
