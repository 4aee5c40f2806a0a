"""What a comparison found: tables, report.json, and report.html, one file that opens offline."""

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
from hqvae.data import Dataset
from hqvae.errors import printable
from hqvae.files import atomic_write
from hqvae.run import Run
from hqvae.versions import versions

from .figures import (
    annealing_history,
    by_layer,
    finished_runs,
    over_cases,
    reconstructions,
    usage_history,
    with_history,
)
from .folder import ComparisonDir
from .jobs import HQVAE_COMMAND, Resources, train_command
from .spec import RunSpec, Spec, slug
from .summary import Row, format_difference, format_estimate, summarise, verdicts

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
figure { margin: 1.5rem 0 }
img { width: 100%; display: block }
figcaption { color: #555; max-width: 50rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.reference { background: #f2f7ff; font-weight: 600 }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12px }
"""
# head of a column → (figure, digits; None: by the figure's size)
_COLUMNS: dict[str, tuple[str, int | None]] = {
    "RMSE": ("rmse", None),
    "explained": ("explained_variance", 4),
    "own ID": ("own_id", 4),
    "PSNR dB": ("psnr", 2),
    "SSIM": ("ssim", 4),
    "LPIPS": ("lpips", 4),
    "rFID": ("rfid", 2),
    "SI-SDR dB": ("si_sdr", 2),
    "STFT distance": ("stft_distance", 3),
    "mel distance": ("mel_distance", 3),
    "log-mel RMSE": ("log_mel_rmse", 3),
    "−ELBO bits/dim": ("bits_per_dim", 3),
    "−ELBO, nearest code": ("bits_per_dim_deterministic", 3),
    "items/s": ("items_per_second", 0),
}
_USE_HEADS = [
    "system",
    "seeds",
    "perplexity of each layer",
    "perplexity / K, least used layer",
    "codes used there",
]
Table = tuple[list[str], list[list[str]]]  # heads, cells
Picture = tuple[str, str]  # caption, base64 of a PNG


@dataclass(frozen=True)
class ReportContext:
    """What a report is of: the runs, where they lie, and the signals of each case for pictures."""

    spec: Spec
    runs: Sequence[RunSpec]
    folder: ComparisonDir
    resources: Resources
    datasets: Mapping[str, Dataset]


def write_report(
    context: ReportContext, results: Sequence[dict[str, Any]], missing: Sequence[str]
) -> list[Row]:
    """`report.json`, `report.html` and `pictures/`; returns the tables' rows.

    Args:
        context: of all runs
        results: of the runs that are done
        missing: a sentence for each that is not
    """
    spec = context.spec
    rows = summarise(spec, results)
    report = {
        "title": spec.title,
        "split": spec.split,
        "data": context.runs[0].config.data.source,
        "reference": spec.reference_system,
        "missing": list(missing),
        "verdicts": verdicts(spec, rows),
        "rows": [asdict(row) for row in rows],
        "results": list(results),
        "versions": versions(),
    }
    _write(context.folder, "report.json", json.dumps(report, indent=1) + "\n")
    figures = _figures(context, results, rows)
    pictures = {case: _save(context.folder, case, drawn) for case, drawn in figures.items()}
    _write(context.folder, "report.html", _page(context, rows, missing, pictures))
    return rows


def print_tables(spec: Spec, rows: Sequence[Row]) -> None:
    """Two tables per case on standard output, then the verdicts."""
    for case in spec.cases:
        of_case = [row for row in rows if row.case == case]
        if of_case:
            figures, use = _tables(spec, of_case)
            print_table(_heading(spec, case, of_case), *figures)
            print_table("use of the codebooks", *use)
    for sentence in verdicts(spec, rows):
        print(sentence)


def _tables(spec: Spec, rows: Sequence[Row]) -> tuple[Table, Table]:
    """A case's figures, without columns that no row has a figure for, and its use of codes."""
    columns = {
        head: column
        for head, column in _COLUMNS.items()
        if any(column[0] in row.figures for row in rows)
    }
    figures = []
    use = []
    for row in rows:
        cells = [format_estimate(row.figures.get(name), n) for name, n in columns.values()]
        figures.append([row.system, *cells, format_difference(row.difference)])
        perplexities = [f"{layer.perplexity.mean:.0f}" for layer in row.layers]
        share = format_estimate(row.figures["perplexity_share"], 2)
        used = f"{row.figures['used_share'].mean:.0%}"
        use.append([row.system, str(len(row.seeds)), " ".join(perplexities), share, used])
    own = {"RMSE": f"RMSE ({rows[0].unit})", "PSNR dB": f"{rows[0].ratio} dB"}
    heads = [own.get(head, head) for head in columns]
    figure_heads = ["system", *heads, f"Δ RMSE to {spec.reference_system}"]
    return (figure_heads, figures), (_USE_HEADS, use)


def _heading(spec: Spec, case: str, rows: Sequence[Row]) -> str:
    """Title, case, split and rate; `rows` are those of the case."""
    rates = sorted({row.rate for row in rows})
    title = f"{spec.title}: {case}" if case else spec.title
    return f"{title} ({spec.split} split, {rates[0] if len(rates) == 1 else 'rates differ'})"


def _figures(
    context: ReportContext, results: Sequence[dict[str, Any]], rows: Sequence[Row]
) -> dict[str | None, list[tuple[str, str, Figure]]]:
    """(file name, caption, figure) of every case; None: over all cases."""
    spec = context.spec
    figures: dict[str | None, list[tuple[str, str, Figure]]] = {}
    if len(spec.cases) > 1 and rows:
        words = (
            "Left: error, lower is better. Right: how much of its codebook the least used layer "
            "uses, higher is better. A point per case, with one standard error."
        )
        figures[None] = [("cases", words, over_cases(spec, rows))]
    for case in spec.cases:
        of_case = [row for row in rows if row.case == case]
        runs = finished_runs(context.runs, results, context.folder, case)
        if not of_case or not runs:
            continue
        figures[case] = _figures_of_case(spec, of_case, runs, context.datasets[case])
    return figures


def _figures_of_case(
    spec: Spec, rows: Sequence[Row], runs: Sequence[tuple[str, Run]], dataset: Dataset
) -> list[tuple[str, str, Figure]]:
    space = dataset.shape[1:]
    words = (
        "Left: what the first layers reconstruct, and what each further one adds; a layer that "
        "adds nothing is flat. Right: how much of its codebook each layer uses; below 0.1 it has "
        "collapsed. Bars are one standard error over seeds."
    )
    drawn = [("layers", words, by_layer(spec, rows))]
    words = (
        "Use of the codebooks while training, first seed: a line that falls towards 0 is a layer "
        "that collapses, at that step."
    )
    logged = with_history(runs)
    if logged:
        drawn.append(("use", words, usage_history(logged, space)))
    annealing = annealing_history(logged, space)
    if annealing is not None:
        words = (
            "Self-annealing of the stochastic systems, first seed: s² and the entropy of the "
            "posterior fall as the decoder gets better. An entropy that stays at its start is a "
            "posterior that chooses at random. Both end where codes become the nearest ones."
        )
        drawn.append(("annealing", words, annealing))
    words = "Originals, and what each system makes of them, first seed, examples of the split."
    drawn.append(("reconstructions", words, reconstructions(runs, dataset)))
    return drawn


def _save(
    folder: ComparisonDir, case: str | None, figures: Sequence[tuple[str, str, Figure]]
) -> list[Picture]:
    """Write figures into `pictures/`; returns them as they stand in the page."""
    prefix = f"{slug(case)}-" if case else ""
    pictures = []
    for name, words, figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png")
        with atomic_write(folder.path / "pictures" / f"{prefix}{name}.png") as temporary:
            temporary.write_bytes(png.getvalue())
        pictures.append((words, base64.b64encode(png.getvalue()).decode()))
    return pictures


def _page(
    context: ReportContext,
    rows: Sequence[Row],
    missing: Sequence[str],
    pictures: Mapping[str | None, Sequence[Picture]],
) -> str:
    spec = context.spec
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdicts(spec, rows))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(spec.title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(spec.title)}</h1>",
        f"<p>{len(spec.systems)} systems, {len(spec.seeds)} seed(s), {escape(spec.split)} split "
        f"of <code>{escape(context.runs[0].config.data.source)}</code>; the same networks, data "
        "order and number of steps. Figures are means over seeds ± one standard error; "
        "Δ is the paired difference per seed with its 95 % interval, by Student's t.</p>",
    ]
    if missing:
        parts.append(f"<p><b>Not finished:</b> {escape('; '.join(missing))}</p>")
    parts.append(f"<ul>{sentences}</ul>")
    parts += [_image(*picture) for picture in pictures.get(None, [])]
    for case in spec.cases:
        of_case = [row for row in rows if row.case == case]
        if of_case:
            parts.append(f"<h2>{escape(_heading(spec, case, of_case))}</h2>")
            tables = _tables(spec, of_case)
            parts += [_table(heads, cells, spec.reference_system) for heads, cells in tables]
            parts += [_image(*picture) for picture in pictures.get(case, [])]
    parts.append(f"<h2>Commands of the first seed</h2><pre>{escape(_commands(context))}</pre>")
    parts.append(f"<h2>Versions</h2><pre>{escape(json.dumps(versions()))}</pre></html>\n")
    return "\n".join(parts)


def _commands(context: ReportContext) -> str:
    first_seed = [run for run in context.runs if run.seed == context.spec.seeds[0]]
    commands = [
        train_command(run, context.folder, context.resources, resume=False) for run in first_seed
    ]
    return "\n".join(shlex.join(["hqvae", *words[len(HQVAE_COMMAND) :]]) for words in commands)


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], reference: str) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = []
    for line in cells:
        mark = ' class="reference"' if line[0] == reference else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _image(caption: str, data: str) -> str:
    words = escape(caption)
    image = f'<img alt="{words}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _write(folder: ComparisonDir, name: str, text: str) -> None:
    with atomic_write(folder.path / name) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")
