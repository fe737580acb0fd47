"""Pins, containers, and what doctor says about this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline import toolchain
from pipeline.errors import UnsupportedError
from pipeline.targets.tensorrt import environment
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine
from pipeline.toolchain import (
    CONTAINERS,
    DEFAULT_CONTAINER,
    check_tensorrt_llm,
    container_for,
    diagnose,
)

from ..conftest import PROJECT

L4 = InstalledGpu(0, "GPU-0", "NVIDIA L4", 89, 23034)


def _doctor(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    *,
    docker: bool = False,
    tensorrt_llm: str | None = None,
) -> dict[str, toolchain.Finding]:
    monkeypatch.setattr(environment, "inspect_machine", lambda: machine)
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda name: f"/usr/bin/{name}" if docker else None
    )
    found = toolchain.installed
    monkeypatch.setattr(
        toolchain,
        "installed",
        lambda package: tensorrt_llm if package == "tensorrt-llm" else found(package),
    )
    return {finding.name: finding for finding in diagnose()}


@pytest.mark.parametrize(
    ("vnni", "value", "ok"),
    [(True, "VNNI", True), (False, "in float32", False), (None, "not known", True)],
)
def test_doctor_says_how_int8_is_multiplied_here(
    monkeypatch: pytest.MonkeyPatch, vnni: bool | None, value: str, ok: bool
) -> None:
    monkeypatch.setattr(toolchain, "has_vnni", lambda: vnni)
    finding = next(f for f in diagnose() if f.name == "INT8 products")
    assert (finding.value, finding.ok) == (value, ok)
    assert ("int4_awq needs none" in finding.advice) == (vnni is not None)


def test_the_default_container_holds_the_pins() -> None:
    assert DEFAULT_CONTAINER.tensorrt_llm == toolchain.TENSORRT_LLM
    assert DEFAULT_CONTAINER.tensorrt == toolchain.TENSORRT
    assert DEFAULT_CONTAINER.tritonclient == "2.70.0"
    assert DEFAULT_CONTAINER.driver == 580
    assert DEFAULT_CONTAINER.image == "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3"


def test_containers_by_what_they_hold() -> None:
    assert container_for("1.2.1", "10.14.1.48") is DEFAULT_CONTAINER
    old = container_for("1.0.0", "10.11.0.33")
    assert (old.tag, old.cuda, old.driver) == ("25.10", 12, 525)
    assert container_for("1.0.0", "10.11.0.33", built_in=CONTAINERS[1].image).tag == "25.09"
    months = [f"{year}.{month:02}" for year in (25, 26) for month in range(1, 13)]
    assert [c.tag for c in CONTAINERS] == months[months.index("25.08") : months.index("26.07") + 1]


def test_the_pinned_version_passes() -> None:
    check_tensorrt_llm("1.2.1")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.3.0rc22", "cannot build engines.*removed upstream in July 2026.*LLM-API"),
        ("1.3.0", "cannot build engines"),
        ("1.4.0rc0", "cannot build engines"),
        ("1.3.0rc15", "is not the pinned 1.2.1.*loads only in the version that built it"),
        ("1.2.0", "is not the pinned 1.2.1"),
        ("0.17.0.post1", "is not the pinned 1.2.1"),
        ("unknown", "is not the pinned 1.2.1"),
    ],
)
def test_every_other_version_is_refused(version: str, expected: str) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        check_tensorrt_llm(version)
    assert DEFAULT_CONTAINER.image in str(caught.value)


def test_doctor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine(problem="nvidia-smi is not installed"))
    assert found["NVIDIA GPU"].value == "absent"
    assert "nvidia-smi is not installed" in found["NVIDIA GPU"].advice
    assert not found["target tensorrt"].ok
    assert found["tensorrt-llm"].ok


def test_doctor_with_a_gpu_and_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "580.65.06"), docker=True)
    assert found["NVIDIA GPU"].value == "NVIDIA L4 (SM 89)"
    assert found["NVIDIA driver"].ok
    assert (found["target tensorrt"].value, found["target tensorrt"].ok) == (
        "in the container",
        True,
    )


def test_doctor_inside_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "575.57"), tensorrt_llm="1.2.1")
    assert found["target tensorrt"].value == "in place"
    assert found["docker"].ok


def test_doctor_refuses_an_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "550.127.05"), docker=True)
    assert not found["NVIDIA driver"].ok
    assert "580 or later" in found["NVIDIA driver"].advice
    assert not found["target tensorrt"].ok


def test_doctor_refuses_a_version_without_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "580.65"), docker=True, tensorrt_llm="1.3.0rc29")
    assert not found["tensorrt-llm"].ok
    assert "1.3.0rc22 and later have no engine flow" in found["tensorrt-llm"].advice
    assert not found["target tensorrt"].ok


def test_doctor_names_the_known_vulnerabilities_of_the_pin() -> None:
    advice = next(finding for finding in diagnose() if finding.name == "security").advice
    for number in (5805, 5840, 5855, 5883):
        assert f"bulletin {number}" in advice
    assert "asks for 11.0" in advice
    assert "loopback" in advice


def test_the_toolchain_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.toolchain as t, pipeline.targets.tensorrt\n"
        "t.diagnose()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tensorrt_llm', 'openvino'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
