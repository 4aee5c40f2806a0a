"""The verbs between data sets and tokens: `hqvae encode` and `hqvae decode`."""

import shlex
from typing import Annotated

from cyclopts import Parameter

from hqvae.errors import InputError

from .app import Accelerator, OtherData, RunFolder, Switch, app


@app.command
def encode(
    run: RunFolder,
    *,
    data: OtherData = None,
    out: str,
    whole: Switch = False,
    split: Annotated[str, Parameter(help="all, train, validation or test.")] = "all",
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    shard_items: int | None = None,
    column: str | None = None,
    rate_weight: float | None = None,
    accelerator: Accelerator = "auto",
) -> int:
    """Turn a data set into tokens: Parquet shards with a row for every item, and a manifest.

    Started again, it goes on where it was stopped. Tokens depend on model and data; where two codes
    are nearly as far, also on the kind of device, the processor's instructions and the version of
    torch. They depend on no engine, number of workers or size of shards.

    Examples:

        hqvae encode runs/first --out tokens/first

        hqvae encode runs/first --data ~/pictures --out tokens/mine --whole

        hqvae encode runs/first --data /shared/data --out /shared/tokens --engine ray

    Parameters
    ----------
    out
        Folder for the tokens, new, or one that the same command has begun.
    whole
        Pictures and sounds at their own size; else as the run saw them, sounds in segments.
    engine
        local: this process, on all of its devices. ray: Ray Data, on a cluster.
    address
        Of a Ray cluster, such as auto or 10.0.0.1:6379; Ray is started here when not given.
    workers
        local: threads that read. ray: processes that encode, each with a CPU or a GPU. As many as
        fit when not given.
    shard_items
        Rows of a shard at most; 4096 when not given, or more where that makes over 1000 shards.
    column
        Of a table: the column with the items; that named for training, or the only one.
    rate_weight
        Weight of a learned prior: the higher it is, the fewer bits tokens have.
    """
    from hqvae.encode import EncodeOptions
    from hqvae.encode import encode as run_encoding

    options = EncodeOptions(
        split, whole, engine, address, workers, shard_items, accelerator, column, rate_weight
    )
    manifest = run_encoding(run, data, out, options)
    shards = sum(len(found.shards) for found in manifest.splits.values())
    left_out = sum(manifest.left_out.values())
    if not manifest.rows:
        reason = max(manifest.left_out, key=lambda name: manifest.left_out[name])
        raise InputError(
            f"none of {left_out:,} items could be coded, so {out} holds no tokens; "
            f"most: {reason} ({out}/left-out.jsonl has them all)"
        )
    if left_out:
        print(f"{left_out:,} item(s) are left out; {out}/left-out.jsonl says which, and why")
    print(
        f"{out} holds the tokens of {manifest.rows:,} items in {shards} shard(s); "
        f"next: hqvae decode {shlex.quote(run)} {shlex.quote(out)} --out decoded"
    )
    return 0


@app.command
def ids(
    run: RunFolder,
    *,
    data: OtherData = None,
    out: str,
    rule: str = "token",
    existing: str | None = None,
    column: str | None = None,
    accelerator: Accelerator = "auto",
) -> int:
    """Give every vector a semantic ID: ids.parquet, index.json and the way back from IDs to items.

    Examples:

        hqvae ids runs/items --out ids/first

        hqvae ids runs/items --data new.parquet --existing ids/first --out ids/second

    Parameters
    ----------
    out
        Folder for the IDs, new.
    rule
        Of items with the same codes. token: one more token counts them. nearest: all but one move
        to the nearest free ID. none: they share it.
    existing
        Folder of IDs of the same run, none of which changes; new items are put beside them.
    column
        Of a table: the column with the items; that named for training, or the only one.
    """
    from hqvae.console import print_paragraph
    from hqvae.item_codes import print_ids
    from hqvae.semantic_ids import IdOptions, about_ids, identify

    found = identify(run, data, out, IdOptions(rule, existing, column, accelerator))
    print_ids(found.measures)
    for sentence in about_ids(found):
        print_paragraph(sentence)
    if found.left_out:
        print(f"{found.left_out:,} item(s) are left out; {out}/left-out.jsonl says which, and why")
    print(f"{out} holds the IDs of {len(found.ids):,} items; index.json has them by item")
    return 0


@app.command
def decode(
    run: RunFolder,
    tokens: str,
    *,
    out: str,
    layers: int | None = None,
    accelerator: Accelerator = "auto",
) -> int:
    """Turn tokens back into pictures (PNG), sounds (WAV) or arrays (.npy), named by their keys.

    Examples:

        hqvae decode runs/first tokens/first --out decoded

        hqvae decode runs/first tokens/first --out coarse --layers 2

    Parameters
    ----------
    tokens
        Folder that `hqvae encode` wrote, with the same run.
    out
        Folder for the files, new.
    layers
        How many of the first layers; all when not given.
    """
    from hqvae.decode import decode as run_decoding

    count = run_decoding(run, tokens, out, layers, accelerator)
    print(f"{out} holds {count:,} files")
    return 0
