"""What lies below a folder: its files, and in words what was passed over."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hqvae.errors import InputError
from hqvae.ranks import warn

_SIDE_FILES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # they describe the others
_NAMED = 3  # links, folders and kinds of file that a message names


@dataclass
class Listing:
    """All files below a folder, and what could not be listed."""

    root: Path
    files: list[Path] = field(default_factory=list)
    circles: list[str] = field(default_factory=list)
    """Links to a folder that they lie in."""
    dangling: list[str] = field(default_factory=list)
    """Links to nothing."""
    locked: list[str] = field(default_factory=list)
    """Folders that may not be read."""
    linked: bool = False
    """Whether a link to a folder was followed, so that a file may be there twice."""

    def notes(self) -> list[str]:
        """What could not be listed, in words."""
        found = [
            (self.circles, "link", "to a folder that it lies in"),
            (self.dangling, "link", "to nothing"),
            (self.locked, "folder", "that may not be read"),
        ]
        return [f"{_counted(names, noun)} {what}" for names, noun, what in found if names]


def list_files(root: Path) -> Listing:
    """All files below a folder, sorted; links are followed, hidden files and folders left out.

    A folder that is reached by two ways counts twice. Only a link to a folder that it lies in is
    not followed: it has no end.
    """
    listing = Listing(root)
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder)
            entries = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
        except OSError:
            listing.locked.append(_below(root, folder))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            listing.circles.append(_below(root, folder))
            continue
        for entry in entries:
            path = folder / entry.name
            if _is(entry.is_dir):
                waiting.append((path, above | {identity}))
                listing.linked |= entry.is_symlink()
            elif _is(entry.is_file):
                listing.files.append(path)
            elif entry.is_symlink():
                listing.dangling.append(_below(root, path))
    listing.files.sort()
    return listing


def _is(question: Callable[[], bool]) -> bool:
    """Whether an entry is what was asked; a link to itself is nothing."""
    try:
        return question()
    except OSError:
        return False


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def kinds(files: Iterable[Path]) -> str:
    """How many files there are of which ending: `3 .txt and 1 .json files`; empty where none."""
    counts = Counter(
        file.suffix.lower() or "bare" for file in files if file.name not in _SIDE_FILES
    )
    if not counts:
        return ""
    parts = [f"{count} {suffix}" for suffix, count in counts.most_common(_NAMED)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_NAMED))
    parts += [f"{rest} other"] if rest else []
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{listed} file{'s' * (sum(counts.values()) > 1)}"


def warn_of_passed_over(root: Path, notes: Sequence[str]) -> None:
    """One line for all that is left out of a folder; empty notes do not count."""
    said = "; ".join(note for note in notes if note)
    if said:
        warn("in folder %r these are left out: %s", str(root), said)


def require_readable(listing: Listing) -> None:
    """Raises InputError where the folder itself may not be read."""
    if listing.locked == ["."]:
        raise InputError(f"folder {str(listing.root)!r} may not be read")


def _counted(names: Sequence[str], noun: str) -> str:
    listed = ", ".join(map(repr, sorted(names)[:_NAMED]))
    more = " …" if len(names) > _NAMED else ""
    return f"{len(names)} {noun}{'s' * (len(names) > 1)} ({listed}{more})"
