"""Tables at the widths of terminals, and bars that leave standard output alone."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from pipeline.cli.comparison import comparison, print_side_by_side
from pipeline.progress import Bars
from pipeline.tables import print_table


def _report(folder: Path, name: str) -> Path:
    quality = {
        "perplexity": 1.3931234,
        "perplexity_increase": 0.0123456,
        "top1_agreement": 0.95,
        "kl_divergence": 0.00110312,
    }
    row = {"tokens_per_second": 1763.25, "concurrency": 8, "ttft_ms": {"p50": 35.914}}
    report = {
        "name": name,
        "verdict": {"status": "passed"},
        "recipe": {"quantize": {"format": name}},
        "checkpoint": {"bytes": 2.5 * 2**20},
        "quality": quality,
        "load": {"rows": [row]},
    }
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_three_recipes_fit_side_by_side_into_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"tiny-llama-{name}" for name in ("float16", "int8-sq", "int4-awq")]
    print_side_by_side(comparison([_report(tmp_path / name, name) for name in names]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == names
    assert max(map(len, lines)) <= 80
    rows = {line[:16].strip(): line[16:].split() for line in lines[2:]}
    assert rows["increase %"] == ["1.235"] * 3
    assert rows["tokens/s"] == ["1,763"] * 3
    assert rows["first token ms"] == ["35.91"] * 3
    assert len(lines) == 12


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
