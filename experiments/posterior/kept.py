"""Rows of an experiment, kept in a JSON file as they come: a script goes on where it was."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Kept:
    """The rows of a file; `add` writes them at once."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def has(self, place: Row) -> bool:
        """Whether a row is of this place: equal wherever the place says something."""
        return any(all(row.get(key) == value for key, value in place.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")


def parser_of(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with --out, whose default is NAME.json beside this file, and --table."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(f"{name}.json"))
    parser.add_argument("--table", type=Path)
    return parser


def parse(
    parser: argparse.ArgumentParser, print_tables: Callable[[list[Row]], None], *needed: str
) -> argparse.Namespace:
    """The arguments. With --table it prints what a file holds and ends; else `needed` must be."""
    arguments = parser.parse_args()
    if arguments.table:
        print_tables(Kept(arguments.table).rows)
        raise SystemExit
    missing = [name for name in needed if getattr(arguments, name) is None]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    return arguments
