"""The scripts of `experiments/`, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"


def script(name: str) -> ModuleType:
    """`experiments/NAME.py`."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
