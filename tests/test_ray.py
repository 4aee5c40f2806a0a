"""Tokens of a Ray cluster are those of one process, whatever is lost on the way."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training import tiny, trained

from hqvae.cli import main
from hqvae.coded import CodedSource
from hqvae.data import ImageConfig
from hqvae.encode import EncodeOptions, encode
from hqvae.encode.job import describe_splits
from hqvae.encode.ray_data import RayEngine, _check_versions, _open
from hqvae.errors import InputError
from hqvae.run import Run
from hqvae.tokens.shards import read_shard, rows_of
from hqvae.versions import versions

ray = pytest.importorskip("ray")
COUNT = 32


@pytest.fixture(scope="module")
def run(image_file, tmp_path_factory):
    return trained(tiny("sqvae2", image_file), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Large enough that a shard takes its time; one of them is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = generator.integers(0, 256, (300 + i, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "17.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(run, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "tokens"
    encode(str(run.path), str(pictures), str(folder), options("local"))
    return shards(folder)


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one CPU each; this process is on the first."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.lost = cluster.add_node(**node)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def options(engine, **others):
    return EncodeOptions(engine=engine, whole=True, shard_items=1, **others)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.mark.timeout(300)
def test_a_node_that_dies_costs_no_row_and_doubles_none(run, pictures, expected, cluster, tmp_path):
    """It dies when some shards are there, and others are being written."""
    folder = tmp_path / "tokens"
    killed_at = []

    def kill():
        while len(shards(folder)) < 4:
            time.sleep(0.02)
        cluster.remove_node(cluster.lost, allow_graceful=False)
        killed_at.append(len(shards(folder)))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    manifest = encode(str(run.path), str(pictures), str(folder), options("ray"))
    killer.join()
    assert 4 <= killed_at[0] < COUNT
    assert shards(folder) == expected
    keys = [key for name in sorted(expected) for key in read_keys(folder / name)]
    assert keys == [f"{i:02d}.png" for i in range(COUNT) if i != 17]
    assert manifest.rows == COUNT - 1 and sum(manifest.left_out.values()) == 1


def read_keys(path):
    return [row.key for row in rows_of(read_shard(path))]


@pytest.mark.timeout(300)
def test_a_cluster_goes_on_with_what_one_process_began(run, pictures, expected, cluster, tmp_path):
    folder = tmp_path / "tokens"
    encode(str(run.path), str(pictures), str(folder), options("local"))
    for name in sorted(expected)[::3]:
        (folder / name).unlink()
    encode(str(run.path), str(pictures), str(folder), options("ray", workers=1))
    assert shards(folder) == expected


def test_a_node_that_sees_other_data_is_named(run, pictures, cluster, tmp_path, monkeypatch):
    """As where a folder has the same name on two nodes, and other files."""
    folder = tmp_path / "tokens"
    monkeypatch.setattr("hqvae.data._fingerprint", lambda index: f"{len(index)} items, here")
    with pytest.raises(InputError, match=r"on node .*: .* holds other data than where"):
        encode(str(run.path), str(pictures), str(folder), options("ray", workers=1))
    assert shards(folder) == {}


@pytest.mark.parametrize("whole", [False, True], ids=["segments", "whole"])
def test_sounds_are_the_same_bytes_of_both_engines(
    whole, sound_run, sounds, cluster, tmp_path, monkeypatch
):
    """Also where paths are relative: a node knows nothing of the folder that they are in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sounds, "d")
    found = []
    for engine, workers in (("local", None), ("ray", 1)):
        chosen = EncodeOptions("train", whole, engine, workers=workers, shard_items=3)
        manifest = encode(str(sound_run), "d", engine, chosen)
        found.append((shards(Path(engine)), manifest.source))
    assert found[0] == found[1] and len(found[0][0]) == (1 if whole else 2)
    assert sum(file.rows for file in manifest.splits["train"].shards) == (2 if whole else 6)


# ------------------------------------------------------------------------------ on a node


def made_of(sound_run, source, whole=False):
    """(the source, what a manifest says of it)."""
    trained_with = Run.open(sound_run).config.data
    coded = CodedSource(replace(trained_with, source=str(source), cache_mb=0), is_cut=False)
    splits = describe_splits(coded.open(1), whole)
    return coded, {"data": {"splits": splits}, "whole": whole}


@pytest.mark.parametrize("count", [1, 2])
def test_a_node_that_cannot_read_a_sound_shifts_no_segments(sound_run, sounds, tmp_path, count):
    source = shutil.copytree(sounds, tmp_path / "d")
    coded, made = made_of(sound_run, source)
    assert len(_open(coded, made, 1)["train"]) == 6
    for name in ("train/0.wav", "train/3.wav")[2 - count :]:
        (source / name).write_bytes(b"not to be read")
    with pytest.raises(InputError, match=r"holds other data than|can be read"):
        _open(coded, made, 1)


def test_a_node_leaves_out_what_it_cannot_read_of_whole_sounds(sound_run, sounds, tmp_path):
    source = shutil.copytree(sounds, tmp_path / "d")
    coded, made = made_of(sound_run, source, whole=True)
    (source / "train/0.wav").write_bytes(b"not to be read")
    assert len(_open(coded, made, 1)["train"].keys) == 2


def test_a_node_with_another_split_has_other_data(sound_run, sounds, tmp_path):
    source = shutil.copytree(sounds, tmp_path / "d")
    coded, made = made_of(sound_run, source)
    made["data"]["splits"].pop("validation")
    with pytest.raises(InputError, match="holds other data than where it was started"):
        _open(coded, made, 1)


@pytest.mark.parametrize("name", ["hqvae", "torch", "soundfile", "soxr"])
def test_a_node_agrees_in_what_computes_and_what_reads(name, sound_run, sounds):
    coded, _ = made_of(sound_run, sounds)
    _check_versions(coded, {**versions(), "pillow": "0.1", "numpy": "0.1"})
    with pytest.raises(InputError, match=rf"{name} is .*, and 0\.1 where this was started"):
        _check_versions(coded, {**versions(), name: "0.1"})
    with pytest.raises(InputError, match=rf"{name} is .*, and not installed where"):
        _check_versions(coded, {key: held for key, held in versions().items() if key != name})


def test_a_node_agrees_in_what_reads_pictures(pictures):
    coded = CodedSource(ImageConfig(source=str(pictures)), is_cut=False)
    _check_versions(coded, {**versions(), "soxr": "0.1"})
    with pytest.raises(InputError, match=r"pillow is .*, and 0\.1 where"):
        _check_versions(coded, {**versions(), "pillow": "0.1"})


def test_names_that_are_no_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    for source, expected in [
        ("there", str(tmp_path / "there")),
        ("./there", str(tmp_path / "there")),
        ("~/there", str(tmp_path / "there")),
        ("owner/name", "owner/name"),
        ("photos", "photos"),
    ]:
        coded = CodedSource(ImageConfig(source=source), is_cut=False)
        assert coded.anywhere().config.source == expected and coded.config.source == source


# ------------------------------------------------------------------------------ said


def engine_of(run, pictures, **others):
    coded = CodedSource(ImageConfig(source=str(pictures)), is_cut=False)
    return RayEngine(run, run.weights_sha256(), coded, options("ray", **others))


LOST = {
    "an actor": ray.exceptions.ActorDiedError(),
    "memory": ray.exceptions.OutOfMemoryError("a node ran low on memory\nmore of it"),
    "an actor that never was": ray.exceptions.RayError("ray::f() (pid=1)\n  File\nKeyError: 7\n"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_ray_cannot_mend_is_one_sentence(name, run, pictures):
    """It raises its own errors once it has given up."""
    sentence = r"^Ray has failed: .*; the same command goes on$"
    engine = engine_of(run, pictures)
    with pytest.raises(InputError, match=sentence) as said, engine._said_if_lost():
        raise LOST[name]
    assert "\n" not in str(said.value)
    assert "never" not in name or "failed: KeyError: 7; the" in str(said.value)


def test_what_is_wrong_in_this_program_keeps_its_traceback(run, pictures):
    wrong = ray.exceptions.RayTaskError("f", "Traceback …", TypeError("no number"))
    with pytest.raises(ray.exceptions.RayTaskError), engine_of(run, pictures)._said_if_lost():
        raise wrong


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_cannot_be_had_is_one_sentence(address, run, pictures, monkeypatch):
    def fail(**_):
        raise ConnectionError("no port is free")

    engine = engine_of(run, pictures, address=address)
    monkeypatch.setattr(engine.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(engine.ray, "init", fail)
    started = r"Ray could not be started on this machine \(no port is free\); engine='local' does"
    said = started if address is None else "address='auto': no Ray cluster answers there"
    with pytest.raises(InputError, match=said):
        engine.__enter__()


def test_an_address_that_does_not_answer_is_one_sentence(run, pictures, tmp_path, capsys):
    if ray.is_initialized():
        ray.shutdown()
    words = ["encode", str(run.path), "--data", str(pictures), "--out", str(tmp_path / "t")]
    assert main([*words, "--engine", "ray", "--address", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("hqvae: --address '127.0.0.1:1': no Ray cluster answers there")
    assert not (tmp_path / "t").exists()


def test_an_address_is_of_ray():
    with pytest.raises(InputError, match="address='auto' is of a Ray cluster; expected engine"):
        EncodeOptions(address="auto")


def test_weights_that_training_has_replaced_are_refused(run, pictures):
    coded = CodedSource(ImageConfig(source=str(pictures)), is_cut=False)
    with pytest.raises(InputError, match="has saved other weights meanwhile; start again"):
        RayEngine(run, "0" * 64, coded, options("ray"))
