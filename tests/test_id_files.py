"""A folder of IDs: what is read is what was written, and damage is named."""

import hashlib
import json

import pyarrow.parquet as parquet
import pytest
import torch
from id_items import Items

from hqvae.errors import InputError
from hqvae.ids import IdVocabulary, make_ids, read_ids, write_ids
from hqvae.ids.vocabulary import letters

FILES = ("ids.parquet", "index.json", "inverse.json")
LABELS = {
    "strings": lambda count: [None if row % 5 == 0 else f"class {row % 3}" for row in range(count)],
    "integers": lambda count: [row % 3 for row in range(count)],
    "none": lambda count: None,
    "all missing": lambda count: [None] * count,
}


@pytest.fixture(params=["none", "token", "nearest"])
def ids(request):
    return Items(40, (4, 4, 4)).make(request.param)


@pytest.fixture
def folder(tmp_path):
    """A folder of IDs to be damaged."""
    write_ids(tmp_path / "ids", Items(40, (4, 4, 4)).make("token"))
    return tmp_path / "ids"


def same(one, other):
    tensors = ((one.codes, other.codes), (one.model_codes, other.model_codes))
    extras = [ids.extra is None or ids.extra.tolist() for ids in (one, other)]
    return (
        (one.keys, one.rule, one.vocabulary) == (other.keys, other.rule, other.vocabulary)
        and all(torch.equal(*pair) for pair in tensors)
        and extras[0] == extras[1]
    )


# ------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_what_is_read_is_what_was_written(ids, labels, tmp_path):
    labels = labels(len(ids))
    made = {"model": "abc", "beam_size": 4}
    write_ids(tmp_path, ids, labels, made, {"collisions": {"items": 40}})
    stored = read_ids(tmp_path)
    assert same(stored.ids, ids)
    assert stored.labels == (None if labels is None or not any(labels) else labels)
    assert stored.made == made and stored.measures == {"collisions": {"items": 40}}
    assert "hqvae" in stored.versions
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*FILES, "manifest.json"}


@pytest.mark.parametrize("rule", ["none", "token", "nearest"])
def test_ids_go_on_from_a_folder(rule, tmp_path):
    items = Items(40, (4, 4, 4))
    write_ids(tmp_path / "a", items.make(rule, range(25)))
    before = read_ids(tmp_path / "a").ids
    after = items.make(rule, range(10, 40), before)
    write_ids(tmp_path / "b", after)
    again = read_ids(tmp_path / "b").ids
    assert same(again, after) and len(again) == 40 and after.changed == ()
    assert torch.equal(again.places[:25], before.places)


def test_the_json_files_are_inverses(ids, tmp_path):
    write_ids(tmp_path, ids)
    index = json.loads((tmp_path / "index.json").read_text())
    inverse = json.loads((tmp_path / "inverse.json").read_text())
    assert list(index) == list(ids.keys)
    assert [tuple(one) for one in index.values()] == ids.tokens()
    expected = {}
    for key in sorted(ids.keys):
        expected.setdefault("".join(index[key]), []).append(key)
    assert inverse == expected
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["items"], manifest["ids"]) == (40, len(inverse))


def test_the_table_is_read_by_anybody(ids, tmp_path):
    write_ids(tmp_path, ids, LABELS["integers"](40))
    table = parquet.read_table(tmp_path / "ids.parquet")
    moved = [f"model_codes_{layer}" for layer in range(3)] if ids.rule == "nearest" else []
    extra = ["extra"] if ids.rule == "token" else []
    codes = [f"codes_{layer}" for layer in range(3)]
    assert table.column_names == ["key", "label", *codes, *extra, *moved, "id"]
    assert [tuple(one) for one in table["id"].to_pylist()] == ids.tokens()
    assert table["codes_1"].to_pylist() == ids.codes[:, 1].tolist()
    assert str(table.schema.field("codes_0").type) == "uint8"


def test_the_order_of_rows_changes_no_byte_of_the_inverse(tmp_path):
    items = Items(40, (4, 4, 4))
    for name, rows in (("a", range(40)), ("b", range(39, -1, -1))):
        write_ids(tmp_path / name, items.make("token", list(rows)))
    texts = [(tmp_path / name / "inverse.json").read_bytes() for name in "ab"]
    assert texts[0] == texts[1]


def test_keys_of_any_letters(tmp_path):
    keys = ['a"b', "Ünïcode 🎵", "line\nbreak", "", "\\", "a\x00"]
    codes = torch.arange(6).unsqueeze(1)
    write_ids(tmp_path, make_ids(keys, codes, None, "none", codebook_sizes=(8,)))
    assert read_ids(tmp_path).ids.keys == tuple(keys)
    assert list(json.loads((tmp_path / "index.json").read_text())) == keys


def test_more_layers_than_letters():
    assert [letters(layer) for layer in (0, 1, 25, 26, 51, 52)] == ["a", "b", "z", "aa", "az", "ba"]
    tokens = IdVocabulary((2,) * 27, extra=1).tokens()
    assert len(set(tokens)) == 55
    assert tokens[-3:] == ["<aa_0>", "<aa_1>", "<ab_0>"]


# ------------------------------------------------------------------------------ refusals


def refused(message):
    return pytest.raises(InputError, match=message)


def change_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite_table(folder, change):
    """Another table, with the checksum that the manifest wants."""
    path = folder / "ids.parquet"
    parquet.write_table(change(parquet.read_table(path)), path)
    content = path.read_bytes()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(folder, files=files)


def test_nothing_is_written_over_ids(folder, ids):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with refused("has a manifest.json already; expected a new folder"):
        write_ids(folder, ids)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_labels_that_do_not_fit_leave_nothing(ids, tmp_path):
    with refused("39 labels of 40 items; expected one for each"):
        write_ids(tmp_path, ids, ["a"] * 39)
    with refused(r"labels of types \['int', 'str'\]; expected all int, or all str"):
        write_ids(tmp_path, ids, [*range(39), "a"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_ids_is_named(tmp_path):
    with refused("holds no IDs: it has no manifest.json; expected a folder of IDs"):
        read_ids(tmp_path)


def test_another_version_is_named(folder):
    change_manifest(folder, format=2)
    with refused("has format 2, and this version of hqvae reads format 1; use the version"):
        read_ids(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"items": 41}, "it has 40 items, and manifest.json says 41"),
        ({"items": 0}, "holds no IDs: items: Input should be greater than or equal to 1"),
        ({"codebook_sizes": []}, "codebook_sizes: List should have at least 1 item"),
        ({"codebook_sizes": [4, 4, 2]}, "is damaged: code [23] of item .*; expected 0 to 1"),
        ({"codebook_sizes": [4, 4, 4, 4]}, "ids.parquet is damaged"),
        ({"rule": "best"}, "is damaged: it names rule 'best'"),
        ({"files": {}}, "is damaged: it names rule 'token' and files"),
        ({"extra": 0}, "is damaged: codes have shape"),
        ({"labels": "string"}, "ids.parquet is damaged"),
    ],
)
def test_a_damaged_manifest_is_named(folder, values, message):
    change_manifest(folder, **values)
    with refused(message):
        read_ids(folder)


def test_a_manifest_that_is_no_json_is_named(folder):
    (folder / "manifest.json").write_text("{")
    with refused("manifest.json is damaged: .*not readable JSON"):
        read_ids(folder)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(folder, name):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with refused(f"{name} is damaged: it has .* bytes; expected"):
        read_ids(folder)
    path.write_bytes(content[:-9] + b"?" + content[-8:])
    with refused(f"{name} is damaged: it has not the checksum that manifest.json names"):
        read_ids(folder)
    path.unlink()
    with refused(f"{name} is missing, which manifest.json names"):
        read_ids(folder)


def test_duplicate_keys_are_named(folder):
    def double(table):
        keys = table["key"].to_pylist()
        keys[7] = keys[3]
        return table.set_column(0, "key", [keys])

    key = parquet.read_table(folder / "ids.parquet")["key"][3]
    rewrite_table(folder, double)
    with refused(f"ids.parquet is damaged: key '{key}' is there 2 times"):
        read_ids(folder)


def test_a_table_that_is_none_is_named(folder):
    rewrite_table(folder, lambda table: table.drop_columns(["codes_1"]))
    with refused("ids.parquet is damaged: .*codes_1"):
        read_ids(folder)


def test_what_is_half_written_holds_no_ids_and_is_written_again(folder, ids):
    (folder / "manifest.json").unlink()
    write_ids(folder, ids)
    assert same(read_ids(folder).ids, ids)
