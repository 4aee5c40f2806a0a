"""Semantic IDs: the codes of items as names that a generative recommender can write.

vocabulary.py      tokens such as `<a_12>`
ids.py             keys and codes → IDs
resolve.py         rules for items with the same codes: nearest.py and matching.py move them
trie.py            from an ID to its items, and which tokens may follow
files.py           a folder of IDs, written and read side by side: table.py and json_files.py
"""

from .files import StoredIds, read_ids, write_ids
from .ids import Ids, make_ids
from .resolve import RULES
from .trie import IdTrie
from .vocabulary import IdVocabulary

__all__ = [
    "RULES",
    "IdTrie",
    "IdVocabulary",
    "Ids",
    "StoredIds",
    "make_ids",
    "read_ids",
    "write_ids",
]
