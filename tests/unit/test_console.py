"""Tables at the widths of terminals, and bars that leave standard output alone."""

from __future__ import annotations

import contextlib
import io

import pytest

from pipeline.progress import Bars
from pipeline.tables import print_table


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
