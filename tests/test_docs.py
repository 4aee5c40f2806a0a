"""README and guides: links lead somewhere, examples run, sentences are short."""

import re
import statistics
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from hqvae import HQVAE

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
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
    HQVAE.from_preset("hqvae").save_pretrained("runs/first")  # the run of docs/get-started.md
    with torch.random.fork_rng():
        exec(compile(code, name(path), "exec"), {"__name__": "example"})


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
