"""The rates that doctor takes of a machine: measured, remembered, and found by plan."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.effort import measure as measure_module
from pipeline.effort import rates as rates_module
from pipeline.effort.lines import measured_lines
from pipeline.effort.measure import measure_disk
from pipeline.effort.rates import NAME, DeviceRates, Rates, known_rates, remember
from pipeline.errors import UsageError
from pipeline.processor import multiplies_bfloat16

CPU = DeviceRates("2 CPUs", {"float32": 2e11, "bfloat16": 8e11}, 2e10)
GPU = DeviceRates("GPU", {"float32": 5e13}, 2e12, 5e10)
RATES = Rates("2026-01-01", CPU, 1e9, 5e8, GPU)


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    path = remember(tmp_path / "store", RATES)
    assert known_rates(tmp_path / "store") == RATES
    without = replace(RATES, cuda=None)
    remember(tmp_path / "store", without)
    assert known_rates(tmp_path / "store") == without
    assert json.loads(path.read_text())["cpu"]["operations"] == {"float32": 2e11, "bfloat16": 8e11}


@pytest.mark.parametrize(
    "damage",
    [
        {"processor": "another"},
        {"cpus": 10_000},
        {"read": 0},
        {"read": True},
        {"write": float("inf")},
        {"cpu": {"name": "x", "operations": {"float16": 1.0}, "memory": 1.0, "copies": None}},
        {"cpu": []},
        {"cuda": 7},
    ],
    ids=str,
)
def test_rates_of_another_machine_or_damaged_ones_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: dict[str, Any]
) -> None:
    path = remember(tmp_path, RATES)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    monkeypatch.setattr(rates_module.processor_rates, "processor", lambda *_: None)
    assert known_rates(tmp_path) is None


def test_without_them_only_the_processor_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates_module, "multiplies_bfloat16", lambda: True)
    found = known_rates(tmp_path)
    assert found is not None
    assert (found.measured, found.read, found.write, found.cuda) == (None, None, None, None)
    assert found.cpu.products("bfloat16") > found.cpu.products("float32") > 1e8
    # As fast as what is known.
    assert found.cpu.products("float16") == found.cpu.products("float32")
    assert found.disk(1, 1) is None


def test_the_disk_is_measured_with_a_bounded_file_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "MOST_BYTES", 64 << 20)
    written: list[int] = []
    pwrite = os.pwrite

    def counted(file: int, data: Any, place: int) -> int:
        written.append(pwrite(file, data, place))
        return written[-1]

    monkeypatch.setattr(measure_module.os, "pwrite", counted)
    read, write = measure_disk(tmp_path / "new")
    assert 1e6 < write < 1e12
    assert 1e6 < read < 1e12
    assert sum(written) <= 64 << 20
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 10, 10, 10, 10, 10, 10, 0, 255))
    monkeypatch.setattr(measure_module.os, "statvfs", lambda _path: full)
    with pytest.raises(UsageError, match=r"too full to be measured.*another --build-dir"):
        measure_disk(tmp_path)
    file = tmp_path / "file"
    file.touch()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="the disk cannot be measured"):
        measure_disk(file)


def test_doctor_measures_prints_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "measure", lambda _folder: RATES)
    build = tmp_path / "build"
    arguments = ["doctor", "--measure", "--build-dir", str(build)]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "2 CPUs: 200 GFLOP/s float32, 800 GFLOP/s bfloat16, memory 20 GB/s" in shown
    assert "GPU: 50,000 GFLOP/s float32, memory 2,000 GB/s, copies 50 GB/s" in shown
    assert "reads 1 GB/s, writes 0.5 GB/s" in shown
    assert known_rates(build / "store") == RATES
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["measured"]["cuda"]["copies"] == 5e10
    (build / "store" / NAME).unlink()
    assert "measured" not in CliRunner().invoke(app, ["doctor", "--build-dir", str(build)]).stdout


def test_what_rates_mean_is_said_of_8_billion_parameters(tmp_path: Path) -> None:
    lines = list(measured_lines(replace(RATES, cuda=None), tmp_path))
    rows = {line.split()[0]: line for line in lines[-6:]}
    assert list(rows) == ["stage", "source", "quantize", "evaluate", "compile", "in"]
    # 12 passes of 16384 tokens over 7 billion weights, two operations each, at 0.8 TFLOP/s: 57 min;
    # the search's 11 roundings of 28 GB of float32, for two batches, move 23 times that, 14 TB, at
    # 20 GB/s: 12 min.
    assert rows["quantize"].split()[-2:] == ["71", "min"]


def test_a_unit_for_matrices_is_read_off_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("flags : fpu amx_bf16 amx_tile\n")
    assert multiplies_bfloat16(file)
    file.write_text("flags : fpu amx_tile\n")
    assert not multiplies_bfloat16(file)
    assert not multiplies_bfloat16(tmp_path / "none")


def test_products_are_measured_as_linears_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round a processor without instructions for 16 bits takes ten times as long."""
    torch = pytest.importorskip("torch")
    overrides = pytest.importorskip("torch.overrides")
    asked = set()

    class Seen(overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            asked.add((function.__name__, *(one.dtype for one in args[:1] if torch.is_tensor(one))))
            return function(*args, **(kwargs or {}))

    for name in ("_TOKENS", "_IN", "_OUT"):
        monkeypatch.setattr(measure_module, name, 16)
    with Seen():
        found = measure_module._products(torch, "cpu", lambda: None)
    assert sorted(found) == ["bfloat16", "float16", "float32"]
    assert {dtype for name, *dtypes in asked for dtype in dtypes if name == "linear"} == {
        torch.float32,
        torch.bfloat16,
        torch.float16,
    }
    assert not {name for name, *_ in asked} & {"matmul", "__matmul__", "mm"}


def test_what_takes_long_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []
    monkeypatch.setattr(measure_module, "_LONG_S", 0.0)
    assert measure_module._fastest(lambda: tries.append(None)) > 0
    assert len(tries) == 1
    monkeypatch.setattr(measure_module, "_LONG_S", 60.0)
    measure_module._fastest(lambda: tries.append(None))
    assert len(tries) > 4
