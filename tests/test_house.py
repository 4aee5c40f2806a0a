"""The house keeps its own rules: files, functions and lines that fit, and no code rides in a file.

python tests/test_house.py          prints the figures that the rules are about
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from unicodedata import combining

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "hqvae"
FILES = sorted(SOURCE.rglob("*.py"))
ALL_FILES = sorted(
    path
    for folder in ("src", "tests", "experiments", "benchmarks")
    for suffix in ("*.py", "*.yaml")
    for path in (ROOT / folder).rglob(suffix)
)
LONGEST_LINE = 100
LONGEST_FILE = 300
MEDIAN_FILE = 150
LONGEST_FUNCTION = 40  # lines, without its docstring
MOST_ARGUMENTS = 8
# A kernel's pointers and a command's flags cannot be bundled; a kernel is one program.
MANY_ARGUMENTS = {"app.command", "triton.jit"}
LONG = {"triton.jit"}
# Values that belong together, and may be assigned on one line: `height, width = 8, 16`.
TOGETHER = [
    {"height", "width"},
    {"mean", "deviation"},
    {"weight", "bias"},
    {"left", "middle", "right"},
    {"rows", "codes"},  # the sides of a block
    {"train", "validation"},
    {"then", "now"},
]
files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
all_files = pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(path: Path, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of these kinds in a file."""
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def decorators(function: Function) -> set[str]:
    """Names of a function's decorators, without their arguments."""
    return {ast.unparse(node).split("(")[0] for node in function.decorator_list}


def function_lines(function: Function) -> int:
    """From the signature to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def arguments(function: Function) -> list[str]:
    """Names of the arguments that a caller gives."""
    names = [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def long_lines(path: Path) -> list[int]:
    """Numbers of the lines that are too long, as ruff counts.

    A letter and its tilde are one column; a comment for a linter has none.
    """
    text = path.read_text(encoding="utf-8")
    lines = [re.sub(r"  # (noqa|type: ignore).*", "", line) for line in text.splitlines()]
    widths = [sum(not combining(letter) for letter in line) for line in lines]
    return [number for number, width in enumerate(widths, 1) if width > LONGEST_LINE]


def packed_assignments(path: Path) -> list[str]:
    """`a, b = x, y`, unless the values belong together or are swapped."""
    packed = []
    for node in nodes(path, ast.Assign):
        (target, *_), value = node.targets, node.value
        if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)):
            continue
        names = {ast.unparse(part) for part in target.elts}
        swapped = names == {ast.unparse(part) for part in value.elts}
        if names not in TOGETHER and not swapped:
            packed.append(f"line {node.lineno}: {ast.unparse(node)}")
    return packed


# ------------------------------------------------------------------------------ sizes


@files
def test_a_file_says_its_subject_and_fits_in_a_sitting(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "the first line says the subject"
    assert len(text.splitlines()) <= LONGEST_FILE


def test_half_of_the_files_are_short():
    assert median(len(path.read_text().splitlines()) for path in FILES) <= MEDIAN_FILE


@files
def test_functions_are_short_and_take_few_arguments(path):
    for function in nodes(path, *Function.__args__):
        if not decorators(function) & MANY_ARGUMENTS:
            assert len(arguments(function)) <= MOST_ARGUMENTS, function.name
        if not decorators(function) & LONG:
            assert function_lines(function) <= LONGEST_FUNCTION, function.name


@all_files
def test_lines_fit(path):
    assert long_lines(path) == []


@files
def test_no_line_packs_unrelated_values(path):
    assert packed_assignments(path) == []


# ------------------------------------------------------------------------------ contracts


@files
def test_no_code_rides_in_a_file(path):
    text = path.read_text()
    for call in re.findall(r"torch\.load\([^\n]*", text):
        assert "weights_only=True" in call
    assert not re.search(
        r"pickle\.loads?\(|allow_pickle=True|(?<![\w.])eval\(|(?<![\w.])exec\(|device=\"cuda\"",
        text,
    )


def test_one_loop_over_levels_turns_features_into_codes():
    """Only `walk` and its sources ask a level for its prediction, its Z̃ and its latent."""
    callers: dict[str, set[str]] = {}
    for path in FILES:
        for call in nodes(path, ast.Call):
            callers.setdefault(ast.unparse(call.func), set()).add(path.name)
    for verb in ("predict", "project_in", "latent"):
        assert callers[f"level.{verb}"] == {"topdown.py"}, verb


# ------------------------------------------------------------------------------ figures


def figures() -> dict[str, int | float]:
    """What the rules above are about, over the package (lines: over all code)."""
    functions = [f for path in FILES for f in nodes(path, *Function.__args__)]
    kept = [f for f in functions if not decorators(f) & LONG]
    lengths = [len(path.read_text().splitlines()) for path in FILES]
    return {
        f"lines above {LONGEST_LINE} columns": sum(len(long_lines(path)) for path in ALL_FILES),
        "longest function, lines without docstring": max(map(function_lines, kept)),
        "longest file, lines": max(lengths),
        "median file, lines": median(lengths),
        "packed assignments": sum(len(packed_assignments(path)) for path in FILES),
        "files": len(FILES),
        "lines": sum(lengths),
    }


if __name__ == "__main__":
    for name, figure in figures().items():
        print(f"{figure:8g}  {name}")
