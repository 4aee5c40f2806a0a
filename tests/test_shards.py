"""A folder of tokens: whole whatever stopped it, and refused where it is anything else."""

import errno
import os
import shutil
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from data_files import torn_png, write
from processes import CAN_FORK, start
from token_files import (
    COUNT,
    CUT,
    bytes_of,
    encode_words,
    encoded,
    left_out,
    photographs,
    picture,
    refused,
    rows,
    same_rows,
    shards_of,
)

from hqvae.cli import main
from hqvae.encode.local import LocalEngine
from hqvae.errors import InputError
from hqvae.files import lock
from hqvae.tokens import LayerPlace, Layout, Tokens
from hqvae.tokens.manifest import read_manifest
from hqvae.tokens.shards import (
    Row,
    RowStack,
    ShardWriter,
    read_footer,
    read_shard,
    rows_of,
    schema,
    write_shard,
)

WORDS = ("--shard-items", 8)


# ------------------------------------------------------------------------------ stopped


EVENTS = [(os, "fsync"), (os, "replace"), (os, "link"), (ShardWriter, "add")]
EVENTS += [(parquet.ParquetWriter, "write_table"), (parquet.ParquetWriter, "close")]


class Moments:
    """Counts what is done to files, and does something else in place of the one numbered."""

    def __init__(self, monkeypatch, number=None, instead=None):
        self.count = 0
        for owner, name in EVENTS:
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name), number, instead))

    def _counting(self, original, number, instead):
        def counted(*arguments, **options):
            self.count += 1
            if self.count == number:
                instead()
            return original(*arguments, **options)

        return counted


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty pictures, three of them broken."""
    root = photographs(tmp_path_factory.mktemp("source") / "d", 20)
    for i in (3, 11, 12):
        write(next(root.rglob(f"{i:03d}.png")), torn_png())
    return root


@pytest.fixture(scope="module")
def undisturbed(picture_run, source, tmp_path_factory):
    """(its tokens, how many moments there are)."""
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch)
        out = encoded(picture_run, source, tmp_path_factory.mktemp("u") / "t", "--shard-items", 4)
    assert len(left_out(out)) == 3
    return out, moments.count


@pytest.mark.skipif(not CAN_FORK, reason="moments are patched in, which a fork keeps")
@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize("tenth", range(10))
def test_a_killed_process_goes_on_to_the_same_bytes(
    tenth, encoders, picture_run, source, undisturbed, tmp_path, monkeypatch
):
    whole, moments = undisturbed

    def several(engine):
        return [engine.tokenizer] * encoders

    monkeypatch.setattr(LocalEngine, "_tokenizers", several)
    words = encode_words(picture_run, source, tmp_path / "t", "--shard-items", 4)
    with monkeypatch.context() as patch:
        number = 1 + tenth * (moments - 1) // 9
        Moments(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        process = start(*words, log=tmp_path / "log")
        assert process.wait(60) == -9, (tmp_path / "log").read_text()
    there = len(shards_of(tmp_path / "t"))
    assert there < 5 or tenth == 9
    assert main(words) == 0
    assert bytes_of(tmp_path / "t") == bytes_of(whole)  # so nothing half-written is left


@pytest.mark.skipif(not CAN_FORK, reason="moments are patched in, which a fork keeps")
def test_control_c_stops_and_goes_on(picture_run, source, undisturbed, tmp_path, monkeypatch):
    whole, moments = undisturbed
    words = encode_words(picture_run, source, tmp_path / "t", "--shard-items", 4)
    with monkeypatch.context() as patch:
        Moments(patch, moments // 2, lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(1)))
        process = start(*words, log=tmp_path / "log")
        assert process.wait(60) == 130
    assert (tmp_path / "log").read_text().splitlines()[-1] == "hqvae: interrupted"
    assert not list((tmp_path / "t").glob(".*")) and len(shards_of(tmp_path / "t")) < 5
    assert main(words) == 0
    assert bytes_of(tmp_path / "t") == bytes_of(whole)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("tenth", range(10))
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    tenth, picture_run, source, undisturbed, tmp_path, monkeypatch, capsys
):
    whole, moments = undisturbed
    words = encode_words(picture_run, source, tmp_path / "t", "--shard-items", 4)
    with monkeypatch.context() as patch:
        Moments(patch, 1 + tenth * (moments - 1) // 9, full)
        capsys.readouterr()
        assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"hqvae: no space left on the disk of {tmp_path / 't'}; free some, "
        "and the same command goes on"
    )
    there = shards_of(tmp_path / "t")
    assert there.items() <= shards_of(whole).items()
    assert not list((tmp_path / "t").glob(".*"))
    assert main(words) == 0
    assert bytes_of(tmp_path / "t") == bytes_of(whole)


def test_a_complete_folder_stays_as_it_is(copied, picture_run, photographs, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    capsys.readouterr()
    encoded(picture_run, photographs, copied, *WORDS)
    said = capsys.readouterr().out
    assert said == (
        f"{copied} holds the tokens of {COUNT} items in 7 shard(s); "
        f"next: hqvae decode {picture_run} {copied} --out decoded\n"
    )
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir()} == before


def test_a_shard_that_was_deleted_is_written_again(copied, tokens, picture_run, photographs):
    (copied / "train-00002-of-00005.parquet").unlink()
    encoded(picture_run, photographs, copied, *WORDS)
    assert bytes_of(copied) == bytes_of(tokens)


def test_data_that_moved_meanwhile_are_gone_on_with(
    copied, tokens, picture_run, photographs, tmp_path, caplog
):
    (copied / "train-00002-of-00005.parquet").unlink()
    moved = shutil.copytree(photographs, tmp_path / "moved")
    encoded(picture_run, moved, copied, *WORDS)
    assert bytes_of(copied) == bytes_of(tokens)
    assert f"goes on with {moved}, whose items have the same names" in caplog.text


def test_what_was_mended_is_no_longer_listed(picture_run, tmp_path):
    source = photographs(tmp_path / "d", 4)
    broken = next(source.rglob("002.png"))
    write(broken, torn_png())
    out = encoded(picture_run, source, tmp_path / "t")
    assert len(left_out(out)) == 1
    write(broken, picture(2))
    (shard,) = out.glob("*.parquet")
    shard.unlink()
    encoded(picture_run, source, out)
    assert len(rows(out)) == 4 and not (out / "left-out.jsonl").exists()


def test_two_processes_do_not_write_at_once(copied, picture_run, photographs, capsys):
    (copied / "test-00000-of-00001.parquet").unlink()
    before = bytes_of(copied)
    with (copied / "manifest.json").open("r+b") as file:
        assert lock(file)
        line = refused(encode_words(picture_run, photographs, copied, *WORDS), capsys)
    assert "is in use: another process writes tokens into it" in line
    assert bytes_of(copied) == before


@pytest.mark.skipif(not CAN_FORK, reason="too slow where each process imports torch")
def test_of_two_processes_that_begin_at_once_one_writes(
    tokens, picture_run, photographs, tmp_path, monkeypatch
):
    """Both find an empty folder before either writes its manifest."""
    link = os.link
    monkeypatch.setattr(os, "link", lambda *paths: (time.sleep(1), link(*paths)))
    words = encode_words(picture_run, photographs, tmp_path / "t", *WORDS)
    logs = [tmp_path / "one", tmp_path / "other"]
    processes = [start(*words, log=log) for log in logs]
    codes = [process.wait(60) for process in processes]
    said = "".join(log.read_text() for log in logs)
    assert 0 in codes and set(codes) <= {0, 2} and "Traceback" not in said
    assert codes == [0, 0] or "is in use" in said
    assert bytes_of(tmp_path / "t") == bytes_of(tokens)


# ------------------------------------------------------------------------------ other readers


@pytest.mark.parametrize(
    ("codes", "kind"), [(8, "uint8"), (256, "uint8"), (257, "uint16"), (70000, "uint32")]
)
def test_codes_have_the_smallest_type_that_holds_them(codes, kind):
    columns = schema(Layout((LayerPlace(0, 0, 4, codes),), axes=1), None)
    assert str(columns.field("codes_0").type.value_type) == kind
    assert "label" not in columns.names


def expected_codes(folder):
    """{key: flat codes of each layer} by our own reader."""
    return {row.key: [c.flatten().tolist() for c in row.tokens.codes] for row in rows(folder)}


def codes_in(records):
    layers = [f"codes_{layer}" for layer in range(4)]
    return {one["key"]: [list(map(int, one[name])) for name in layers] for one in records}


def test_pyarrow_reads_the_shards(tokens):
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(sorted(tokens.glob("*.parquet"))).to_table()
    assert codes_in(table.to_pylist()) == expected_codes(tokens)
    assert str(table.schema.field("codes_0").type.value_type) == "uint8"
    footer = read_footer(tokens / "train-00001-of-00005.parquet")
    assert footer["rows"] == 8 and footer["made"] == read_manifest(tokens).id()


def test_pandas_reads_the_shards(tokens):
    pandas = pytest.importorskip("pandas")
    frames = [pandas.read_parquet(path) for path in sorted(tokens.glob("*.parquet"))]
    found = pandas.concat(frames)
    assert codes_in(found.to_dict("records")) == expected_codes(tokens)
    first = found.set_index("key").loc["cat/000.png"]
    assert first.label == "cat" and list(first.original_size) == [16, 16]
    assert np.stack([list(shape) for shape in first.shapes]).tolist() == [[2, 2]] * 2 + [[4, 4]] * 2


def test_duckdb_reads_the_shards(tokens):
    duckdb = pytest.importorskip("duckdb")
    read = f"read_parquet('{tokens}/*.parquet')"
    found = duckdb.sql(f"select * from {read}").fetchall()
    names = [column[0] for column in duckdb.sql(f"describe select * from {read}").fetchall()]
    assert codes_in([dict(zip(names, row)) for row in found]) == expected_codes(tokens)
    many = duckdb.sql(f"select label, count(*) from {read} group by label order by label")
    assert many.fetchall() == [("cat", 14), ("dog", 13), ("owl", 13)]


def test_datasets_reads_the_shards_and_finds_the_splits(tokens, tmp_path):
    datasets = pytest.importorskip("datasets")
    cache = {"cache_dir": str(tmp_path / "cache")}
    files = {"train": str(tokens / "train-*.parquet"), "test": str(tokens / "test-*.parquet")}
    named = datasets.load_dataset("parquet", data_files=files, **cache)
    found = datasets.load_dataset(str(tokens), **cache)
    assert {name: len(split) for name, split in found.items()} == CUT
    assert named["train"][:] == found["train"][:] and named["test"][:] == found["test"][:]
    records = [record for split in found.values() for record in split]
    assert codes_in(records) == expected_codes(tokens)
    assert str(found["train"].features["codes_0"].feature.dtype) == "uint8"


def test_datasets_finds_the_splits_beside_a_list_of_what_is_left_out(
    picture_run, source, undisturbed, tmp_path
):
    datasets = pytest.importorskip("datasets")
    out = encoded(picture_run, source, tmp_path / "t")  # fewer shards than other files
    assert same_rows(rows(out), rows(undisturbed[0])) and left_out(out)
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert codes_in(found["train"]) == expected_codes(out)


def test_a_shard_without_a_row_can_be_read(picture_run, tmp_path):
    source = photographs(tmp_path / "d", 4)
    for i in range(2):
        write(next(source.rglob(f"{i:03d}.png")), torn_png())
    out = encoded(picture_run, source, tmp_path / "t", "--shard-items", 1)
    assert len(rows(out)) == 2
    tables = [parquet.read_table(path) for path in sorted(out.glob("*.parquet"))]
    assert sorted(table.num_rows for table in tables) == [0, 0, 1, 1]
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert codes_in(found["train"]) == expected_codes(out)
    assert threading.active_count() < 20


@pytest.mark.parametrize("row_group", [1, 2**24])
@pytest.mark.parametrize("label_type", [None, "integer", "string"])
def test_rows_of_one_size_are_written_as_others_are(label_type, row_group, tmp_path, monkeypatch):
    monkeypatch.setattr("hqvae.tokens.shards._ROW_GROUP", row_group)
    layout = Layout((LayerPlace(0, 0, 4, 300), LayerPlace(0, 0, 2, 70_000)), 1)
    codes = torch.arange(80).reshape(10, 8), 1000 * torch.arange(40).reshape(10, 4)
    labels = [None, 7] * 5 if label_type == "integer" else [None, "café"] * 5
    keys = [f"item {i}" for i in range(10)]
    columns = schema(layout, label_type)
    with write_shard(tmp_path / "rows.parquet", columns, {}) as writer:
        for i, key in enumerate(keys):
            tokens = Tokens(tuple(of_layer[i] for of_layer in codes), (8,))
            writer.add([Row(key, labels[i], (8,), tokens)])
    with write_shard(tmp_path / "stacks.parquet", columns, {}) as writer:
        for part in (slice(0, 3), slice(3, 3), slice(3, 10)):
            of_part = tuple(of_layer[part] for of_layer in codes)
            writer.add_stack(RowStack(keys[part], labels[part], (8,), of_part))
    tables = [parquet.read_table(tmp_path / name) for name in ("rows.parquet", "stacks.parquet")]
    assert tables[0].equals(tables[1]) and tables[0].num_rows == 10
    assert read_footer(tmp_path / "stacks.parquet")["rows"] == 10


def test_rows_stay_in_order_whoever_adds_them(tmp_path):
    columns = schema(Layout((LayerPlace(0, 0, 4, 300),), 1), None)
    one = torch.arange(2)
    with write_shard(tmp_path / "a.parquet", columns, {}) as writer:
        writer.add([Row("a", None, (8,), Tokens((one,), (8,)))])
        writer.add_stack(RowStack(["b", "c"], [None, None], (8,), (torch.stack([one, one]),)))
        writer.add([Row("d", None, (8,), Tokens((one,), (8,)))])
    assert parquet.read_table(tmp_path / "a.parquet")["key"].to_pylist() == list("abcd")


def test_no_more_of_a_shard_is_read_than_is_asked_for(tmp_path, monkeypatch):
    """The second of its row groups is damaged, and the first is read before that is found."""
    monkeypatch.setattr("hqvae.tokens.shards._ROW_GROUP", 64)
    layout = Layout((LayerPlace(0, 0, 8, 300),), 1)
    codes = torch.arange(64)
    made = [Row(str(i), None, (512,), Tokens((codes,), (512,))) for i in range(3)]
    path = tmp_path / "train-00000-of-00001.parquet"
    with write_shard(path, schema(layout, None), {}) as writer:
        writer.add(made)
    assert [row.key for row in rows_of(read_shard(path))] == ["0", "1", "2"]
    chunk = parquet.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset
    content[start : start + 30] = bytes(30)
    path.write_bytes(content)
    found = rows_of(read_shard(path))
    assert next(found).key == "0"
    with pytest.raises(InputError, match=r"is damaged: .*; delete it, and the same `hqvae encode`"):
        next(found)
