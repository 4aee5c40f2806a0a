"""Tokens of a Ray cluster are those of one process, whatever is lost on the way."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image
from training import tiny, trained

from hqvae.cli import main
from hqvae.encode import EncodeOptions, encode
from hqvae.errors import InputError
from hqvae.tokens.shards import read_shard

ray = pytest.importorskip("ray")
COUNT = 40


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
    return read_shard(path)["key"].to_pylist()


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
        encode(str(run.path), str(pictures), str(folder), options("ray"))
    assert shards(folder) == {}


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
