"""The house keeps its own rules: files and functions that fit in a sitting, no door that code could come through."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hqvae"
FILES = sorted(SOURCE.rglob("*.py"))
names = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


@names
def test_a_file_says_its_subject_and_fits_in_a_sitting(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "the first line says the subject"
    assert len(text.splitlines()) <= 400


@names
def test_functions_are_short_and_take_few_arguments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [
                a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")
            ]
            exempt = {"app.command", "triton.jit"} & set(
                map(ast.unparse, node.decorator_list)
            )  # flags, and pointers, cannot be bundled
            assert len(arguments) <= 8 or exempt, node.name
            statements = [n for n in ast.walk(node) if isinstance(n, ast.stmt)]
            assert len(statements) <= 48, node.name


@names
def test_no_code_rides_in_a_file(path):
    text = path.read_text()
    for call in re.findall(r"torch\.load\([^\n]*", text):
        assert "weights_only=True" in call
    assert not re.search(
        r"pickle\.loads?\(|allow_pickle=True|(?<![\w.])eval\(|(?<![\w.])exec\(|device=\"cuda\"",
        text,
    )


def test_one_loop_over_layers_turns_queries_into_codes():
    """Only `walk` calls a layer's `enter` and `absorb`; only sources call `query`."""
    callers = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("enter", "absorb", "query")
            ):
                callers.setdefault(node.func.attr, set()).add(path.name)
    assert callers == {"enter": {"topdown.py"}, "absorb": {"topdown.py"}, "query": {"topdown.py"}}
