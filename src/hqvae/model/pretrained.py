"""A model's way to disk and back: `config.json` and `model.safetensors`, no code.

The weights carry a checksum of their own file: safetensors has none, and a bit that a disk has
flipped would be a slightly wrong model.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model

from hqvae.data import DataConfig
from hqvae.errors import summary_of
from hqvae.files import atomic_write, read_json

from .config import HQVAEConfig
from .signals import preparation, read_preparation
from .size import count_codes, count_values

if TYPE_CHECKING:
    from .hqvae import HQVAE
    from .portable import Portable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_BYTES_PER_VALUE = 4


def save(model: "Portable", folder: Path) -> None:
    """Raises ValueError for a run's folder, whose config says more than a model's."""
    if (folder / CONFIG).is_file() and "format" in read_json(folder / CONFIG):
        raise ValueError(f"{folder} is a run's folder; expected another one for a model alone")
    config = {"model": TypeAdapter(HQVAEConfig).dump_python(model.config, mode="json")}
    if model.data is not None:
        config["data"] = preparation(model.data)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_weights(model, temporary)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def save_weights(model: "Portable", path: Path) -> None:
    """The weights, how codes are chosen (a run may replace its posterior), and a checksum.

    That is the SHA-256 of the file with zeros in the checksum's place. The same weights make the
    same file.
    """
    save_model(model, str(path), metadata={"posterior": model.posterior, "sha256": _NO_DIGEST})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # theirs is at random
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    assert len(ordered) == end - 8
    content = content[:8] + ordered + content[end:]
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content.replace(_NO_DIGEST.encode(), digest, 1))


def check_weights(path: Path) -> None:
    """Raises ValueError for a file that is not as it was written; older ones have no checksum."""
    try:
        with safe_open(str(path), "pt") as file:
            expected = (file.metadata() or {}).get("sha256")
        content = path.read_bytes()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file: {summary_of(error)}"
        ) from error
    if expected is None:
        return
    zeroed = _DIGEST.sub(b'"sha256":"%b"' % _NO_DIGEST.encode(), content, count=1)
    if hashlib.sha256(zeroed).hexdigest() != expected:
        raise ValueError(f"{path} is damaged: its content does not have the checksum it names")


def read_config(folder: Path) -> HQVAEConfig:
    """Raises ValueError for a config of another version, or of something else."""
    saved = read_json(folder / CONFIG)
    try:
        return TypeAdapter(HQVAEConfig).validate_python(saved.get("model"))
    except ValidationError as error:
        versions = saved.get("versions")
        known = versions if isinstance(versions, dict) else {}
        first = error.errors()[0]
        where = ".".join(map(str, ("model", *first["loc"])))
        raise ValueError(
            f"{folder / CONFIG} is no config of a model that this version of hqvae can read "
            f"({where}: {first['msg']}); "
            f"it was written by hqvae {known.get('hqvae', 'of an unknown version')}"
        ) from error


def read_data(folder: Path) -> DataConfig | None:
    """What the model's signals are; None where its folder does not say.

    Raises ValueError for what cannot be read.
    """
    try:
        return read_preparation(read_json(folder / CONFIG).get("data"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def check_sizes(config: HQVAEConfig, folder: Path, own_networks: bool) -> None:
    """Raises ValueError for a config of another size than the weights, before all is allocated."""
    count = count_codes(config) if own_networks else count_values(config)
    held = (folder / WEIGHTS).stat().st_size // _BYTES_PER_VALUE
    if count > 2 * held:  # half-precision weights are as many in half of the bytes
        raise _misfit(folder, f"it describes at least {count:,} values, and they are {held:,}")


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

    Raises FileNotFoundError where neither is found, ValueError for what cannot be a name.
    """
    try:
        is_folder = Path(source).is_dir()
    except (OSError, ValueError) as error:  # too long, or not to be read
        raise ValueError(f"{source[:80]!r} is no name of a folder: {summary_of(error)}") from error
    if is_folder:
        missing = [name for name in (CONFIG, WEIGHTS) if not (Path(source) / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{source} has no {missing[0]}: "
                "expected a folder that `save_pretrained` or a run wrote"
            )
        return Path(source)
    if Path(source).is_file():
        raise FileNotFoundError(f"{source} is a file; expected the folder that it lies in")
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
