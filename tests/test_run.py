"""Run: a folder that is whole at every moment, and goes on from where it was."""

import errno
import json

import pytest
import torch
from matplotlib.figure import Figure

from hqvae.checkpoints import KEPT_CHECKPOINTS
from hqvae.errors import InputError
from hqvae.files import atomic_write
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.nets import ConvConfig
from hqvae.overrides import override
from hqvae.presets import PRESETS
from hqvae.run import FORMAT, Run

TINY = override(
    PRESETS["sqvae"],
    [
        "model.levels=[{stride: 4, codebook_size: 8, dim: 4}]",
        "model.net.widths=[8]",
        "model.net.blocks=0",
    ],
)


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", TINY)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return HQVAE(TINY.model)


def files(run):
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------ opening


@pytest.mark.parametrize("name", PRESETS)
def test_a_created_run_opens_and_resumes_with_its_config(name, tmp_path):
    created = Run.create(tmp_path / "a" / "run", PRESETS[name])
    assert files(created) == ["config.json"]
    saved = json.loads((created.path / "config.json").read_text())
    assert {"hqvae", "torch", "python"} <= saved["versions"].keys() and saved["format"] == FORMAT
    assert (
        Run.open(created.path).config
        == Run.resume(created.path, PRESETS[name]).config
        == PRESETS[name]
    )


def test_an_empty_folder_can_be_used(tmp_path):
    assert Run.create(tmp_path, TINY).path == tmp_path


def test_a_runs_folder_is_not_used_again(run):
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"run' already holds a run; continue it with resume=True"):
        Run.create(run.path, PRESETS["vqvae"])
    assert (run.path / "config.json").read_bytes() == before


def test_what_a_kill_left_before_the_config_is_no_hindrance(tmp_path):
    (tmp_path / ".config.json.partial").write_text('{"mod')
    with pytest.raises(InputError, match=r"holds no run, .*; begin it without resume=True"):
        Run.resume(tmp_path, TINY)
    assert files(Run.create(tmp_path, TINY)) == ["config.json"]


def test_a_folder_with_other_files_is_not_used(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="already holds files that are no run"):
        Run.create(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "message"), [("file", "file' is a file"), ("file/run", "file/run' cannot be made")]
)
def test_a_folder_that_cannot_be_made_is_named(name, message, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=message):
        Run.create(tmp_path / name, TINY)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "verb", [Run.open, lambda path: Run.resume(path, TINY)], ids=["open", "resume"]
)
def test_no_run_is_named_with_the_runs_beside_it(verb, run):
    with pytest.raises(InputError, match=r"rum' (is|holds) no run.*; runs beside it: run"):
        verb(run.path.parent / "rum")
    with pytest.raises(InputError, match=r"config\.json' is no run"):
        verb(run.path / "config.json")


def test_a_models_folder_is_told_from_a_run(tmp_path):
    HQVAE(TINY.model).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"model' holds a model and no run.*from_pretrained"):
        Run.open(tmp_path / "model")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"model": 3}', '{"unknown": 3}', "\x00\x00"], ids=repr
)
def test_a_broken_config_is_named(text, run):
    (run.path / "config.json").write_text(text)
    with pytest.raises(InputError):
        Run.open(run.path)


# As the first version wrote it: keys that are gone, `contents` for fingerprints, and no format.
FIRST_CONFIG = {
    "model": {"levels": [{"stride": 4, "layers": 1, "codebook_size": 8, "dim": 4}], "search": 1},
    "data": {"kind": "images", "source": "photos"},
    "train": {"steps": 8, "unquantized": 0.1, "hard": 0.75},
    "contents": {"train": "12 images"},
    "versions": {"python": "3.10.1", "hqvae": "0.0.9", "torch": "2.11.0"},
}


@pytest.mark.parametrize("verb", [Run.open, lambda path: Run.resume(path, TINY)])
@pytest.mark.parametrize(
    ("changes", "made_by"),
    [
        ({}, r"hqvae 0\.0\.9 \(format 1\)"),
        ({"versions": None}, r"hqvae \? \(format 1\)"),
        ({"format": 99, "versions": {"hqvae": "9.1"}}, r"hqvae 9\.1 \(format 99\)"),
    ],
    ids=["first", "unknown", "later"],
)
def test_a_folder_of_another_version_says_which_made_it(changes, made_by, verb, run):
    (run.path / "config.json").write_text(json.dumps({**FIRST_CONFIG, **changes}))
    message = rf"run' was made by {made_by}, which this version cannot read .*format {FORMAT}\)"
    with pytest.raises(InputError, match=message) as error:
        verb(run.path)
    assert "\n" not in str(error.value)


def test_resuming_on_changed_data_names_the_split(tmp_path):
    made = Run.create(tmp_path / "run", TINY, {"train": "12 images", "validation": "4 images"})
    same = {"train": "12 images", "test": "9 images"}
    assert Run.resume(made.path, TINY, same).fingerprints == made.fingerprints
    with pytest.raises(InputError, match=r"the train split .*12 images then, 13 images now"):
        Run.resume(made.path, TINY, {"train": "13 images"})


def test_resuming_with_another_config_names_the_difference(run):
    with pytest.raises(
        InputError,
        match=r"run' was made with another config: train\.lr is 0\.001 there and 0\.5 here",
    ):
        Run.resume(run.path, override(TINY, ["train.lr=0.5"]))


# ------------------------------------------------------------------------------ whole or not at all


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), RuntimeError("x"), KeyboardInterrupt()],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("old", ["old", None])
def test_what_fails_half_way_leaves_what_was_there(run, error, old):
    path = run.path / "report" / "x.json"
    path.parent.mkdir()
    if old is not None:
        path.write_text(old)
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == (
        [] if old is None else [("x.json", old)]
    )


def test_nothing_shows_before_it_is_whole(run):
    path = run.path / "new" / "x.json"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("x.json", "new")]


WRITERS = {
    "checkpoints/000000002.pt": lambda run: run.save_checkpoint(
        {"step": 2, "x": torch.arange(100000)}
    ),
    "model.safetensors": lambda run: run.save_model(tiny_model(2)),
    "report/x.json": lambda run: run.write_json("report/x.json", list(range(100000))),
    "left-out.jsonl": lambda run: run.write_lines("left-out.jsonl", [{"key": "x" * 5000}]),
    "report/x.png": lambda run: run.save_figure("x.png", Figure(figsize=(20, 20))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_the_system_refuses_is_its_error_and_leaves_the_run_usable(name, run):
    """A real refusal, by the process's largest file size.

    The caller must see the system's reason, not a library's own class.
    """
    resource = pytest.importorskip("resource")
    run.save_checkpoint({"step": 1, "x": torch.arange(3)})
    run.save_model(tiny_model(1))
    run.write_json("report/x.json", "old")
    before, limits = files(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            WRITERS[name](run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG
    assert files(run) == before
    assert run.load_checkpoint()["step"] == 1
    expected = tiny_model(1).levels[0].project.weight
    assert torch.equal(run.load_model().levels[0].project.weight, expected)
    assert json.loads((run.path / "report" / "x.json").read_text()) == "old"


def test_lines_are_json_objects_and_replace_those_before(run):
    rows = [{"key": "a/1.png", "reason": "cut off"}, {"key": "ü.png", "reason": "2\nlines"}]
    run.write_lines("left-out.jsonl", [{"key": "gone"}])
    path = run.write_lines("left-out.jsonl", iter(rows))
    assert path == run.path / "left-out.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


@pytest.mark.parametrize("posterior", ["gumbel_softmax", "nearest_code"])
def test_a_model_comes_back_as_it_was_saved(posterior, run):
    model = tiny_model()
    if posterior == "nearest_code":
        model.use_nearest()
    run.save_model(model)
    loaded = run.load_model()
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.posterior == model.posterior == posterior
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("content", [None, b"", b"no weights"], ids=repr)
def test_weights_that_cannot_be_read_are_named(content, run):
    if content is not None:
        (run.path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"run' has (no weights yet|weights that cannot be read)"):
        run.load_model()


def test_weights_of_another_model_are_named(run):
    run.save_model(
        HQVAE(
            HQVAEConfig(levels=(LevelConfig(4, 1, 16, 4),), net=ConvConfig(widths=(8,), blocks=0))
        )
    )
    with pytest.raises(InputError, match=r"run' has weights that cannot be read: .*do not fit"):
        run.load_model()


# ------------------------------------------------------------------------------ checkpoints


def saved(run, *steps):
    for step in steps:
        run.save_checkpoint({"step": step, "weights": torch.full((300,), float(step))})


def test_there_is_no_checkpoint_at_first(run):
    assert run.load_checkpoint() is None


@pytest.mark.parametrize(
    "steps", [(1,), (1, 2), (8, 9, 10, 11), (999, 1000, 10_000, 100_000)], ids=str
)
def test_the_newest_checkpoints_are_kept_and_the_newest_is_loaded(steps, run):
    saved(run, *steps)
    kept = [f"checkpoints/{step:09d}" for step in steps[-KEPT_CHECKPOINTS:]]
    names = [f"{name}.{kind}" for name in kept for kind in ("pt", "sha256")]
    assert files(run) == [*names, "config.json"]
    state = run.load_checkpoint()
    assert state["step"] == steps[-1]
    assert torch.equal(state["weights"], torch.full((300,), float(steps[-1])))


TORN = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "all but the end": lambda whole: whole[:-1],
    "zeros": lambda whole: bytes(len(whole)),
    "first part zeros": lambda whole: bytes(64) + whole[64 : len(whole) // 2],
    "something else": lambda whole: b"hello",
    "text": lambda whole: b"no checkpoint at all\n" * 9,
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_checkpoint_is_passed_over(kind, run, caplog):
    saved(run, 1, 2)
    newest = run.path / "checkpoints" / "000000002.pt"
    newest.write_bytes(TORN[kind](newest.read_bytes()))
    assert run.load_checkpoint()["step"] == 1
    assert "000000002.pt cannot be read" in caplog.text
    (run.path / "checkpoints" / "000000001.pt").write_bytes(newest.read_bytes())
    with pytest.raises(
        InputError, match="none of the checkpoints"
    ):  # starting over by itself would lose what is there
        run.load_checkpoint()


def test_a_partial_checkpoint_of_a_killed_run_is_no_checkpoint(run):
    saved(run, 1)
    (run.path / "checkpoints" / ".000000002.pt.partial").write_bytes(b"x")
    assert run.load_checkpoint()["step"] == 1
    saved(run, 2)
    assert [name for name in files(run) if "partial" in name] == []


# ------------------------------------------------------------------------------ the log


ENTRIES = [
    {"kind": "train", "step": 1, "loss": 1.5},
    {
        "kind": "validation",
        "step": 2,
        "layers": [{"level": 0}, {"level": 1, "s2": 0.5}],
        "loss": {"a": {"b": 1}},
    },
    {"kind": "train", "step": 2, "loss": 0.5},
    {
        "kind": "validation",
        "step": 4,
        "layers": [{"level": 0}, {"level": 1, "s2": 0.5}],
        "loss": {"a": {"b": 1}},
    },
]


def logged(run, entries=ENTRIES):
    for entry in entries:
        run.log(entry)
    return run


def lines(run):
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]


def test_entries_are_found_by_their_kind(run):
    assert run.entries("train") == []
    logged(run)
    assert run.entries("train") == [ENTRIES[0], ENTRIES[2]]
    assert run.entries("validation") == [ENTRIES[1], ENTRIES[3]]
    assert run.entries("alarm") == []


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 3), (4, 4), (9, 4)])
def test_what_came_after_a_step_is_forgotten(step, kept, run):
    logged(run).truncate_log(step)
    assert lines(run) == ENTRIES[:kept]


def test_there_may_be_nothing_to_forget(run):
    run.truncate_log(3)
    assert files(run) == ["config.json"]


def test_a_line_torn_anywhere_is_forgotten_and_does_no_harm(run):
    """A killed run may leave any beginning of its last line, also one that ends with a bracket."""
    logged(run)
    whole = run.log_path.read_text()
    start = len(whole) - len(json.dumps(ENTRIES[-1])) - 1
    for end in range(start, len(whole) - 1):
        run.log_path.write_text(whole[:end])
        assert run.entries("validation") == ENTRIES[1:2], whole[start:end]
        run.truncate_log(9)
        assert lines(run) == ENTRIES[:-1], whole[start:end]
    run.log({"kind": "train", "step": 5})
    assert lines(run) == [*ENTRIES[:-1], {"kind": "train", "step": 5}]
