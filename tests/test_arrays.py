"""Float arrays: any format gives the same items, bad ones a sentence, and models of them train."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from hqvae import Tokenizer
from hqvae.cli import main
from hqvae.data import ArrayConfig, Items, open_data
from hqvae.errors import InputError
from hqvae.evaluate import evaluate
from hqvae.metrics import ArrayError
from hqvae.run import Run

SHAPES = {0: (40, 6), 1: (40, 16, 3), 2: (40, 8, 12, 2)}


def rows(axes=0, seed=0, count=40):
    """Items whose channels have scales and means of their own."""
    shape = (count, *SHAPES[axes][1:])
    channels = np.arange(shape[-1])
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (noise * (1 + channels) + 100 * channels).astype(np.float32)


def listed(array):
    """A column of lists; of lists of lists where items have more axes."""
    return pa.array(array.tolist(), _lists(array.ndim - 1, pa.float32()))


def _lists(depth, kind):
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def write(path, array, ids=None, labels=None):
    """A file of the format that its suffix names, with ids and labels where it can have them."""
    named = {"x": array}
    named |= {} if ids is None else {"id": np.array(ids)}
    named |= {} if labels is None else {"labels": np.array(labels)}
    if path.suffix == ".npy":
        np.save(path, array)
        if ids is not None:
            path.with_suffix(".ids.txt").write_text("\n".join(ids))
    elif path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".pt":
        arrays = {key: torch.from_numpy(v) for key, v in named.items() if v.dtype.kind in "fi"}
        lists = {key: v.tolist() for key, v in named.items() if v.dtype.kind == "U"}
        torch.save(arrays | lists, path)
    else:
        columns = {"x": listed(array), **{k: v for k, v in named.items() if k != "x"}}
        parquet.write_table(pa.table(columns), path, row_group_size=7)
    return path


def opened(path, split="train", axes=0, **changes):
    config = ArrayConfig(source=str(path), validation=0.0, test=0.0, **changes)
    return open_data(config, 0, (split,), axes)[1][split]


FORMATS = [".npy", ".npz", ".pt", ".parquet"]


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_items(suffix, axes, tmp_path):
    array = rows(axes)
    data = opened(write(tmp_path / f"a{suffix}", array), axes=axes)
    assert len(data) == 40 and data.shape == (array.shape[-1], *array.shape[1:-1])
    for i in (0, 17, 39):
        np.testing.assert_array_equal(np.moveaxis(data.read_raw(i), 0, -1), array[i])
    assert list(data.keys[:2]) == ["0", "1"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_items_are_the_same_kept_in_memory_or_read_when_needed(suffix, cache_mb, tmp_path):
    array = rows()
    data = opened(write(tmp_path / f"a{suffix}", array), cache_mb=cache_mb)
    assert data.in_memory == bool(cache_mb)
    chosen = np.array([39, 3, 3, 20])
    batch = data.training_batch(chosen, np.zeros((4, 2)))
    np.testing.assert_array_equal(batch.numpy(), array[chosen])


@pytest.mark.parametrize("suffix", FORMATS)
def test_ids_and_labels_come_with_the_items(suffix, tmp_path):
    ids = [f"item-{i}" for i in range(40)]
    labels = None if suffix == ".npy" else [i % 3 for i in range(40)]
    data = opened(write(tmp_path / f"a{suffix}", rows(), ids, labels))
    assert list(data.keys) == ids
    assert (None if data.labels is None else list(data.labels)) == labels


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".parquet"])
def test_labels_that_are_none_are_said(suffix, tmp_path, caplog):
    path = write(tmp_path / f"a{suffix}", rows(), labels=[0.5] * 40)
    column = {"column": "x"}
    assert opened(path, **column).labels is None
    assert "'labels' holds" in caplog.text and "which are no labels" in caplog.text
    with pytest.raises(InputError, match=r"data\.labels='labels': these are no labels; expected"):
        opened(path, labels="labels", **column)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".parquet"])
def test_labels_can_be_strings(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", rows(), labels=["ash", "elm"] * 20)
    assert list(opened(path).labels) == ["ash", "elm"] * 20


def test_columns_of_ids_and_labels_can_be_named(tmp_path):
    table = pa.table({"x": listed(rows()), "sku": range(100, 140), "brand": ["a", "b"] * 20})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet", ids="sku", labels="brand")
    assert data.keys[1] == "101" and list(data.labels[:2]) == ["a", "b"]


def test_splits_of_an_archive_are_kept(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=rows(), x_test=rows(seed=1, count=9))
    config = ArrayConfig(source=str(tmp_path / "a.npz"))
    splits = open_data(config, 0, axes=0)[1]
    assert (
        len(splits["test"]) == 9 and len(splits["train"]) == 38 and len(splits["validation"]) == 2
    )
    assert splits["test"].keys[0] == "x_test[0]"


def test_folders_of_tables_are_one_set(tmp_path):
    array = rows()
    for part in range(2):
        name = f"train-{part}-of-2.parquet"
        parquet.write_table(pa.table({"x": listed(array[part::2])}), tmp_path / name)
    data = opened(tmp_path, cache_mb=0)
    np.testing.assert_array_equal(data.read_raw(21), array[3])
    batch = data.training_batch(np.array([21, 0]), np.zeros((2, 2)))
    np.testing.assert_array_equal(batch.numpy(), array[[3, 0]])


def test_with_shares_of_zero_all_splits_are_the_training_items(tmp_path):
    config = ArrayConfig(source=str(write(tmp_path / "a.npy", rows())), validation=0.0, test=0.0)
    splits = open_data(config, 0, axes=0)[1]
    assert [list(splits[name].keys) for name in splits] == [list(splits["train"].keys)] * 3


# ------------------------------------------------------------------------------ standardised


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("standardize", ["channel", "all"])
def test_signals_have_mean_zero_and_variance_one(axes, standardize, tmp_path):
    data = opened(write(tmp_path / "a.npy", rows(axes)), axes=axes, standardize=standardize)
    x = torch.stack([data.load(i)[1] for i in range(len(data))])
    over = [0, *range(2, x.ndim)]
    torch.testing.assert_close(x.mean(over), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
    variance = x.var(over, correction=0)
    if standardize == "channel":
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-4, rtol=0)
    else:
        assert float(variance.mean()) == pytest.approx(1, abs=1e-4) and variance[-1] > variance[0]


def test_large_offsets_of_doubles_are_kept(tmp_path):
    """A millisecond of a timestamp has no place in float32."""
    array = 1.7e9 + np.random.default_rng(0).random((30, 2))
    np.save(tmp_path / "a.npy", array)
    data = opened(tmp_path / "a.npy")
    x = torch.stack([data.load(i)[1] for i in range(30)])
    expected = (array - array.mean(0)) / array.std(0)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-4)


def test_arrays_come_back_in_their_own_unit(tmp_path):
    array = rows(1)
    data = opened(write(tmp_path / "a.npy", array), axes=1)
    x = torch.stack([data.load(i)[1] for i in range(4)])
    np.testing.assert_allclose(
        np.stack(data.modality.restore(x, data.config)), array[:4], rtol=1e-5
    )


def test_errors_are_in_the_datas_unit(tmp_path):
    """However channels are scaled: RMSE and explained variance are those of the arrays."""
    array = rows()
    noisy = array + np.random.default_rng(5).standard_normal(array.shape).astype(np.float32)
    for standardize in ("channel", "all"):
        data = opened(write(tmp_path / "a.npy", array), standardize=standardize)
        x, x_hat = (data.signal(torch.from_numpy(rows)) for rows in (array, noisy))
        error = ArrayError(data.config.deviation)
        error.add(x[:13], x_hat[:13])
        error.add(x[13:], x_hat[13:])
        found = error.values()
        square = np.square(array - noisy)
        assert found["rmse"] == pytest.approx(np.sqrt(square.mean()), rel=1e-4)
        explained = 1 - square.sum() / np.square(array - array.mean(0)).sum()
        assert found["explained_variance"] == pytest.approx(explained, abs=1e-5)
        mse = data.unit.mse(x, x_hat).mean()
        assert data.unit.scale * float(mse.sqrt()) == pytest.approx(found["rmse"], rel=1e-4)


# ------------------------------------------------------------------------------ bad input


def broken_rows():
    array = rows()
    array[3, 2] = np.nan
    array[11, 0] = np.inf
    return array


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_rows_that_are_not_finite_are_left_out_and_listed(suffix, cache_mb, tmp_path):
    data = opened(write(tmp_path / f"a{suffix}", broken_rows()), cache_mb=cache_mb)
    items = Items(data, whole=False)
    found = [one for block in items.read_in_order(0, 40, threads=1) for one in block.broken]
    assert [one.key for one in found] == ["3", "11"]
    assert [key for key, _ in data.left_out()] == ["3", "11"]
    batch = data.training_batch(np.array([2, 3, 4]), np.zeros((3, 2)))
    assert torch.isfinite(batch).all() and torch.equal(batch[1], batch[2])


def test_rows_without_a_value_are_left_out(tmp_path):
    column = pa.array([[1.0, 2.0], None, [3.0, 5.0], [0.0, 1.0]], pa.list_(pa.float32()))
    parquet.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet")
    assert data.left_out() == [("1", "it has no value")]
    assert data.config.mean[0] == pytest.approx(4 / 3)


@pytest.mark.parametrize("label", [None, -1])
def test_a_split_may_hide_its_labels(label, tmp_path):
    """As the test of a competition does."""
    names = {"_type": "ClassLabel", "names": ["ash", "elm"]}
    features = {"info": {"features": {"brand": names}}} if label else {}
    for split, labels in (("train", [0, 1] * 20), ("test", [label] * 40)):
        table = pa.table({"x": listed(rows()), "brand": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    config = ArrayConfig(source=str(tmp_path), validation=0.0, labels="brand")
    splits = open_data(config, 0, ("train", "test"), 0)[1]
    assert list(splits["train"].labels) == [0, 1] * 20 and splits["test"].labels is None


def test_a_damaged_row_group_is_left_out(tmp_path):
    """Of a table that is not held: the others are read."""
    table = pa.table({"x": listed(rows()), "id": [f"k{i}" for i in range(40)]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=10, compression="zstd")
    config = opened(path, cache_mb=0).config
    chunk = parquet.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    data = open_data(config, 0, ("train",), 0)[1]["train"]
    (block,) = Items(data, whole=False).read_in_order(0, 40, threads=1)
    assert block.keys == [f"k{i}" for i in (*range(20), *range(30, 40))] and block.items == 40
    assert [one.key for one in block.broken] == [f"k{i}" for i in range(20, 30)]
    assert torch.equal(block.signals[19], data.load(19)[1])
    batch = data.training_batch(np.array([19, 20]), np.zeros((2, 2)))
    assert torch.isfinite(batch).all() and torch.equal(batch[0], torch.from_numpy(rows()[19]))
    with pytest.raises(InputError, match=r"a\.parquet' cannot be read: "):
        opened(path, cache_mb=0)  # whose mean and deviation are not known


def test_splits_of_the_same_items_are_one_data_set(tmp_path, caplog):
    path = write(tmp_path / "a.npy", broken_rows())
    config = ArrayConfig(source=str(path), validation=0.0, test=0.1)
    splits = open_data(config, 0, ("train", "validation", "test"), 0)[1]
    assert splits["validation"] is splits["train"] and splits["test"] is not splits["train"]
    assert caplog.text.count("are broken and left out") <= 2


def test_constant_channels_take_part(tmp_path, caplog):
    array = rows()
    array[:, 4] = 7
    data = opened(write(tmp_path / "a.npy", array))
    assert "1 of 6 channels are constant, such as channel 4, which is 7" in caplog.text
    assert torch.isfinite(data.load(0)[1]).all()


BAD = {
    "two widths": (
        lambda: pa.table({"x": [[1.0, 2.0], [3.0]]}),
        "lists of 2 and of 1 values (row 1)",
    ),
    "ids twice": (
        lambda: pa.table({"x": [[1.0], [2.0]], "id": ["a", "a"]}),
        "such as 'a'; expected",
    ),
    "ids missing": (
        lambda: pa.table({"x": [[1.0], [2.0]], "id": ["a", None]}),
        "lacks 1 of its ids",
    ),
    "id empty": (
        lambda: pa.table({"x": [[1.0], [2.0]], "id": ["a", ""]}),
        "has an id that is empty; expected a name for each row",
    ),
    "integers": (lambda: pa.table({"x": [[1, 2], [3, 4]]}), "whole numbers are no measurements"),
    "two columns": (
        lambda: pa.table({"x": [[1.0]], "y": [[2.0]]}),
        "2 columns of lists of floats (x, y); name one with data.column=NAME",
    ),
    "no column": (lambda: pa.table({"x": [1.0, 2.0]}), "expected a column of lists of floats"),
    "no rows": (lambda: pa.table({"x": pa.array([], pa.list_(pa.float32()))}), "empty table"),
    "all the same": (lambda: pa.table({"x": [[1.0, 2.0]] * 9}), "all 9 training items"),
    "two arrays": (lambda: {"x": rows(), "y": rows()}, "several arrays of floats (x, y); name one"),
    "array of integers": (lambda: {"x": np.ones((9, 3), int)}, "holds x int64 [9, 3]; expected"),
    "one axis": (lambda: {"x": np.ones(9)}, "holds x float64 [9]; expected floats [N, D]"),
    "empty array": (lambda: {"x": np.ones((0, 3))}, "empty table: float64 [0, 3]"),
    "nothing": (dict, "holds nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused_in_a_sentence(case, tmp_path, capsys):
    make, message = BAD[case]
    made = make()
    path = tmp_path / ("a.npz" if isinstance(made, dict) else "a.parquet")
    np.savez(path, **made) if isinstance(made, dict) else parquet.write_table(made, path)
    run = tmp_path / "run"
    code = main(["train", "rsqvae-vector", "--data", str(path), "--out", str(run)])
    errors = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in errors[-1] and not run.exists()


def test_arrays_must_be_named(tmp_path, capsys):
    """Without `--data` there are pictures, built in."""
    assert main(["train", "rsqvae-vector", "--out", str(tmp_path / "run")]) == 2
    assert "'photos' are pictures, which are built in; expected" in capsys.readouterr().err


def test_a_column_of_words_is_not_called_integers(tmp_path):
    table = pa.table({"x": listed(rows()), "brand": ["a"] * 40})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"holds brand string; expected a column of lists of floats$"
    ):
        opened(tmp_path / "a.parquet", column="brand")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    (tmp_path / "a.pt").write_bytes(b"no tensors")
    (tmp_path / "a.parquet").write_bytes(b"no table")
    np.save(tmp_path / "objects.npy", np.array([None, 1]), allow_pickle=True)
    torch.save({"f": torch.nn.Linear(1, 1)}, tmp_path / "code.pt")
    for name in ("a.npy", "a.npz", "a.pt", "a.parquet", "objects.npy", "code.pt", "b.npy", "c.csv"):
        with pytest.raises(InputError) as error:
            opened(tmp_path / name)
        assert "allow_pickle" not in str(error.value) and name in str(error.value)


def test_ids_beside_must_be_as_many_as_rows(tmp_path):
    write(tmp_path / "a.npy", rows(), ids=["a", "b"])
    with pytest.raises(InputError, match=r"has 2 ids and a.npy 40 rows"):
        opened(tmp_path / "a.npy")
    with pytest.raises(InputError, match="no ids of its own, and no such file"):
        opened(tmp_path / "a.npy", ids="other.txt")


def test_arrays_of_other_axes_than_the_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model.axes=0, and the items are of shape \[T, C\]"):
        opened(write(tmp_path / "a.npy", rows(1)), axes=0)


# ------------------------------------------------------------------------------ models

TINY = [
    *("model.levels.0.codebook_size=8", "model.levels.0.dim=4", "model.levels.0.layers=2"),
    *("model.net.widths=[16]", "model.net.blocks=1", "train.batch_size=8", "train.steps=20"),
    *("train.log_every=10", "train.validate_every=10", "train.schedule=constant"),
]


@pytest.fixture(scope="module", params=SHAPES, ids=["vectors", "series", "maps"])
def trained(request, tmp_path_factory):
    """(run, arrays, their file) of every number of axes."""
    axes = request.param
    folder = tmp_path_factory.mktemp(f"arrays{axes}")
    path = write(
        folder / "a.npz", rows(axes), [f"k{i}" for i in range(40)], [i % 2 for i in range(40)]
    )
    preset = ["rsqvae-vector", "rsqvae-series", "rsqvae-series"][axes]
    extra = [f"model.axes={axes}"] if axes == 2 else []
    run = folder / "run"
    words = ["train", preset, "--data", str(path), "--out", str(run), *TINY, *extra]
    assert main([*words, "--accelerator", "cpu"]) == 0
    return run, rows(axes), path


def test_a_run_of_arrays_is_measured_in_their_unit(trained, capsys):
    run, array, _ = trained
    report = evaluate(str(run), accelerator="cpu")
    figures = report.measures.figures
    assert 0 < figures["rmse"] < 2 * array.std() and figures["explained_variance"] < 1
    assert report.protocol["unit"] == "own unit" and report.protocol["ratio"] == "SNR"
    last = report.measures.layers[-1]
    assert last.rmse_cumulative == pytest.approx(figures["rmse"], rel=1e-4)
    assert report.measures.explained(last) == pytest.approx(figures["explained_variance"], abs=1e-4)
    assert main(["evaluate", str(run), "--accelerator", "cpu"]) == 0
    assert main(["doctor", str(run), "--accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "SNR" in said and "PSNR" not in said and "image" not in said and "pixel" not in said
    assert (run / "report" / "reconstructions.png").stat().st_size > 1000


def test_arrays_become_tokens_and_come_back(trained, tmp_path):
    run, array, _ = trained
    assert main(["encode", str(run), "--out", str(tmp_path / "t"), "--accelerator", "cpu"]) == 0
    words = ["decode", str(run), str(tmp_path / "t"), "--out", str(tmp_path / "d")]
    assert main([*words, "--accelerator", "cpu"]) == 0
    tokenizer = Tokenizer.from_pretrained(run)
    tokens = tokenizer.encode(list(array[:5]))
    for i, decoded in enumerate(tokenizer.decode(tokens)):
        assert decoded.shape == array[i].shape
        np.testing.assert_array_equal(np.load(tmp_path / "d" / f"k{i}.npy"), decoded)


def test_items_on_their_own_and_in_batches_have_the_same_tokens(trained):
    run, array, path = trained
    tokenizer = Tokenizer.from_pretrained(run)
    config = replace(Run.open(run).config.data, source=str(path))
    data = open_data(config, array.shape[-1], ("train",), array.ndim - 2)[1]["train"]
    x = data.signal(data.training_batch(np.arange(len(data)), np.zeros((len(data), 2))))
    batched = tokenizer.encode_batch(x)
    alone = [tokenizer.encode_signals([one])[0] for one in x]
    assert [one.shape for one in tokenizer.encode_batch(x[:0])] == [
        (0, *codes.shape[1:]) for codes in batched
    ]
    for layer, codes in enumerate(batched):
        assert torch.equal(codes, torch.stack([one.codes[layer] for one in alone]))


@pytest.mark.parametrize(
    "item, message",
    [
        (np.zeros(6, int), r"an array of floats \[D\], not int64 \[6\]"),
        (np.zeros((2, 6)), r"an array of floats \[D\], not float64 \[2, 6\]"),
        (np.zeros(5), "it has 5 channels; expected 6"),
        (np.full(6, np.nan), "not finite"),
        (torch.zeros(5), r"a signal has shape \[5\]; expected \[6\]"),
        (torch.full((6,), torch.inf), "not finite"),
    ],
)
def test_what_is_no_vector_is_refused(item, message, tmp_path):
    run = tmp_path / "run"
    path = write(tmp_path / "a.npy", rows())
    words = [
        "train",
        "rsqvae-vector",
        "--data",
        str(path),
        "--out",
        str(run),
        *TINY,
        "train.steps=4",
    ]
    assert main([*words, "--accelerator", "cpu"]) == 0
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained(run).encode([item])


def test_vectors_are_compared_in_their_unit(tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "title: Vectors\nreference: RSQ\nsystems:\n  RSQ: {preset: rsqvae-vector}\nseeds: [0]\n"
    )
    data = write(tmp_path / "a.npy", rows())
    words = ["compare", str(spec), "--data", str(data), "--out", str(tmp_path / "c"), *TINY]
    assert main([*words, "--accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "explained" in said and "own ID" in said and "SNR dB" in said
    assert "PSNR" not in said and "bits per vector" in said
