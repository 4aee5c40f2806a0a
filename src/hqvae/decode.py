"""A folder of tokens → pictures or sounds, with the items' keys as names."""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hqvae.console import ProgressBar
from hqvae.data import DataConfig, Modality
from hqvae.errors import InputError
from hqvae.files import atomic_write, said_if_full
from hqvae.ranks import pick_device
from hqvae.run_files import is_unused
from hqvae.tokenizer import Tokenizer
from hqvae.tokens.manifest import TokenFolder
from hqvae.tokens.shards import Row, read_shard, rows_of
from hqvae.trained import open_trained

_AT_ONCE = 64  # batches
_LONGEST = 200  # bytes of a file's name, out of 255


def decode(
    run: str, tokens: str, out: str, layers: int | None = None, accelerator: str = "auto"
) -> int:
    """Write a file for every row; returns how many.

    Args:
        run: folder of the run that the tokens were made with
        tokens: folder that `encode` wrote
        out: folder for the files, new
        layers: how many of the first layers; all when None
        accelerator: auto, cpu or cuda

    Pictures are PNG files, sounds WAV files of 16 bits. Raises InputError for tokens of another
    model, that are damaged or not complete, and for a folder that cannot be used.
    """
    opened = open_trained(run)
    model = opened.load_model()
    folder = TokenFolder(tokens)
    made_with = folder.manifest.made["model"]["sha256"]
    if made_with != opened.weights_sha256():
        raise InputError(
            f"the tokens in {tokens!r} are of another model than run {run!r}: its weights are "
            f"{opened.weights_sha256()[:12]}…, and theirs {made_with[:12]}…"
        )
    most = len(folder.manifest.layout.layers)
    if layers is not None and not 1 <= layers <= most:
        raise InputError(f"layers={layers}: expected 1 to {most}, as the tokens have")
    if Path(out).exists() and not is_unused(Path(out)):
        raise InputError(f"out={out!r} already holds files; choose another folder")
    tokenizer = Tokenizer(model.to(pick_device(accelerator)))
    for _, shard in folder.shards():
        folder.check(shard)  # before the first file is written
    with said_if_full(out, "the same command goes on into another folder"):
        return _write(folder, tokenizer, Path(out), layers, opened.config.data)


def _write(
    folder: TokenFolder, tokenizer: Tokenizer, out: Path, layers: int | None, data: DataConfig
) -> int:
    modality: Modality[Any] = data.modality
    suffix = modality.saved_suffix
    written = 0
    with ProgressBar(folder.manifest.rows, 0, quiet=False) as progress_bar:
        for block in _blocks(folder, tokenizer):
            items = tokenizer.decode([row.tokens for row in block], layers)
            for row, item in zip(block, items):
                with atomic_write(_free_path(out, row.key, suffix)) as temporary:
                    modality.save(item, temporary, data, row.original_size)
            written += len(block)
            progress_bar.show(written, f"{written:,} of {folder.manifest.rows:,} files")
    return written


def _blocks(folder: TokenFolder, tokenizer: Tokenizer) -> Iterator[list[Row]]:
    """Rows together that fill some batches."""
    for _, shard in folder.shards():
        block: list[Row] = []
        points = 0
        for row in rows_of(read_shard(folder.path / shard.name)):
            block.append(row)
            points += math.prod(row.tokens.size)
            if points >= _AT_ONCE * tokenizer.points:
                yield block
                block = []
                points = 0
        if block:
            yield block


def file_name(key: str, suffix: str) -> str:
    """The path below a folder of an item of such a key; nothing leads out of the folder.

    >>> file_name("cats/a.png", ".png"), file_name("b.jpg", ".png"), file_name("../c:d", ".wav")
    ('cats/a.png', 'b.jpg.png', '_/c_d.wav')
    """
    parts = [re.sub(r'[\x00-\x1f\x7f<>:"|?*\\]', "_", part) for part in key.split("/")]
    safe = "/".join("_" if part in ("", ".", "..") else _short(part) for part in parts)
    return safe if safe.lower().endswith(suffix) else safe + suffix


def _short(part: str) -> str:
    """A name that file systems have room for, also with an ending."""
    content = part.encode()
    if len(content) <= _LONGEST:
        return part
    return f"{content[:_LONGEST].decode(errors='ignore')}~{_digest(part)}"


def _free_path(out: Path, key: str, suffix: str) -> Path:
    """A new file of this key: its digest is in the name where another key has had that already.

    So it is with `a.jpg` and `a.jpg.png`.
    """
    path = out / file_name(key, suffix)
    if not path.exists() and not any(parent.is_file() for parent in path.parents):
        return path
    return out / file_name(f"{key.replace('/', '_')}~{_digest(key)}", suffix)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
