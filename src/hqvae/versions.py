"""Versions of what figures may depend on."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("hqvae", "torch", "numpy", "pillow", "soundfile", "soxr")


def versions() -> dict[str, str]:
    """{package: version} of those that are installed, and Python's.

    >>> sorted(versions().keys() - {"soundfile", "soxr"})
    ['hqvae', 'numpy', 'pillow', 'python', 'torch']
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
