"""The scripts in benchmarks/: the page names them, and they understand their own command line."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bench import measure_interleaved
from tests.conftest import PROJECT
from tests.unit.client.fake_model import FakeModel

FOLDER = PROJECT / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_the_page_names_every_script_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)", page))
    assert named == {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_takes(script: Path) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def formats() -> Any:
    spec = importlib.util.spec_from_file_location("formats", FOLDER / "formats.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("soak")


def test_a_slope_and_its_interval_are_those_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats")
    numbers = np.random.default_rng(3)
    times = np.sort(numbers.uniform(0, 10, 60))
    values = 100 + 3.0 * times + numbers.normal(0, 2, 60)
    values[::9] += 80  # a garbage collection now and then
    found = soak(monkeypatch).theil_sen(list(times), list(values))
    reference = stats.theilslopes(values, times, 0.95)
    assert found[0] == pytest.approx(reference.slope)
    assert found[1] == pytest.approx(reference.low_slope, rel=0.02)
    assert found[2] == pytest.approx(reference.high_slope, rel=0.02)


@pytest.mark.parametrize(("growth", "grows"), [(0.0, False), (1.0, False), (4.0, True)])
def test_growth_above_the_bound_after_the_warm_up_fails(
    monkeypatch: pytest.MonkeyPatch, growth: float, grows: bool
) -> None:
    module, numbers = soak(monkeypatch), np.random.default_rng(5)
    readings = module.Readings()
    for place in range(120):
        minutes = place / 12
        # Much in the beginning, which is no growth.
        memory = 300 + min(minutes, 2) * 50 + growth * minutes + numbers.normal(0, 2)
        readings.add(minutes, {"pss engine": memory, "handles engine": 40})
    slopes = {slope.name: slope for slope in module.judge(readings, 0.3)}
    assert slopes["pss engine"].grows is grows
    assert not slopes["handles engine"].grows
    assert ("GROWS" in module.table(list(slopes.values()))) is grows


def test_the_table_of_formats_has_a_row_per_build_and_number_of_streams() -> None:
    with FakeModel().serve() as one, FakeModel().serve() as other:
        results = measure_interleaved(
            {"float16": one.url, "int4": other.url},
            baseline="float16",
            concurrency=(1, 2),
            seconds=0.2,
            output_tokens=4,
            input_tokens=20,
        )
    for server, memory in zip(results["servers"].values(), (300 << 20, None), strict=True):
        server["memory_bytes"] = memory
    head, rule, *rows = formats().table(results).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:2] for row in cells] == [
        ["1", "float16"],
        ["1", "int4"],
        ["2", "float16"],
        ["2", "int4"],
    ]
    assert {len(row) for row in cells} == {head.count("|") - 1} == {rule.count("|") - 1}
    assert [row[3] for row in cells[::2]] == ["-", "-"]
    assert [row[-1] for row in cells] == ["300", "-"] * 2
    for row, level in zip(cells[1::2], results["servers"]["int4"]["measurements"], strict=True):
        assert row[3].endswith("no difference") is not level["difference"]
