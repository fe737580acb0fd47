"""What doctor says about this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.diagnosis import diagnose
from pipeline.targets.base import Diagnosis
from pipeline.targets.handed_on import handed_on
from pipeline.targets.openvino import doctor as cpu_doctor
from pipeline.targets.tensorrt import docker as docker_module
from pipeline.targets.tensorrt import doctor as gpu_doctor
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine

from ..conftest import PROJECT
from ..doubles.trtllm_build.machine import pretend

L4 = InstalledGpu(0, "GPU-0", "NVIDIA L4", 89, 23034)


def _doctor(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    *,
    docker: bool = False,
    tensorrt_llm: str | None = None,
) -> dict[str, Diagnosis]:
    monkeypatch.setattr(gpu_doctor, "inspect_machine", lambda: machine)
    monkeypatch.setattr(
        gpu_doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if docker else None
    )
    monkeypatch.setattr(gpu_doctor, "daemon_problem", lambda _timeout: None)
    monkeypatch.setattr(gpu_doctor, "gpu_problem", lambda _timeout: None)
    found = gpu_doctor.installed
    monkeypatch.setattr(
        gpu_doctor,
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
    monkeypatch.setattr(cpu_doctor, "has_vnni", lambda: vnni)
    finding = next(f for f in diagnose() if f.name == "INT8 products")
    assert (finding.value, finding.ok) == (value, ok)
    assert ("int4_awq needs none" in finding.advice) == (vnni is not None)


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


@pytest.mark.parametrize(
    ("docker", "said", "remedy"),
    [
        ("no-daemon", "Is the docker daemon running", "systemctl start docker"),
        ("no-nvidia", "docker has no NVIDIA runtime, only runc", "nvidia-ctk runtime configure"),
    ],
)
def test_doctor_asks_docker_whether_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, docker: str, said: str, remedy: str
) -> None:
    programs = ("nvidia-smi", "docker")
    pretend(monkeypatch, tmp_path, programs=programs, tensorrt_llm=None, tensorrt=None, sm="89")
    found = {finding.name: finding for finding in diagnose()}
    assert (found["docker"].ok, found["target tensorrt"].value) == (True, "in the container")
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", docker)
    found = {finding.name: finding for finding in diagnose()}
    assert (found["docker"].ok, found["target tensorrt"].value) == (False, "absent")
    assert said in found["docker"].advice
    assert remedy in found["docker"].advice


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


def test_doctor_says_what_containers_get_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docker_module, "SELINUX_ENFORCE", tmp_path / "enforce")
    for name in handed_on():
        monkeypatch.delenv(name)
    assert {"SELinux", "handed on"}.isdisjoint(finding.name for finding in diagnose())
    (tmp_path / "enforce").write_text("1")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    found = {finding.name: finding for finding in diagnose()}
    assert "label=disable" in found["SELinux"].value
    assert found["handed on"].value == "NCCL_P2P_DISABLE"
    monkeypatch.setenv("TRTLLM_PIPELINE_ENV", "LD_PRELOAD")
    found = {finding.name: finding for finding in diagnose()}
    assert not found["handed on"].ok
    assert "LD_PRELOAD is not handed on" in found["handed on"].advice


def test_doctor_names_the_known_vulnerabilities_of_the_pin() -> None:
    advice = next(finding for finding in diagnose() if finding.name == "security").advice
    for number in (5805, 5840, 5855, 5883):
        assert f"bulletin {number}" in advice
    assert "asks for 11.0" in advice
    assert "loopback" in advice


def test_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli.diagnosis as doctor\n"
        "doctor.diagnose()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tensorrt_llm', 'openvino'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
