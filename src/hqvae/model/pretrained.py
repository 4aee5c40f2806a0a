"""A model's way to disk and back: `config.json` and `model.safetensors`, no code."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from hqvae.errors import summary_of
from hqvae.files import atomic_write

from .config import HQVAEConfig

if TYPE_CHECKING:
    from .hqvae import HQVAE

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save(model: "HQVAE", folder: Path) -> None:
    """Raises ValueError for a run's folder, whose config says more than a model's."""
    if (folder / CONFIG).is_file() and "format" in json.loads((folder / CONFIG).read_text()):
        raise ValueError(f"{folder} is a run's folder; expected another one for a model alone")
    config = TypeAdapter(HQVAEConfig).dump_python(model.config, mode="json")
    with atomic_write(folder / WEIGHTS) as temporary:
        save_weights(model, temporary)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps({"model": config}, indent=2) + "\n")


def save_weights(model: "HQVAE", path: Path) -> None:
    """The weights, and beside them how codes are chosen: a run may have replaced its posterior."""
    save_model(model, str(path), metadata={"posterior": model.posterior})


def read_config(folder: Path) -> HQVAEConfig:
    """Raises ValueError for a config of another version, or of something else."""
    saved = json.loads((folder / CONFIG).read_text())
    try:
        return TypeAdapter(HQVAEConfig).validate_python(saved.get("model"))
    except ValidationError as error:
        versions = saved.get("versions") or {}
        raise ValueError(
            f"{folder / CONFIG} is no config of a model that this version of hqvae can read; "
            f"it was written by hqvae {versions.get('hqvae', 'of an unknown version')}"
        ) from error


def load_weights(model: "HQVAE", folder: Path) -> None:
    """Put the weights into the model, with the posterior that they were saved with.

    Raises ValueError where they do not fit.
    """
    path = str(folder / WEIGHTS)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        saved = set(file.keys())
    if metadata.get("posterior") == "nearest_code":
        model.use_nearest()
    unknown = sorted(saved - model.state_dict().keys())
    if unknown:
        raise _misfit(folder, f"this model has no {unknown[0]}")
    try:
        missing, _ = load_model(model, path, strict=False)
    except RuntimeError as error:  # of the same names, but other shapes: a line for each
        raise _misfit(folder, str(error).splitlines()[1].strip()) from error
    if missing:
        raise _misfit(folder, f"{min(missing)} is missing")


def _misfit(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"the weights in {folder} do not fit its config.json: {why.rstrip('.')}; "
        "a model with networks of your own needs them again (encoder=…, decoder=…)"
    )


def find_folder(source: str) -> Path:
    """The folder of that name, or a Hugging Face repository's, downloaded.

    Raises FileNotFoundError where neither is found.
    """
    if Path(source).is_dir():
        missing = [name for name in (CONFIG, WEIGHTS) if not (Path(source) / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{source} has no {missing[0]}: "
                "expected a folder that `save_pretrained` or a run wrote"
            )
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{source}: no such folder, and not the name of a repository (owner/name) either"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the hub's many classes: offline, unknown, no right to read
        raise FileNotFoundError(
            f"{source}: no such folder here, and not to be had from the hub: {summary_of(error)}"
        ) from error
