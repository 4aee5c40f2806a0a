"""README and guides: links lead somewhere, examples run, sentences are short."""

import re
import shlex
import statistics
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from hqvae import HQVAE
from hqvae.cli import main
from hqvae.data import ImageConfig
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.run import Run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TOKENS = ROOT / "docs" / "tokens.md"
ARRAYS = ROOT / "docs" / "arrays.md"
IDS = ROOT / "docs" / "ids.md"
WHOLE = (TOKENS, ARRAYS, IDS)  # run as a whole: commands and examples in order
GUIDES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, *sorted((ROOT / "experiments" / "diary").glob("*.md"))]

MAX_WORDS = 40
MAX_MEDIAN_WORDS = 20
MAX_README_LINES = 130
MAX_COLUMNS = 100

_FENCE = re.compile(r"^```.*?^```\n?", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_NO_PROSE = re.compile(r"^(\||#|!\[|<!--)")
_LIST_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) +")


def name(path):
    return str(path.relative_to(ROOT))


def links(path):
    """What a page links to within the repository: (file, anchor or "")."""
    targets = _LINK.findall(_FENCE.sub("", path.read_text()))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    parts = [unquote(target).partition("#") for target in local]
    return [(path.parent / file if file else path, anchor) for file, _, anchor in parts]


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(_FENCE.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sentences(text):
    """The sentences of the prose: no code blocks, tables, headings or images."""
    blocks = [""]
    for line in _FENCE.sub("\n", text).splitlines():
        if not line.strip() or _NO_PROSE.match(line):
            blocks.append("")
        elif _LIST_ITEM.match(line):
            blocks.append(_LIST_ITEM.sub("", line))
        else:
            blocks[-1] += f" {line.strip()}"
    found = [sentence for block in blocks for sentence in re.split(r"[.!?:]\s+", block)]
    return [sentence for sentence in found if sentence.strip()]


def count_words(sentence):
    """Words between spaces; a dash or a dot between words is none."""
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def examples():
    for path in GUIDES:
        if path in WHOLE:
            continue
        for index, code in enumerate(_PYTHON.findall(path.read_text())):
            yield pytest.param(path, code, id=f"{path.name}-{index}")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(path):
    missing = [
        f"{file}#{anchor}"
        for file, anchor in links(path)
        if not file.exists() or (anchor and anchor not in anchors(file))
    ]
    assert not missing


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path, code", examples())
def test_every_example_runs(path, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = HQVAE.from_preset("hqvae")  # of docs/get-started.md
    run.data = ImageConfig(size=32)
    run.save_pretrained("runs/first")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    with torch.random.fork_rng():
        exec(compile(code, name(path), "exec"), {"__name__": "example"})


def first_run(folder):
    """The run of docs/get-started.md, untrained, and pictures in two splits and classes."""
    config = override(preset("hqvae"), ["data.size=32", f"data.source={folder / 'pictures'}"])
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for i in range(count):
            path = folder / "pictures" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path)
    Run.create(folder / "runs" / "first", config).save_model(HQVAE(config.model, data=config.data))


def run_as_written(path, settings=(), leave_out=None):
    """Run a page's commands and examples in order, `train` with these settings; counts them.

    Lines with the word `leave_out` are tested elsewhere.
    """
    ran = 0
    for language, code in re.findall(
        r"^```(python)?\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE
    ):
        if language:
            with torch.random.fork_rng():
                exec(compile(code, name(path), "exec"), {"__name__": "example"})
            ran += 1
        for line in code.splitlines():
            if line.startswith("hqvae ") and (leave_out is None or leave_out not in line):
                extra = settings if line.startswith("hqvae train") else ()
                assert main([*shlex.split(line)[1:], *extra]) == 0, line
                ran += 1
    return ran


@pytest.mark.timeout(180)
def test_use_your_codes_runs_as_written(tmp_path, monkeypatch, capsys):
    """But for Ray's command, of which `test_ray.py` is."""
    monkeypatch.chdir(tmp_path)
    first_run(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert run_as_written(TOKENS, leave_out="ray") == 7
    assert re.search(r"^11 items, \d+\.\d\d nats a token$", capsys.readouterr().out, re.MULTILINE)
    decoded = sorted(path.name for path in (tmp_path / "decoded").rglob("*.png"))
    assert decoded == sorted([f"{i}.png" for i in range(12)] + ["0.png", "1.png", "2.png"])


SHORT = ["train.steps=20", "train.validate_every=20", "train.batch_size=16", "train.log_every=20"]


@pytest.mark.timeout(180)
def test_semantic_ids_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for file, count in (("items.parquet", 80), ("new.parquet", 9)):
        vectors = generator.standard_normal((count, 12)).astype(np.float32)
        keys = [f"{file}-{i}" for i in range(count)]
        column = pyarrow.array(list(vectors), pyarrow.list_(pyarrow.float32()))
        table = {"id": keys, "brand": ["a", "b", "c"] * count, "embedding": column}
        table["brand"] = table["brand"][:count]
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    assert run_as_written(IDS, SHORT) == 5
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("['items.parquet-")


@pytest.mark.timeout(180)
def test_any_array_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_as_written(ARRAYS, SHORT) == 4
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "((16,), (16,), (16,), (16,)) (64, 2)"


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_no_sentence_is_long(path):
    long = [
        sentence for sentence in sentences(path.read_text()) if count_words(sentence) > MAX_WORDS
    ]
    assert not long


def test_the_readme_is_read_in_a_sitting():
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    assert statistics.median(map(count_words, sentences(text))) <= MAX_MEDIAN_WORDS


def test_the_readme_fits_the_screen():
    """Tables cannot be wrapped, nor can links."""
    lines = [line for line in README.read_text().splitlines() if not line.startswith("|")]
    unwrapped = [line for line in lines if len(_LINK.sub("]", line)) > MAX_COLUMNS]
    assert not unwrapped


def test_sentences_are_told_apart():
    text = "# Title\n\nOne is here. Two\nis too:\n\n- three; and on\n- four 1.5 dB\n\n| no |\n"
    assert sentences(text) == [" One is here", "Two is too:", "three; and on", "four 1.5 dB"]


# ------------------------------------------------------------------------ the theory's table


def theory_rows():
    """(sentence, the backticked words of its file cell, those of its test cell)."""
    text = (ROOT / "docs" / "theory.md").read_text()
    table = text.split("## Equation by equation")[1].split("## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line[:1] == "|"]
    ticked = re.compile(r"`([^`]+)`")
    return [
        pytest.param(ticked.findall(row[2]), ticked.findall(row[3]), id=row[0].strip())
        for row in rows[2:]
    ]


@pytest.mark.parametrize(("places", "tests"), theory_rows())
def test_what_theory_names_is_there(places, tests):
    """Files, classes, methods and functions of the package, and the tests that hold them."""
    package = ROOT / "src" / "hqvae"
    files = [package / place for place in places if place.endswith(".py")]
    names = [name for place in places if not place.endswith(".py") for name in place.split(".")]
    assert files and files[0].is_file()
    source = ""
    for file in files:
        beside = files[0].parent / file.name
        assert file.is_file() or beside.is_file(), file
        source += (file if file.is_file() else beside).read_text()
    for found in names:
        assert re.search(rf"(class|def) {found}\b|\"{found}\":", source) is not None, found
    all_tests = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    for test in tests:
        known = test in all_tests or any(f"def {test}(" in text for text in all_tests.values())
        assert known, test


def test_the_tests_that_theory_names_in_its_prose_are_there():
    text = (ROOT / "docs" / "theory.md").read_text()
    all_tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    assert [name for name in named if f"def {name}(" not in all_tests] == []
