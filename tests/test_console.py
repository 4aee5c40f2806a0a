"""The console: whole figures at 80 columns on a terminal, plain untruncated lines when piped."""

import io
import re
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from hqvae import console
from hqvae.cli import main
from hqvae.console import ProgressBar, print_table, scan_bars

LAYER_COLUMNS = ["layer", "stride", "codes", "K", "perplexity", "used", "H(P̂) bits", "s²"]
LAYER_COLUMNS += ["PSNR so far", "if shuffled"]
LAYER_CELLS = ["level 0 layer 3", "8", "1024", "512", "431.2", "100%", "0.22", "0.00231"]
LAYER_CELLS += ["28.12", "−12.34"]
STATUS = "3.312 bits/dim  21.30 dB  130 images/s  worst use: layer 3 43%"


def terminal(monkeypatch, width, stream):
    """Standard output and error are a terminal of this width, whose text is kept."""
    stream.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def printed(columns, rows, width, monkeypatch):
    stream = terminal(monkeypatch, width, io.StringIO())
    print_table("title", columns, rows)
    lines = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()  # without colours
    return [line.rstrip() for line in lines if line != "title"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_of_layers_is_whole_at_80_columns(width, monkeypatch):
    lines = printed(LAYER_COLUMNS, [LAYER_CELLS] * 2, width, monkeypatch)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for word in " ".join([*LAYER_COLUMNS, *LAYER_CELLS]).split():
        assert word in text, word


def test_errors_of_means_fold_before_any_figure_does(monkeypatch):
    columns = ["system", "RMSE (0–255)", "PSNR dB", "SSIM", "−ELBO bits/dim", "images/s"]
    cells = ["RQ-VAE, own codebooks", "7.91 ± 0.02", "30.55 ± 0.03", "0.9211 ± 0.0004"]
    cells += ["4.233 ± 0.004", "1020 ± 3"]
    wide = printed(columns, [cells], 120, monkeypatch)
    assert any("7.91 ± 0.02" in line for line in wide)
    narrow = printed(columns, [cells], 72, monkeypatch)
    assert max(map(cell_len, narrow)) <= 72
    above, below = next(pair for pair in pairwise(narrow) if "7.91" in pair[0])
    assert "30.55" in above and "± 0.0004" in below and "± 3" in below


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_stream_cannot_show_is_replaced(encoding, monkeypatch):
    """After all measuring, an error would be a loss."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    assert main(["presets", "sqvae"]) == 0
    assert main(["presets", "sqvaé→"]) == 2
    print_table("σ²", ["−ELBO"], [["σ → 12"]])
    for stream in streams:
        stream.flush()
    assert b"12" in streams[0].buffer.getvalue() and b"?" in streams[0].buffer.getvalue()
    assert b"did you mean 'sqvae'" in streams[1].buffer.getvalue()


def test_a_piped_table_is_as_wide_as_it_needs_to_be(capsys):
    cells = [f"a figure of some length {index}" for index in range(12)]
    print_table("a title [that is no markup]", cells, [cells])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "a title [that is no markup]" and len(lines) == 5
    assert all(cell in lines[3] for cell in cells)


def test_square_brackets_are_no_markup(capsys):
    print_table("", ["system"], [["SQ [own]"], ["[bold]"]])
    shown = capsys.readouterr().out
    assert "SQ [own]" in shown and "[bold]" in shown


def test_progress_shows_count_time_left_and_figures_at_80_columns(monkeypatch):
    terminal(monkeypatch, 80, io.StringIO())
    with ProgressBar(total=20_000, completed=0, quiet=False) as progress_bar:
        clock = iter(range(0, 1000, 60))
        progress_bar.bar.get_time = lambda: next(clock)  # a minute a step, beyond rich's 30 s
        for step in (1, 2, 3):
            progress_bar.advance_to(step)
        progress_bar.update(4, STATUS)
        screen = Console(width=80, file=io.StringIO())
        for part in progress_bar.bar.get_renderables():
            screen.print(part)
        bar_line, figures_line = screen.file.getvalue().splitlines()
    assert "4/20000" in bar_line and bar_line.rstrip().endswith("left") and "-:--" not in bar_line
    assert len(bar_line.rstrip()) <= 80 and figures_line.strip() == STATUS


def test_piped_progress_is_plain_lines(capsys):
    with ProgressBar(total=8, completed=2, quiet=False) as progress_bar:
        progress_bar.advance_to(3)
        progress_bar.update(4, STATUS)
        progress_bar.print("stopped [at step 4]")
    first, second = capsys.readouterr().err.splitlines()
    assert first.split("  ", 1)[1] == f"step 4/8  {STATUS}  0:00:00 left"
    assert second == "stopped [at step 4]"


def test_piped_progress_says_how_long_it_will_take(capsys, monkeypatch):
    """Once, by the first steps of this process; then on each line, by the mean speed."""
    clock = iter([0.0, *[step * 6.0 for step in (5, 5, 100)]])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with ProgressBar(total=1200, completed=200, quiet=False) as progress_bar:
        for step in range(201, 207):
            progress_bar.advance_to(step)
        progress_bar.update(300, STATUS)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "about 1:39:30 left, by the first 5 steps"
    assert second.endswith(f"step 300/1200  {STATUS}  1:30:00 left")


def test_piped_progress_within_a_step_is_a_line_a_minute(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 61.0, 61.0, 100.0, 130.0, 130.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with ProgressBar(total=3, completed=1, quiet=False) as progress_bar:
        for number in range(4):
            progress_bar.show(1 + number / 10, f"look {number}")
    assert capsys.readouterr().err.splitlines() == ["look 1", "look 3"]


def test_all_processes_but_the_first_are_silent(capsys):
    with ProgressBar(total=8, completed=0, quiet=True) as progress_bar:
        progress_bar.update(4, STATUS)
        progress_bar.print("stopped")
    assert capsys.readouterr().err == ""


def test_every_scan_has_a_bar_of_its_own(monkeypatch):
    stream = terminal(monkeypatch, 80, io.StringIO())
    with scan_bars() as show:
        for total in (400, 300):
            for done in (100, 200, total):
                show(done, total)
    screen = stream.getvalue()
    assert "reading 400 items" in screen and "reading 300 items" in screen
    assert "400/400" in screen and "300/300" in screen


def test_a_scan_that_is_cut_off_leaves_no_bar_running(monkeypatch):
    bars = []
    stop = ProgressBar.__exit__

    def stopped(bar, *error):
        bars.append(bar)
        stop(bar, *error)

    monkeypatch.setattr(ProgressBar, "__exit__", stopped)
    terminal(monkeypatch, 80, io.StringIO())
    with pytest.raises(KeyboardInterrupt), scan_bars() as show:
        show(1, 400)
        raise KeyboardInterrupt
    assert [bar.total for bar in bars] == [400]


def test_piped_scans_are_one_line_each_and_silent_in_other_processes(capsys):
    for quiet in (False, True):
        with scan_bars(quiet) as show:
            for done in (1, 2, 400):
                show(done, 400)
    assert capsys.readouterr().err == "reading 400 items\n"


def test_a_paragraph_breaks_between_words(capsys):
    console.print_paragraph("a word " * 40)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and all(len(line) <= 120 for line in lines)
