"""Measures in, findings and advice out: which layers carry what, what collapsed, what to change."""

from .findings import Finding, findings
from .words import diagnose

__all__ = ["Finding", "diagnose", "findings"]
