"""GPUs and versions, as ``nvidia-smi`` and package metadata give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.targets.tensorrt.environment import (
    engine_tools,
    inspect_machine,
    parse_query,
    toolkit,
)
from tests.doubles.trtllm_build.machine import pretend

TWO_GPUS = """\
0, GPU-6fe1b8ce-1f2e-4c6b-9f39-0a1f4b1f8a01, NVIDIA L40S, 8.9, 46068, 580.65.06
1, GPU-7ab2c9df-2a3f-5d7c-8e40-1b2a5c2a9b12, NVIDIA L40S, 8.9, 46068, 580.65.06
"""


def test_the_query_is_parsed() -> None:
    gpus, driver = parse_query(TWO_GPUS)
    assert driver == "580.65.06"
    assert [(gpu.index, gpu.name, gpu.sm, gpu.memory_mib) for gpu in gpus] == [
        (0, "NVIDIA L40S", 89, 46068),
        (1, "NVIDIA L40S", 89, 46068),
    ]


def test_a_gpu_that_shares_the_hosts_memory() -> None:
    gpus, _ = parse_query("0, GPU-1, NVIDIA GB10, 12.1, [N/A], 580.95.05\n")
    assert (gpus[0].sm, gpus[0].memory_mib) == (121, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no GPU"),
        ("0, GPU-1, NVIDIA L4\n", "does not have the fields"),
        ("a" + ",b" * 5, "a"),
    ],
)
def test_other_answers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query(text)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("0,2", [0, 2]),
        ("2", [2]),
        ("1,7,0", [1]),
        ("", []),
        ("-1", []),
        ("GPU-00000000-0000-0000-0000-000000000001", [1]),
        ("GPU-0", []),
    ],
)
def test_hidden_gpus_do_not_count(
    visible: str, indices: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, gpus="3")
    machine = inspect_machine({"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.index for gpu in machine.gpus] == indices
    assert bool(machine.problem) == (not indices)


def test_the_key_on_a_gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, sm="89", gpus="2", tensorrt_llm=None)
    assert engine_tools() == {
        "gpu": "NVIDIA L40S",
        "sm": "89",
        "driver": "580",
        "tensorrt-llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "cuda": "13",
    }


@pytest.mark.parametrize(
    ("wheel", "release"),
    [("10.14.1.48.post1", "10.14.1.48"), ("10.14.1.48", "10.14.1.48"), ("nightly", "nightly")],
)
def test_a_wheels_own_number_is_not_tensorrts(
    wheel: str, release: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, tensorrt=wheel)
    assert toolkit().tensorrt == release
    assert engine_tools()["tensorrt"] == release


def test_the_images_tensorrt_where_no_wheel_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, tensorrt=None)
    assert toolkit({"TRT_VERSION": "10.14.1.48-1+cuda13.0"}).tensorrt == "10.14.1.48"
    assert toolkit({}).tensorrt == "unknown"


def test_the_key_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, programs=(), tensorrt_llm=None)
    tools = engine_tools()
    assert (tools["gpu"], tools["sm"], tools["driver"]) == ("absent", "absent", "absent")
    assert tools["tensorrt-llm"] == "1.2.1"


def test_a_driver_that_fails_is_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, gpus="0")
    machine = inspect_machine({})
    assert machine.gpus == ()
    assert machine.problem == "nvidia-smi fails: No devices were found"
