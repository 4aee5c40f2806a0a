"""Versions of what figures may depend on."""

import platform
from importlib.metadata import version

_PACKAGES = ("hqvae", "torch", "numpy", "pillow")


def versions() -> dict[str, str]:
    """{package: version}, and Python's.

    >>> sorted(versions())
    ['hqvae', 'numpy', 'pillow', 'python', 'torch']
    """
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
