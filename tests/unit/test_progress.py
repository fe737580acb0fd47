"""Work through the layers of a model: what is told of it, in a log and on a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from pipeline.progress import Bars, Lines, Silent, Warnings
from pipeline.progress.pace import Pace, peak_memory, rough_time

GIB = 1 << 30


class Clock:
    """Seconds that go by when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pace(layers: int, tokens: int = 0, done: int = 0) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(layers, tokens, done, clock=clock, peak=lambda: 2 * GIB + GIB // 10), clock


def test_layer_speed_time_left_and_memory_are_told() -> None:
    it, clock = pace(32, tokens=132_800)
    assert it.words() == "layer 1 of 32, memory at most 2.1 GiB"
    clock.now += 80
    for _ in range(8):  # half a layer each: four layers in 80 seconds
        it.advance(0.5)
    # A layer takes 20 s: 640 s for all, in which the text has gone through the model once.
    assert it.words() == "layer 5 of 32, 208 tokens/s, about 9 min left, memory at most 2.1 GiB"
    clock.now += 60
    it.advance(28)
    assert it.words() == "layer 32 of 32, 949 tokens/s, about 0 s left, memory at most 2.1 GiB"
    assert it.summary() == "2 min, 949 tokens/s, memory at most 2.1 GiB"


def test_what_an_earlier_run_did_says_nothing_of_the_speed() -> None:
    it, clock = pace(10, tokens=1000, done=8)
    assert it.words().startswith("layer 9 of 10, memory at most")
    clock.now += 50
    it.advance(1)
    # One layer of ten in 50 s: all ten in 500 s, so 2 tokens/s; one is left.
    assert it.words().startswith("layer 10 of 10, 2 tokens/s, about 50 s left")
    assert it.share == pytest.approx(0.9)


def test_while_a_layer_takes_its_time_the_time_left_runs_down() -> None:
    it, clock = pace(4, tokens=400)
    clock.now += 100
    it.advance()
    clock.now += 90
    assert "layer 2 of 4, 1 tokens/s, about 4 min left" in it.words()  # 300 s less 90 s
    clock.now += 1000
    assert "about 0 s left" in it.words()


def test_tenths_of_a_layer_make_a_whole_one() -> None:
    it, _ = pace(3)
    for _ in range(10):
        it.advance(0.1)
    assert it.words().startswith("layer 2 of 3")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((4.4, "4 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min")),
        *((7200, "2.0 h"), (40 * 3600, "40 h")),
    ],
)
def test_times_are_rough(seconds: float, said: str) -> None:
    assert rough_time(seconds) == said


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    shown = io.StringIO()
    with Lines(shown).layers("quantizing int4_awq", 32, 3200, done=1) as task:
        for _ in range(62):
            clock.now += 4
            task.advance(0.5)
    first, *middle, last = shown.getvalue().splitlines()
    assert first.startswith("quantizing int4_awq: layer 2 of 32, memory at most ")
    assert len(middle) == 62 // 3  # four seconds each, a line from ten on
    assert middle[0].startswith("quantizing int4_awq: layer 3 of 32, 12 tokens/s, about 4 min left")
    assert last.startswith("quantizing int4_awq done in 4 min, 12 tokens/s, memory at most ")


def test_what_comes_before_the_first_piece_says_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    shown = io.StringIO()
    with Lines(shown).task("scoring", 10) as task:
        clock.now += 1000  # the walk through the layers
        for _ in range(4):
            task.advance()
            clock.now += 12
    _, first, second, third, fourth, *_ = shown.getvalue().splitlines()
    assert first == "scoring:  10%"
    assert second == "scoring:  20%, about 96 s left"
    assert third == "scoring:  30%, about 84 s left"
    assert fourth == "scoring:  40%, about 72 s left"


def test_work_that_fails_is_not_called_done() -> None:
    shown = io.StringIO()
    with pytest.raises(ValueError, match="it broke"), Lines(shown).layers("rounding", 2):
        raise ValueError("it broke")
    assert "done" not in shown.getvalue()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_bars_tell_it_below_themselves_at_any_width(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.pace.peak_memory", lambda: 3 * GIB)
    page = Console(file=io.StringIO(), width=columns)
    bars = Bars()
    with bars.stage("quantize: write it (never ran)"), bars.layers("int4_awq", 32, 2000) as task:
        task.advance(4.5)
        assert bars._drawn is not None
        page.print(bars._drawn.get_renderable())
        with bars.task("within", 2):
            pass
    assert isinstance(page.file, io.StringIO)
    lines = [line.rstrip() for line in page.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("quantize: write it")
    assert "14%" in lines[1]
    told = " ".join(line.strip() for line in lines[2:])
    assert told.startswith("layer 5 of 32, ")
    assert told.endswith(" tokens/s, about 0 s left, memory at most 3.0 GiB")
    assert all(line.startswith("    ") for line in lines[2:])


@pytest.mark.parametrize("make", [Silent, lambda: Warnings(sys.stderr)])
def test_who_is_not_told_can_be_worked_with(
    make: Callable[[], Silent], capsys: pytest.CaptureFixture[str]
) -> None:
    with make().layers("rounding", 4, 100, done=1) as task:
        task.advance(0.5)
    assert capsys.readouterr().err == ""


def test_the_peak_is_that_of_the_process_and_not_of_who_started_it() -> None:
    held = bytearray(b"\1") * (400 << 20)
    mine = peak_memory()
    assert mine is not None
    assert mine > len(held)
    code = "from pipeline.progress.pace import peak_memory; print(peak_memory())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(shown.stdout) < 200 << 20
