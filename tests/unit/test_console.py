"""Tables at the widths of terminals, and bars that leave standard output alone."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from pipeline.cli.closing import Closing
from pipeline.cli.console import fitted
from pipeline.progress import Bars, Lines, Warnings
from pipeline.tables import number, print_table

from .report_sample import report

PATH = (
    "build/store/evaluate/e208c0cf69d8711098ced4d311172959325f7513736c6e271cd823dbe4319088/e.json"
)


class Terminal(io.StringIO):
    """A stream that says that people look at it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 120, 300])
def test_lines_on_a_terminal_are_broken_between_words(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = f"note: {'the engine is 10 % ' * 12}(see {PATH}) and that is all"
    wanted = [text, "", f"  {text}"]
    lines = list(fitted(wanted, Terminal()))
    assert max(len(line) for line in lines if PATH not in line) <= min(columns, 100)
    assert any(PATH in line for line in lines)
    assert not any(line.strip().startswith("%") for line in lines)
    empty = lines.index("")
    assert " ".join(line.strip() for line in lines[:empty]) == text
    assert " ".join(line.strip() for line in lines[empty + 1 :]) == text
    assert all(line.startswith("  ") for line in lines[1:empty])
    assert all(line.startswith("    ") for line in lines[empty + 2 :])
    # What a program reads is one line each.
    assert list(fitted(wanted, io.StringIO())) == wanted


def test_the_last_lines_of_a_run_keep_to_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    closing = Closing()
    closing.report = report()
    served = Path("build/a-long-name-of-a-recipe-that-somebody-chose-for-good-reasons/repository")
    assert closing.print(Path("build/x"), served)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()).splitlines()
    # A command is copied whole.
    assert lines.pop() == f"next:        trtllm-pipeline serve {served}"
    assert max(map(len, lines)) <= 80
    assert all(line[:13].strip() == "" or line[:13].strip().endswith(":") for line in lines)
    assert any(line.startswith(" " * 13) for line in lines)


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (999.6, 3, "1,000"),
        (999.4, 3, "999"),
        (99.96, 3, "100"),
        (9.6, 1, "10"),
        (1234.5, 4, "1,234"),
    ],
)
def test_a_number_that_rounds_up_to_a_new_digit_is_written_out(
    value: float, digits: int, shown: str
) -> None:
    assert number(value, digits) == shown


def test_a_table_shows_markup_as_it_is_and_numbers_to_the_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(["what", "count"], [["[bold]x", 1], ["y", 1000], ["z", None]], title="[red]")
    title, _, _, first, second, third = capsys.readouterr().out.splitlines()
    assert title.strip() == "[red]"
    assert first == "[bold]x      1"
    assert second == "y        1,000"
    assert third == "z            -"


def test_bars_do_not_bring_back_what_a_stage_silences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    silenced = io.StringIO()
    with contextlib.redirect_stdout(silenced), Bars().task("work", 2) as task:
        print("chatter")
        task.advance()
    shown = capsys.readouterr()
    assert silenced.getvalue() == "chatter\n"
    assert "chatter" not in shown.out + shown.err
    assert "work" in shown.err


def test_a_stage_is_drawn_above_its_tasks_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bars = Bars()
    with bars.stage("quantize: write the checkpoint (never ran)"):
        with bars.task("calibrating", 2) as task:
            task.advance()
            bars.note("worth reading")
        with bars.task("exporting", 1):
            pass
    with bars.task("alone", 1):
        pass
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    frames = drawn.split("\x1b[2K")
    stage = "quantize: write the checkpoint (never ran)"
    assert any(stage in frame and "calibrating" not in frame for frame in frames)
    assert any("  calibrating" in frame and "left" in frame for frame in frames)
    assert drawn.index(stage) < drawn.index("  calibrating") < drawn.index("  exporting")
    assert drawn.count("worth reading") == 1
    # What is drawn is taken away again: behind the last frame is nothing.
    assert frames[-1].strip("\r\n\x1b[?25hlA01") == ""


def test_what_is_quiet_shows_warnings() -> None:
    shown = io.StringIO()
    progress = Warnings(shown)
    with progress.stage("quantize: write (never ran)"), progress.task("calibrating", 2) as task:
        task.advance()
        progress.note("note: paths begin elsewhere")
        progress.note("warning: the text is short")
    assert shown.getvalue() == "warning: the text is short\n"


def test_a_log_has_the_reason_in_front_of_a_stage() -> None:
    shown = io.StringIO()
    with Lines(shown).stage("quantize: write (never ran)"):
        assert shown.getvalue() == "quantize: write (never ran)\n"


def test_a_path_in_a_note_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    Bars().note(f"{'every number is in ' * 6}{PATH}, which has more")
    lines = capsys.readouterr().err.splitlines()
    assert any(PATH in line for line in lines)
    assert len(lines) > 2
    assert max(len(line) for line in lines if PATH not in line) <= 80
