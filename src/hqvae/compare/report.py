"""What a comparison found: tables on the screen, report.json, and report.html, one file that opens offline."""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from matplotlib.figure import Figure

from hqvae.console import print_table
from hqvae.data import Items
from hqvae.files import atomic_write
from hqvae.run import versions

from .figures import annealing, by_layer, finished, over_cases, side_by_side, use_in_training
from .jobs import Folder, Machine, train_command
from .spec import Entry, Spec, plain
from .summary import Row, apart, shown, summarise, verdicts

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } img { max-width: 100%; display: block; margin: 1rem 0 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.ours { background: #f2f7ff; font-weight: 600 }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12px }
"""


@dataclass(frozen=True)
class Place:
    """Where the runs are, what they were trained on, and the signals of each case, for pictures."""

    folder: Folder
    machine: Machine
    items: Mapping[str, Items]


_FIGURES = {
    "RMSE": ("rmse", None), "PSNR dB": ("psnr", 2), "SSIM": ("ssim", 4), "LPIPS": ("lpips", 4), "rFID": ("rfid", 2),
    "SI-SDR dB": ("si_sdr", 2), "STFT distance": ("stft_distance", 3), "mel distance": ("mel_distance", 3),
    "log-mel RMSE": ("log_mel_rmse", 3),
    "bits/dim": ("bits_per_dim", 3), "by nearest": ("bits_per_dim_nearest", 3), "images/s": ("images_per_second", 0),
}  # fmt: skip


def tables(spec: Spec, rows: Sequence[Row]) -> list[tuple[list[str], list[list[str]]]]:
    """(heads, cells) of a case's two tables, figures and use of codes; columns that no row has a figure for are left out."""
    kinds = {head: kind for head, kind in _FIGURES.items() if any(kind[0] in row.figures for row in rows)}
    figures = [
        [row.system, *(shown(row.figures.get(name), digits) for name, digits in kinds.values()), apart(row.difference)] for row in rows
    ]
    use = [
        [
            row.system, str(len(row.seeds)), " ".join(f"{layer.perplexity.mean:.0f}" for layer in row.layers),
            shown(row.figures["perplexity_share"], 2), f"{row.figures['used_share'].mean:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        (["system", *(f"RMSE ({rows[0].unit})" if head == "RMSE" else head for head in kinds), f"Δ RMSE to {spec.ours}"], figures),
        (["system", "seeds", "perplexity of each layer", "perplexity / K, least used layer", "codes used there"], use),
    ]


def print_tables(spec: Spec, rows: Sequence[Row]) -> None:
    """Two tables per case on standard output, then the verdicts."""
    for case in spec.cases:
        group = [row for row in rows if row.case == case]
        if group:
            figures, use = tables(spec, group)
            print_table(heading(spec, case, group), *figures)
            print_table("use of the codebooks", *use)
    for sentence in verdicts(spec, rows):
        print(sentence)


def heading(spec: Spec, case: str, rows: Sequence[Row]) -> str:
    """Title, case, split and rate; `rows` are those of the case."""
    rates = sorted({row.rate for row in rows})
    return f"{spec.title}{': ' if case else ''}{case} ({spec.split} split, {rates[0] if len(rates) == 1 else 'rates differ'})"


def write_report(
    spec: Spec, entries: Sequence[Entry], results: Sequence[dict[str, Any]], missing: Sequence[str], place: Place
) -> list[Row]:
    """`report.json`, `report.html` and the pictures beside them; returns the tables' rows. `missing` are sentences for the page."""
    rows = summarise(spec, results)
    everything = {
        "title": spec.title, "split": spec.split, "data": entries[0].config.data.source, "reference": spec.ours, "missing": list(missing),
        "verdicts": verdicts(spec, rows), "rows": [asdict(row) for row in rows], "results": list(results), "versions": versions(),
    }  # fmt: skip
    _write(place.folder, "report.json", json.dumps(everything, indent=1) + "\n")
    _write(place.folder, "report.html", _page(spec, entries, rows, missing, _pictures(spec, entries, results, rows, place), place))
    return rows


def _pictures(
    spec: Spec, entries: Sequence[Entry], results: Sequence[dict[str, Any]], rows: Sequence[Row], place: Place
) -> dict[str | None, list[tuple[str, str]]]:
    """Per case (None: over all of them) its pictures as (alternative text, base64 PNG), each also written into OUT/pictures."""
    figures: dict[str | None, list[tuple[str, str, Figure]]] = {}
    if len(spec.cases) > 1 and rows:
        figures[None] = [("cases", "RMSE and codebook use over the cases", over_cases(spec, rows))]
    for case in spec.cases:
        group, runs = [row for row in rows if row.case == case], finished(entries, results, place.folder, case)
        if not group or not runs:
            continue
        figures[case] = [
            ("layers", "PSNR after each layer, and codebook use of each layer", by_layer(spec, group)),
            ("use", "codebook use during training, first seed", use_in_training(runs)),
        ]
        selves = annealing(runs)
        if selves is not None:
            figures[case].append(("annealing", "s² and entropy during training, first seed", selves))
        figures[case].append(("reconstructions", "originals and reconstructions, first seed", side_by_side(runs, place.items[case])))
    found: dict[str | None, list[tuple[str, str]]] = {}
    for of_case, drawn in figures.items():
        prefix = f"{plain(of_case)}-" if of_case else ""
        for name, words, figure in drawn:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            with atomic_write(place.folder.path / "pictures" / f"{prefix}{name}.png") as temporary:
                temporary.write_bytes(buffer.getvalue())
            found.setdefault(of_case, []).append((words, base64.b64encode(buffer.getvalue()).decode()))
    return found


def _page(
    spec: Spec, entries: Sequence[Entry], rows: Sequence[Row], missing: Sequence[str],
    pictures: dict[str | None, list[tuple[str, str]]], place: Place,
) -> str:  # fmt: skip
    parts = [f"<h1>{escape(spec.title)}</h1>"]
    parts.append(
        f"<p>{len(spec.systems)} systems, {len(spec.seeds)} seed(s), {escape(spec.split)} split of "
        f"<code>{escape(entries[0].config.data.source)}</code>; the same networks, data order and number of steps. Figures are means over "
        f"seeds ± one standard error; Δ is the paired difference per seed.</p>"
    )
    if missing:
        parts.append(f"<p><b>Not finished:</b> {escape('; '.join(missing))}</p>")
    parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in verdicts(spec, rows)) + "</ul>")
    parts += [_image(*picture) for picture in pictures.get(None, [])]
    for case in spec.cases:
        group = [row for row in rows if row.case == case]
        if group:
            parts.append(f"<h2>{escape(heading(spec, case, group))}</h2>")
            parts += [_table(heads, cells, spec.ours) for heads, cells in tables(spec, group)]
            parts += [_image(*picture) for picture in pictures.get(case, [])]
    first = [entry for entry in entries if entry.seed == spec.seeds[0]]
    commands = "\n".join(shlex.join(["hqvae", *train_command(e, place.folder, place.machine, False)[3:]]) for e in first)
    parts.append(f"<h2>Commands of the first seed</h2><pre>{escape(commands)}</pre>")
    parts.append(f"<h2>Versions</h2><pre>{escape(json.dumps(versions()))}</pre>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(spec.title)}</title><style>{_STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], ours: str) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = []
    for line in cells:
        mark = ' class="ours"' if line[0] == ours else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _image(words: str, data: str) -> str:
    return f'<img alt="{escape(words)}" title="{escape(words)}" src="data:image/png;base64,{data}">'


def _write(folder: Folder, name: str, text: str) -> None:
    with atomic_write(folder.path / name) as temporary:
        temporary.write_text(text)
