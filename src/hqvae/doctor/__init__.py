"""Measures in, findings and advice out: which layers carry what, what collapsed, what to change."""

from .findings import SILENT, Finding, findings
from .ids import diagnose_ids
from .words import diagnose

__all__ = ["SILENT", "Finding", "diagnose", "diagnose_ids", "findings"]
