"""Damage to what lies in a folder is found and said, in one documented exception and one sentence.

What cannot be found by its meaning has a checksum: weights and checkpoints.
"""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from training import same, tiny, trained, weights

from conftest import build
from hqvae.cli import main
from hqvae.errors import InputError
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.model.presets import MODELS
from hqvae.model.size import count_values
from hqvae.nets import MLPConfig, WaveConvConfig
from hqvae.run import Run

SIXTEEN = LevelConfig(60, 2, 16, 6)
SIZED = {
    **{name: replace(model, channels=model.channels or 6) for name, model in MODELS.items()},
    "stride 1": HQVAEConfig(levels=(LevelConfig(2, 1, 16, 6), LevelConfig(1, 1, 16, 6))),
    "a shallow encoder": HQVAEConfig(
        levels=(LevelConfig(1, 2, 16, 6),), net=MLPConfig(encoder_blocks=1), axes=0
    ),
    "wide strides": HQVAEConfig(
        levels=(SIXTEEN, LevelConfig(10, 1, 16, 5)),
        net=WaveConvConfig(widths=(3, 5, 7)),
        axes=1,
        channels=2,
    ),
}


@pytest.mark.parametrize("name", SIZED)
def test_values_are_counted_before_they_are_allocated(name):
    config = SIZED[name]
    held = {values.data_ptr(): values.numel() for values in HQVAE(config).state_dict().values()}
    of_s2 = len(config.layers) * config.quantizer.stochastic
    assert sum(held.values()) == count_values(config) + of_s2


@pytest.fixture(scope="module")
def finished(image_file, tmp_path_factory):
    """A run of eight steps with two checkpoints; nobody changes it."""
    settings = ["train.weight_ema=0.5", "model.levels.0.layers=2"]
    return trained(tiny("rsqvae", image_file, *settings), tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# ------------------------------------------------------------------------------ weights


HUGE = {
    "codes": {"levels": [{"codebook_size": 10**12}]},
    "many codes": {"levels": [{"codebook_size": 2**24, "dim": 2**16}]},
    "layers": {"levels": [{"layers": 10**9}]},
    "blocks": {"net": {"kind": "conv", "blocks": 10**9}},
    "some blocks": {"net": {"kind": "conv", "widths": [60000], "blocks": 256}},
    "widths": {"net": {"kind": "conv", "widths": [2**16, 2**16]}},
    "stride": {"levels": [{"stride": 10**12 + 39}]},
    "a large prime": {"levels": [{"stride": 65521}]},
    "channels": {"channels": 10**12},
    "windows": {"spectral": {"n_ffts": [10**12]}},
}


@pytest.mark.parametrize("own", [False, True], ids=["our networks", "own networks"])
@pytest.mark.parametrize("name", HUGE)
def test_a_size_that_the_weights_do_not_have_is_refused_first(name, own, run, monkeypatch):
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({"model": {**config["model"], **HUGE[name]}}))
    if own and name in ("some blocks", "widths"):
        pytest.skip("not theirs")
    monkeypatch.setattr(HQVAE, "__init__", None)  # nothing is built
    networks = [torch.nn.Identity()] * 2 if own else []
    with pytest.raises(ValueError, match=r"is no config of a model|do not fit its config") as error:
        HQVAE.from_pretrained(run.path, *networks)
    assert "\n" not in str(error.value)


BROKEN_JSON = {
    "empty": "",
    "deep": "[" * 100_000,
    "deep in an object": '{"model":' * 50_000,
    "a list": "[1]",
    "a long number": '{"model": %s}' % ("9" * 5000),
    "no text": "\udcff\udc80",
    "a list for the model": '{"model": []}',
    "a list for versions": '{"versions": [1], "model": 3}',
    "a list for a level": '{"model": {"levels": [[]]}}',
    "not a number": '{"model": {"progressive": NaN}}',
}


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_a_broken_config_is_one_sentence(name, run):
    (run.path / "config.json").write_bytes(BROKEN_JSON[name].encode(errors="surrogateescape"))
    for load in (HQVAE.from_pretrained, Run.open):
        with pytest.raises(ValueError) as error:
            load(run.path)
        assert type(error.value) in (ValueError, InputError) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "x/" * 3000], ids=["NUL", "long", "deep"])
def test_what_is_no_name_of_a_folder_is_said(name):
    with pytest.raises((ValueError, FileNotFoundError)):
        HQVAE.from_pretrained(name)


def test_the_same_weights_make_the_same_file(tmp_path):
    """A report names them by the file's digest. Safetensors has its metadata in random order."""
    model = build("ema", "shared")
    contents = set()
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
        contents.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(contents) == 1


def test_weights_of_before_the_checksum_can_be_read(run):
    from safetensors.torch import load_file, save_file

    path = run.path / "model.safetensors"
    save_file(load_file(path), path, {"posterior": "nearest_code"})
    assert run.load_model().posterior == "nearest_code"


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_weights_come_back_from_the_checkpoint_and_it_is_said(damage, run, capsys, caplog):
    path = run.path / "model.safetensors"
    whole = path.read_bytes()
    path.unlink() if damage == "deleted" else flip(path, 8 * 5000)
    assert main(["evaluate", str(run.path), "--accelerator", "cpu"]) == 0
    assert "those of its checkpoint at step 8 take their place" in caplog.text
    assert ("no model.safetensors" if damage == "deleted" else "checksum") in caplog.text
    rebuilt = weights(run)
    path.write_bytes(whole)
    assert same(rebuilt, weights(run))


def test_damaged_weights_without_a_checkpoint_are_one_sentence(run):
    shutil.rmtree(run.path / "checkpoints")
    flip(run.path / "model.safetensors", 8 * 5000)
    with pytest.raises(InputError, match=r"run' has weights that cannot be read: .*checksum"):
        run.load_model()


# ------------------------------------------------------------------------------ checkpoints


def test_a_flipped_bit_lets_the_checkpoint_before_take_over(run, caplog):
    newest = run.path / "checkpoints" / "000000008.pt"
    flip(newest, 4 * newest.stat().st_size)
    assert run.load_checkpoint()["step"] == 4
    assert "000000008.pt cannot be read (its checksum is wrong" in caplog.text
    assert "000000004.pt takes its place" in caplog.text


@pytest.mark.parametrize("where", ["before its records", "at a record", "in the directory"])
def test_a_flipped_bit_is_found_wherever_it_is(where, run):
    """Also where the zip's own checksums do not reach: compression and attributes of a record."""
    newest = run.path / "checkpoints" / "000000008.pt"
    content = newest.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    at = {"before its records": 8, "at a record": len(content) // 2, "in the directory": directory}
    for offset in (10, 38):  # of the directory: compression method, external attributes
        newest.write_bytes(content)
        flip(newest, 8 * (at[where] + offset) + 4)
        assert run.load_checkpoint()["step"] == 4


def test_a_checkpoint_without_its_checksum_is_checked_by_its_records(run):
    newest = run.path / "checkpoints" / "000000008.pt"
    newest.with_suffix(".sha256").unlink()
    assert run.load_checkpoint()["step"] == 8
    flip(newest, 4 * newest.stat().st_size)
    assert run.load_checkpoint()["step"] == 4


def test_old_checkpoints_go_with_their_checksums(run):
    run.save_checkpoint({**run.load_checkpoint(), "step": 12})
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    steps = ("000000008", "000000012")
    assert names == [f"{step}.{kind}" for step in steps for kind in ("pt", "sha256")]


@pytest.mark.parametrize("change", ["model", "optimizer", "task", "generators"])
def test_a_checkpoint_of_another_shape_is_one_sentence(change, run):
    state = run.load_checkpoint()
    state[change] = {} if change != "generators" else None
    run.save_checkpoint(state)
    with pytest.raises(InputError, match=r"newest checkpoint of run .* does not fit its config"):
        trained(run.config, run.path.parent, resume=True)


# ------------------------------------------------------------------------------ the folder


def test_damaged_lines_of_the_log_are_passed_over_and_said(run, caplog):
    entries = run.entries("train")
    with run.log_path.open("ab") as file:
        file.write(b'5\n{}\n\xff\xfe\n[[\n{"kind": "train"}\n{"kind": "train", "step": "x"}\n')
    assert Run.open(run.path).entries("train")[: len(entries)] == entries
    assert "3 line(s) that hold no JSON object are passed over" in caplog.text
    assert trained(run.config, run.path.parent, resume=True) is not None
    assert run.entries("train") == entries


@pytest.mark.parametrize("fingerprints", [5, "x", [1], {"train": 5}, {"train": None}], ids=repr)
def test_fingerprints_of_another_type_are_one_sentence(fingerprints, run):
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "fingerprints": fingerprints}))
    with pytest.raises(InputError, match="fingerprints="):
        Run.open(run.path)


FOLDERS = ["log.jsonl", "model.safetensors", "report/report.json", "left-out.jsonl"]


@pytest.mark.parametrize("name", [*FOLDERS, "config.json", "checkpoints/000000008.pt"])
def test_a_folder_where_a_file_should_be_is_one_sentence(name, run, capsys, image_file):
    path = run.path / name
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    (path / "x").touch()
    words = [f"--out={run.path}", "--resume", "--accelerator=cpu", f"--data={image_file}"]
    train = ["train", "rsqvae", *words]
    for command in (["evaluate", str(run.path), "--accelerator", "cpu"], train):
        code = main(command)
        errors = capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in errors
        assert code == 0 or "hqvae: " in errors.splitlines()[-1]


# ------------------------------------------------------------------------------ at random


def mutated_bytes(content, rng):
    """A few flipped bits, a cut, bytes overwritten, inserted or gone."""
    content = bytearray(content)
    place = rng.randrange(len(content))
    match rng.randrange(6):
        case 0:
            del content[place:]
        case 1:
            del content[place : place + rng.randrange(1, 9)]
        case 2:
            content[place:place] = rng.randbytes(rng.randrange(1, 9))
        case 3:
            content[place : place + 4] = rng.randbytes(4)[: len(content) - place]
        case _:
            for _ in range(rng.randrange(1, 4)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


VALUES = [None, True, -1, 0, 10**12, 0.5, "", "x", [], {}, [[]], [1], {"kind": "x"}, 10**30]


def mutated_json(tree, rng):
    """The tree with one value of it replaced by one of another type, or gone."""
    tree = json.loads(json.dumps(tree))
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return tree


@pytest.mark.parametrize("seed", range(4))
def test_mutated_configs_are_read_or_refused(seed, run):
    rng = random.Random(seed)
    path = run.path / "config.json"
    content = path.read_bytes()
    tree = json.loads(content)
    for number in range(100):
        if number % 2:
            path.write_bytes(mutated_bytes(content, rng))
        else:
            path.write_text(json.dumps(mutated_json(tree, rng)))
        for load in (HQVAE.from_pretrained, Run.open):
            try:
                load(run.path)
            except ValueError as error:
                assert type(error) in (ValueError, InputError), path.read_bytes()
                assert "\n" not in str(error)


@pytest.mark.parametrize("seed", range(3))
def test_no_mutated_weights_are_taken_for_what_was_saved(seed, run):
    rng = random.Random(seed)
    path = run.path / "model.safetensors"
    content = path.read_bytes()
    before = run.load_model()
    silent = []
    for _ in range(100):
        path.write_bytes(mutated_bytes(content, rng))
        try:
            after = HQVAE.from_pretrained(run.path)
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error)
            continue
        unchanged = same(before.state_dict(), after.state_dict())
        if not unchanged or before.posterior != after.posterior:
            silent.append(path.read_bytes())
    assert silent == []


def equal(one, other):
    """Whether two states hold the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("seed", range(3))
def test_no_mutated_checkpoint_is_taken_for_what_was_saved(seed, run, caplog):
    rng = random.Random(seed)
    (run.path / "checkpoints" / "000000004.pt").unlink()
    path = run.path / "checkpoints" / "000000008.pt"
    content = path.read_bytes()
    before = run.load_checkpoint()
    silent = 0
    for _ in range(100):
        path.write_bytes(mutated_bytes(content, rng))
        try:
            silent += not equal(before, run.load_checkpoint())
        except InputError as error:
            assert "none of the checkpoints" in str(error)
    assert silent == 0
