"""Parquet that does not fit into memory is read row group by row group, to the same items."""

import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from data_files import png, solid

from hqvae.data import ImageConfig, open_source
from hqvae.data.sources import row_groups
from hqvae.data.sources.row_groups import Column, RecentGroups, column_bytes

ROWS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hundred pictures of one grey each in two files, in groups of three rows."""
    root = tmp_path_factory.mktemp("table")
    for number in range(2):
        values = range(number * ROWS // 2, (number + 1) * ROWS // 2)
        cells = [{"bytes": png(solid(value)), "path": None} for value in values]
        table = pa.table({"image": cells, "label": list(values)})
        parquet.write_table(table, root / f"train-{number}.parquet", row_group_size=3)
    return root


@pytest.fixture
def reads(monkeypatch):
    """The groups that are read, in order."""
    found = []
    read = row_groups._read

    def recorded(path, groups, column):
        found.append((path.name, *groups))
        return read(path, groups, column)

    monkeypatch.setattr(row_groups, "_read", recorded)
    return found


def index_of(folder, cache_mb):
    return open_source(ImageConfig(source=str(folder), cache_mb=cache_mb))["train"]


def grey(index, i):
    return index.open(i).getpixel((0, 0))[0]


def test_items_and_labels_are_the_same_held_or_not(folder):
    held = index_of(folder, 100)
    read = index_of(folder, 0)
    assert held.names == read.names and held.labels == read.labels == list(range(ROWS))
    assert [grey(held, i) for i in range(ROWS)] == list(range(ROWS))
    assert [grey(read, i) for i in range(ROWS)] == list(range(ROWS))


def test_nothing_is_read_before_it_is_asked_for(folder, reads):
    index = index_of(folder, 0)
    assert reads == []
    for i in range(ROWS):
        index.open(i)
    assert len(reads) == len(set(reads)) == 2 * 17  # each group once, in order


def test_what_fits_is_read_once(folder, reads):
    index = index_of(folder, 100)
    assert len(reads) == 2
    index.open(7)
    assert len(reads) == 2


def test_threads_share_a_group(folder, reads):
    index = index_of(folder, 0)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda i: grey(index, i), range(ROWS))) == list(range(ROWS))
    assert len(reads) == len(set(reads)) == 2 * 17


def test_another_process_reads_its_own(folder):
    index = index_of(folder, 0)
    index.open(5)
    copy = pickle.loads(pickle.dumps(index.open.args[0][0].cells))
    assert copy.recent._groups == {} and copy[5] == index.open.args[0][0].cells[5]


def test_a_file_without_rows_has_none(tmp_path):
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    assert len(Column(tmp_path / "a.parquet", "image", RecentGroups())) == 0
    assert column_bytes(tmp_path / "a.parquet", "image") < 100


def test_bytes_are_those_of_the_column_alone(tmp_path):
    cells = [bytes([i]) * 10_000 for i in range(4)]
    table = pa.table({"image": cells, "other": [cell * 10 for cell in cells]})
    stream = io.BytesIO()
    parquet.write_table(table, stream, use_dictionary=False)
    (tmp_path / "a.parquet").write_bytes(stream.getvalue())
    assert 40_000 <= column_bytes(tmp_path / "a.parquet", "image") < 90_000


# ------------------------------------------------------------------------------ several threads


def test_groups_are_held_up_to_a_size_and_some_at_least(folder, reads, monkeypatch):
    """In memory for several readers, each in a part of its own."""
    index = index_of(folder, 0)
    for _ in range(2):
        for i in range(ROWS):
            index.open(i)
    assert len(reads) == 2 * 17  # all of them are small
    monkeypatch.setattr(row_groups, "_HELD_BYTES", 0)
    index = index_of(folder, 0)
    for i in range(ROWS):
        index.open(i)
    assert len(index.open.args[0][0].cells.recent._groups) == row_groups._LEAST_HELD == 8


def test_one_group_is_read_while_another_is_and_each_once(folder, monkeypatch):
    """All of four threads read at once, or none would go on."""
    together = threading.Barrier(4, timeout=20)
    read = row_groups._read
    found = []

    def slow(path, groups, column):
        found.append(groups[0])
        together.wait()
        return read(path, groups, column)

    monkeypatch.setattr(row_groups, "_read", slow)
    index = index_of(folder, 0)
    with ThreadPoolExecutor(16) as pool:
        greys = list(pool.map(lambda i: grey(index, i), range(12)))
    assert greys == list(range(12)) and sorted(found) == [0, 1, 2, 3]


def test_a_group_that_could_not_be_read_is_read_again(folder, monkeypatch):
    read = row_groups._read
    errors = [OSError("away")]

    def fails_once(*arguments):
        if errors:
            raise errors.pop()
        return read(*arguments)

    monkeypatch.setattr(row_groups, "_read", fails_once)
    index = index_of(folder, 0)
    with pytest.raises(OSError, match="away"):
        index.open(5)
    assert grey(index, 5) == 5
