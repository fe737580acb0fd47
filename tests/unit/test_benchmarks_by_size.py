"""What benchmarks/by_size makes, measures and reads."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.models.facts import ModelFacts
from pipeline.source.snapshot import check_snapshot
from tests.conftest import PROJECT

MIB = 2**20


@pytest.fixture
def by_size(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    return lambda name: importlib.import_module(f"by_size.{name}")


def test_the_largest_has_as_many_parameters_as_llama_3_1_8b(by_size: Any) -> None:
    # As its model card on the Hub counts them.
    assert by_size("model").SHAPES["8"].parameters == 8_030_261_248


def test_a_model_is_whole_in_several_files_and_its_values_behave(
    by_size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = by_size("model")
    shape = model.Shape(128, 256, 2, 2, 1)
    model.write_model(shape, tmp_path / "one")
    monkeypatch.setattr(model, "PIECE", 1000)
    monkeypatch.setattr(model, "SHARD_BYTES", 300_000)
    model.write_model(shape, tmp_path / "parts")
    facts = ModelFacts.from_directory(tmp_path / "parts")
    found = check_snapshot(tmp_path / "parts", facts, "the model")
    assert found.parameters == shape.parameters
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 2
    whole = load_file(tmp_path / "one" / "model.safetensors")
    together = {name: value for path in parts for name, value in load_file(path).items()}
    assert together.keys() == whole.keys()
    for name, value in together.items():
        assert np.array_equal(value, whole[name]), name
        assert np.isfinite(value).all()
    down = whole["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    assert down.std() == pytest.approx(1 / np.sqrt(256) / np.sqrt(4), rel=0.02)
    norm = whole["model.layers.1.input_layernorm.weight"]
    assert (norm > 4).sum() in (1, 2)
    assert np.median(norm) == pytest.approx(1, abs=0.03)


def test_bfloat16_is_rounded_to_the_nearest(by_size: Any) -> None:
    drawn = np.random.default_rng(1).standard_normal(10_000, dtype=np.float32)
    # Both ways from the middle between two values, which goes to the even one.
    drawn[:2] = 1 + 2**-8, 1 + 3 * 2**-8
    expected = drawn.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(by_size("model").as_stored(drawn, "bfloat16"), expected)


HOLDS = """
import subprocess, sys, time
held = bytearray(120 << 20)
below = "held = bytearray(60 << 20); import time; time.sleep(1.4)"
server = subprocess.Popen([sys.executable, "-c", below], start_new_session=True)
time.sleep(1.2)
server.wait()
"""


def test_a_server_is_told_apart_from_the_command_that_starts_it(by_size: Any) -> None:
    ran = by_size("measured").run([sys.executable, "-c", HOLDS])
    assert ran.code == 0
    # At least: until the command has taken its place, this process counts as the command.
    assert ran.peak > 120 * MIB
    assert 120 * MIB < ran.outside.anonymous <= ran.outside.own < 180 * MIB
    assert 60 * MIB < ran.servers.anonymous <= ran.servers.own < 120 * MIB
    assert 1.2 < ran.seconds < 60


def test_the_end_of_a_command_is_told(by_size: Any) -> None:
    measured = by_size("measured")
    words = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ran = measured.run([sys.executable, "-c", words], sampled=False)
    assert ran.code == -signal.SIGKILL


COUNTS = """
import sys, time
began = time.process_time()
print(time.monotonic(), flush=True)
while time.process_time() < began + float(sys.argv[1]):
    pass
print(time.monotonic(), flush=True)
sys.exit(int(sys.argv[2]))
"""


def test_of_commands_in_turns_each_has_its_own_time(by_size: Any, tmp_path: Path) -> None:
    turns = by_size("turns")
    commands = [
        turns.Command(
            [sys.executable, "-c", COUNTS, seconds, code],
            tmp_path / f"{seconds}.out",
            tmp_path / f"{seconds}.err",
            tmp_path,
        )
        for seconds, code in (("0.6", "0"), ("1.2", "3"))
    ]
    began = time.monotonic()
    short, long = turns.run_in_turns(commands, 0.1)
    whole = time.monotonic() - began
    assert (short.code, long.code) == (0, 3)
    assert 0.6 < short.processor_seconds < long.processor_seconds
    # Each ran in its own turns alone, and none while the other did.
    assert short.seconds > 0.6
    assert long.seconds > 1.2
    assert short.seconds + long.seconds <= whole
    times = [[float(line) for line in one.output.read_text().split()] for one in commands]
    (_, end_of_short), (begin_of_long, _) = times
    assert begin_of_long < end_of_short


@pytest.mark.parametrize("why", ["interrupted", "one failed"])
def test_no_command_outlives_its_turns(
    by_size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    turns, processes = by_size("turns"), []
    own = turns.started

    def started(*words: Any, **named: Any) -> Any:
        processes.append(own(*words, **named))
        return processes[-1]

    monkeypatch.setattr(turns, "started", started)
    seconds = {"interrupted": ("60", "60"), "one failed": ("0", "60")}[why]
    commands = [
        turns.Command(
            [sys.executable, "-c", COUNTS, duration, "3"],
            tmp_path / f"{number}.out",
            tmp_path / f"{number}.err",
            tmp_path,
        )
        for number, duration in enumerate(seconds)
    ]
    if why == "interrupted":
        monkeypatch.setattr(turns, "POLL_S", -1.0)
        with pytest.raises(ValueError, match="non-negative"):
            turns.run_in_turns(commands, 0.1)
    else:
        assert [ran.code for ran in turns.run_in_turns(commands, 0.1)] == [3, 0]
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


def test_what_a_killed_run_left_is_read_as_it_is_saved(by_size: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pipeline.layers.state import State

    kills, stages = by_size("kills"), by_size("stages")
    job = stages.Job.__new__(stages.Job)
    job.build = tmp_path
    assert kills.saved_layers(job, "quantize") == 0
    folder = tmp_path / "store" / "unfinished" / "quantize-abc"
    folder.mkdir(parents=True)
    (folder / "rank0.safetensors").write_bytes(b"half of it")
    State(folder / "layers.state", {}).save(7, [torch.zeros(3)])
    assert kills.saved_layers(job, "quantize") == 7
    assert kills.saved_layers(job, "evaluate") == 0


@pytest.mark.parametrize(
    "case",
    [
        # 0.42 + 8.8 x 1.086, and so on: the figures of docs/sizes.md.
        ("evaluate", "1", 9.9e9, "needs 10 GB of 10"),
        ("evaluate", "1", 10.1e9, None),
        ("quantize", "0.5", 5.9e9, "needs 6 GB of 6"),
        ("quantize", "0.5", 6.1e9, None),
        ("quantize", "3", 16.9e9, "needs 17 GB of 17"),
        ("compile", "0.1", 1e12, "has one way"),
    ],
)
def test_what_would_not_fit_is_not_tried(
    by_size: Any, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, float, str | None]
) -> None:
    stage, size, free, why = case
    rows, shapes = by_size("rows"), by_size("model").SHAPES
    monkeypatch.setattr(rows, "available_memory", lambda: int(free))
    plan = rows.Plan(by_size("stages").Setting(), ("int4_awq",))
    assert rows.not_whole(rows.Row(shapes[size], "int4_awq", stage), plan) == why


def test_a_line_says_when_bytes_differ(by_size: Any) -> None:
    rows, measured = by_size("rows"), by_size("measured")
    row = rows.Row(by_size("model").SHAPES["0.1"], "fp8", "quantize")
    layer = [measured.Ran(0, 12.2, 20.0, 690_000_000), measured.Ran(0, 14.0, 22.0, 710_000_000)]
    row.runs, row.digests = {"layer": layer}, ["a", "a"]
    assert row.line() == (
        "| 102 M | 16 | fp8 | quantize | 0.71 | - | 13 (12-14) | - | 21 (20-22) | - | - | yes |"
    )
    row.runs["model"] = [measured.Ran(0, 10.0, 19.0, 1_660_000_000)]
    row.digests.append("b")
    assert row.line().endswith("| 0.71 | 1.66 | 13 (12-14) | 10 | 21 (20-22) | 19 | 1.22 | NO |")
    row.runs["model"].append(measured.Ran(0, 16.0, 19.0, 1_660_000_000))
    assert "| 1.05 (0.88-1.22) | NO |" in row.line()
    assert json.loads(json.dumps(row.as_dict()))["same"] is False


def test_the_digest_is_of_names_and_bytes_and_not_of_the_manifest(
    by_size: Any, tmp_path: Path
) -> None:
    stages = by_size("stages")
    job = stages.Job.__new__(stages.Job)
    job.build, job.name = tmp_path, "one"
    (tmp_path / "one").mkdir()
    lock = {"stages": {"quantize": {"key": "abc"}}}
    (tmp_path / "one" / "lock.json").write_text(json.dumps(lock))
    folder = tmp_path / "store" / "quantize" / "abc"
    folder.mkdir(parents=True)

    def digest(**files: str) -> str:
        for path in folder.iterdir():
            path.unlink()
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        found: str = job.digest("quantize")
        return found

    first = digest(config_json="{}", rank0="12", artifact_json="1 s")
    assert digest(config_json="{}", rank0="12", artifact_json="2 s") == first
    assert digest(config_json="{}", rank0="13") != first
    assert digest(config_json="{}", rank1="12") != first
    assert digest(config_json="{}1", rank0="2") != first
