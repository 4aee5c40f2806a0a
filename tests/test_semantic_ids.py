"""`hqvae ids`: every vector has an ID, the same in any order, and IDs that exist never change."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from hqvae import Tokenizer
from hqvae.cli import main
from hqvae.doctor.ids import diagnose_ids
from hqvae.ids import IdTrie, read_ids
from hqvae.metrics import measure_ids

TINY = [
    *("model.levels.0.codebook_size=12", "model.levels.0.dim=4", "model.levels.0.layers=2"),
    *("model.net.widths=[16]", "model.net.blocks=1", "train.batch_size=16", "train.steps=30"),
    *("train.log_every=30", "train.validate_every=30"),
]
COUNT = 60


def items(count=COUNT, seed=0):
    """Vectors around ten centres, each of a brand: many share their codes."""
    generator = np.random.default_rng(seed)
    brands = generator.integers(0, 10, count)
    centres = np.random.default_rng(9).standard_normal((10, 8))
    vectors = centres[brands] + 0.1 * generator.standard_normal((count, 8))
    return vectors.astype(np.float32), brands


def write(path, vectors, brands, keys):
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    table = {"id": keys, "brand": [f"brand{b}" for b in brands], "embedding": column}
    parquet.write_table(pa.table(table), path)
    return path


def keys_of(count, prefix="item"):
    return [f"{prefix}-{i:03d}" for i in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("items") / "a.parquet", *items(), keys_of(COUNT))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A small run on these; nobody changes it."""
    folder = tmp_path_factory.mktemp("ids") / "run"
    words = ["train", "rsqvae-vector", "--data", str(data), "--out", str(folder), *TINY]
    assert main([*words, "data.labels=brand", "--accelerator", "cpu"]) == 0
    return folder


def identify(run, out, *options):
    words = ["ids", str(run), "--out", str(out), "--accelerator", "cpu", *map(str, options)]
    return main(words)


def identified(run, out, *options):
    assert identify(run, out, *options) == 0
    return read_ids(out).ids


@pytest.mark.parametrize("rule", ["none", "token", "nearest"])
def test_ids_are_files_that_lead_from_items_to_ids_and_back(run, data, rule, tmp_path, capsys):
    ids = identified(run, tmp_path / "i", "--rule", rule)
    assert sorted(ids.keys) == keys_of(COUNT)
    index = json.loads((tmp_path / "i" / "index.json").read_text())
    inverse = json.loads((tmp_path / "i" / "inverse.json").read_text())
    assert set(index) == set(keys_of(COUNT)) and index["item-000"][0].startswith("<a_")
    assert all(key in inverse["".join(one)] for key, one in index.items())
    unique = len({tuple(one) for one in index.values()})
    assert unique == COUNT if rule != "none" else unique < COUNT
    assert set(read_ids(tmp_path / "i").labels) <= {f"brand{b}" for b in range(10)}
    trie = IdTrie.of(ids)
    assert trie.items(index["item-007"]) == inverse["".join(index["item-007"])]
    assert "own ID" in capsys.readouterr().out


def test_the_codes_are_those_of_the_tokenizer(run, data, tmp_path):
    """Alone and in any batch: IDs that one process writes, another gives too."""
    ids = identified(run, tmp_path / "i", "--rule", "none")
    vectors, _ = items()
    for key, vector in zip(keys_of(COUNT)[:9], vectors):
        (tokens,) = Tokenizer.from_pretrained(run).encode([vector])
        row = ids.codes[ids.keys.index(key)].tolist()
        assert [int(codes) for codes in tokens.codes] == row


def test_threads_have_no_say(run, tmp_path):
    threads = torch.get_num_threads()
    vectors, brands = items(3000, seed=7)
    path = write(tmp_path / "b.parquet", vectors, brands, keys_of(3000))
    written = []
    for count in (1, 3):
        torch.set_num_threads(count)
        out = tmp_path / f"ids{count}"
        try:
            identified(run, out, "--data", path)
        finally:
            torch.set_num_threads(threads)
        written.append([(out / name).read_bytes() for name in ("ids.parquet", "index.json")])
    assert written[0] == written[1]


@pytest.mark.parametrize("rule", ["none", "token", "nearest"])
def test_the_order_of_rows_has_no_say(run, rule, tmp_path):
    vectors, brands = items()
    order = np.random.default_rng(1).permutation(COUNT)
    keys = np.array(keys_of(COUNT))
    other = write(tmp_path / "b.parquet", vectors[order], brands[order], keys[order].tolist())
    first = identified(run, tmp_path / "1", "--rule", rule)
    second = identified(run, tmp_path / "2", "--rule", rule, "--data", other)
    assert dict(zip(first.keys, first.tokens())) == dict(zip(second.keys, second.tokens()))


@pytest.mark.parametrize("rule", ["none", "token", "nearest"])
def test_new_items_change_no_id(run, rule, tmp_path):
    first = identified(run, tmp_path / "1", "--rule", rule)
    vectors, brands = items(15, seed=3)
    new = write(tmp_path / "new.parquet", vectors, brands, keys_of(15, "new"))
    options = ["--rule", rule, "--data", new, "--existing", tmp_path / "1"]
    both = identified(run, tmp_path / "2", *options)
    assert both.keys[:COUNT] == first.keys and both.tokens()[:COUNT] == first.tokens()
    assert len(both) == COUNT + 15 and len(read_ids(tmp_path / "2").labels) == COUNT + 15
    if rule != "none":
        assert len(set(both.tokens())) == COUNT + 15


def test_rows_without_a_vector_are_left_out(run, tmp_path, capsys):
    vectors, brands = items()
    vectors[5, 2] = np.nan
    broken = write(tmp_path / "b.parquet", vectors, brands, keys_of(COUNT))
    ids = identified(run, tmp_path / "i", "--data", broken)
    assert len(ids) == COUNT - 1 and "item-005" not in ids.keys
    assert "1 item(s) are left out" in capsys.readouterr().out
    listed = (tmp_path / "i" / "left-out.jsonl").read_text()
    assert "item-005" in listed and "not finite" in listed


def test_a_report_has_the_ids_and_the_doctor_speaks_of_them(run, capsys):
    assert main(["evaluate", str(run), "--accelerator", "cpu"]) == 0
    assert main(["doctor", str(run), "--accelerator", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "purity (chance)" in said and "have an ID of their own" in said
    report = json.loads((run / "report" / "report.json").read_text())
    alone = report["ids"]["collisions"]["alone"]
    assert report["measures"]["own_id"] == alone and 0 <= alone < 0.97


def test_the_doctor_says_where_codes_are_of_one_item_each():
    """With as many codes as that, the second tells all items apart."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(256, (3000, 4), generator=generator)
    (found,) = [one for one in diagnose_ids(measure_ids(wide, [256] * 4)) if "TRY" in one]
    assert "the first 2 of 4 codes have 1.0" in found and "codebook_size=16" in found
    assert not any("hardly" in one for one in diagnose_ids(measure_ids(wide[:1], [256] * 4)))
    narrow = torch.randint(16, (3000, 4), generator=generator)
    assert not any("hardly" in one for one in diagnose_ids(measure_ids(narrow, [16] * 4)))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rule", "tokens"], "rule 'tokens' does not exist; did you mean 'token'"),
        (["--existing", "{tmp}/none"], "holds no IDs"),
        (["--data", "{tmp}/none.parquet"], "does not exist"),
        (["--data", "{tmp}/wide.npy"], "model was trained on"),
        (["--column", "embeding"], "did you mean 'embedding'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    run, options, message, tmp_path, capsys
):
    np.save(tmp_path / "wide.npy", np.zeros((4, 9), np.float32))
    words = [word.format(tmp=tmp_path) for word in options]
    assert identify(run, tmp_path / "i", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "i").exists()


def test_a_folder_that_holds_files_is_refused(run, tmp_path, capsys):
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "mine.txt").write_text("")
    assert identify(run, tmp_path / "i") == 2
    assert "already holds files" in capsys.readouterr().err


def test_runs_of_pictures_have_no_ids(picture_run, tmp_path, capsys):
    assert identify(picture_run, tmp_path / "i") == 2
    assert "codes at several positions; IDs are of vectors" in capsys.readouterr().err


def test_ids_of_another_model_are_refused(run, data, tmp_path, capsys):
    identified(run, tmp_path / "1")
    other = tmp_path / "run"
    words = ["train", "rsqvae-vector", "--data", str(data), "--out", str(other), *TINY]
    assert main([*words, "train.seed=1", "--accelerator", "cpu"]) == 0
    assert identify(other, tmp_path / "2", "--existing", tmp_path / "1") == 2
    assert "are of another model" in capsys.readouterr().err


def test_rows_that_are_taken_for_others_are_refused(run, tmp_path, capsys):
    """Row numbers are no names: other data have the same ones."""
    vectors, _ = items()
    np.save(tmp_path / "a.npy", vectors)
    assert identify(run, tmp_path / "old", "--data", tmp_path / "a.npy") == 0
    more = np.concatenate([vectors, items(20, seed=3)[0]])
    np.save(tmp_path / "more.npy", more)
    words = ["--existing", tmp_path / "old"]
    ids = identified(run, tmp_path / "more", "--data", tmp_path / "more.npy", *words)
    assert len(ids) == COUNT + 20 and not ids.changed
    np.save(tmp_path / "b.npy", more[COUNT:] + 3)
    capsys.readouterr()
    assert identify(run, tmp_path / "no", "--data", tmp_path / "b.npy", *words) == 2
    said = capsys.readouterr().err
    assert "names its items by row number" in said and "expected names, such as a column id" in said
    assert not (tmp_path / "no").exists()


def test_rows_of_other_tables_with_the_same_names_are_refused(run, tmp_path, capsys):
    for folder, shift in (("first", 0), ("second", 3)):
        (tmp_path / folder).mkdir()
        for part in (0, 1):
            column = pa.array(list(items(seed=part)[0] + shift), pa.list_(pa.float32()))
            parquet.write_table(pa.table({"x": column}), tmp_path / folder / f"{part}.parquet")
    assert identify(run, tmp_path / "old", "--data", tmp_path / "first") == 0
    options = ["--data", tmp_path / "second", "--existing", tmp_path / "old"]
    assert identify(run, tmp_path / "new", *options) == 2
    assert "names its items by row number" in capsys.readouterr().err


def test_what_is_new_beside_ids_that_exist_is_said(run, tmp_path, capsys):
    identified(run, tmp_path / "old")
    before = json.loads((tmp_path / "old" / "manifest.json").read_text())
    vectors, _ = items()
    twins = np.concatenate([vectors[:1] + 5, np.tile(vectors[1], (30, 1))])
    path = write(tmp_path / "b.parquet", twins, [0] * 31, ["item-000", *keys_of(30, "new")])
    capsys.readouterr()
    identified(run, tmp_path / "i", "--data", path, "--existing", tmp_path / "old")
    said = " ".join(capsys.readouterr().out.split())
    assert "30 item(s) are new beside 60 that had an ID." in said
    assert "1 item(s) have other codes now, such as 'item-000'" in said
    after = json.loads((tmp_path / "i" / "manifest.json").read_text())
    new = after["extra"] - before["extra"]
    assert f"{new} token(s) are new, from <c_{before['extra']}> on, which a model" in said
    assert new > 0 and after["measures"]["explained"] is None and "explain" not in said
    # The measures are of all items: of these codes there were some before.
    assert after["measures"]["collisions"]["items"] == COUNT + 30
    assert after["measures"]["collisions"]["largest"] >= 31


def test_explained_variance_is_said_before_and_after_items_move(run, data, tmp_path, capsys):
    ids = identified(run, tmp_path / "i", "--rule", "nearest")
    said = " ".join(capsys.readouterr().out.split())
    measures = json.loads((tmp_path / "i" / "manifest.json").read_text())["measures"]
    moved = int((ids.codes != ids.model_codes).any(1).sum())
    assert measures["moved"] == moved > 0 and f"{moved} item(s) have moved to a free ID" in said
    vectors, _ = items()
    model = Tokenizer.from_pretrained(run).model
    for name, codes in (("explained", ids.model_codes), ("explained_by_ids", ids.codes)):
        restored = np.stack(model.postprocess(model.decode(codes.unbind(1))))
        error = np.square(vectors - restored).sum() / np.square(vectors - vectors.mean(0)).sum()
        assert measures[name] == pytest.approx(1 - error, abs=1e-4)
        assert f"{1 - error:.1%}" in said
    assert measures["explained_by_ids"] < measures["explained"]


def test_a_folder_of_ids_is_told_from_one_of_tokens(run, tmp_path, capsys):
    identified(run, tmp_path / "i")
    assert main(["decode", str(run), str(tmp_path / "i"), "--out", str(tmp_path / "d")]) == 2
    assert "holds IDs, which `hqvae ids` wrote; expected tokens" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert identify(run, file) == 2
    assert "is a file; expected a new folder" in capsys.readouterr().err


def test_of_two_columns_the_flag_names_one(run, tmp_path, capsys):
    vectors, _ = items()
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    parquet.write_table(pa.table({"one": column, "two": column}), tmp_path / "b.parquet")
    assert identify(run, tmp_path / "i", "--data", tmp_path / "b.parquet") == 2
    assert "name one with --column NAME" in capsys.readouterr().err
    options = ["--data", tmp_path / "b.parquet", "--column", "two"]
    assert len(identified(run, tmp_path / "i", *options)) == COUNT
