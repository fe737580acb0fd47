"""What doctor says about this machine."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import diagnosis
from pipeline.cli import doctor as doctor_command
from pipeline.cli.diagnosis import Examination, diagnose
from pipeline.cli.main import app
from pipeline.cli.options import Output
from pipeline.errors import UsageError
from pipeline.targets import machine as machine_module
from pipeline.targets.base import Diagnosis
from pipeline.targets.handed_on import handed_on
from pipeline.targets.openvino import doctor as cpu_doctor
from pipeline.targets.tensorrt import docker as docker_module
from pipeline.targets.tensorrt import doctor as gpu_doctor
from pipeline.targets.tensorrt.docker import GpuAccess
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine
from pipeline.triton.stubs import is_alive

from ..conftest import PROJECT
from ..doubles.trtllm_build.machine import pretend
from .test_console import Terminal

CPU, GPU = "openvino", "tensorrt"
L4 = InstalledGpu(0, "GPU-0", "NVIDIA L4", 89, 23034)


def _doctor(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    *,
    docker: bool = False,
    tensorrt_llm: str | None = None,
) -> dict[str, Diagnosis]:
    monkeypatch.setattr(gpu_doctor, "inspect_machine", lambda **_options: machine)
    monkeypatch.setattr(
        gpu_doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if docker else None
    )
    monkeypatch.setattr(gpu_doctor, "daemon_problem", lambda _timeout: None)
    monkeypatch.setattr(gpu_doctor, "gpu_access", lambda _timeout: GpuAccess("runtime nvidia"))
    found = gpu_doctor.installed
    monkeypatch.setattr(
        gpu_doctor,
        "installed",
        lambda package: tensorrt_llm if package == "tensorrt-llm" else found(package),
    )
    return _named(diagnose(GPU))


def _named(found: Examination) -> dict[str, Diagnosis]:
    return {finding.name: finding for group in found.groups.values() for finding in group}


@pytest.mark.parametrize(
    ("vnni", "value", "ok"),
    [(True, "VNNI", True), (False, "in float32", False), (None, "not known", True)],
)
def test_doctor_says_how_int8_is_multiplied_here(
    monkeypatch: pytest.MonkeyPatch, vnni: bool | None, value: str, ok: bool
) -> None:
    monkeypatch.setattr(cpu_doctor, "has_vnni", lambda: vnni)
    finding = _named(diagnose(CPU))["INT8 products"]
    assert finding.ok or not finding.needed
    assert (finding.value, finding.ok) == (value, ok)
    assert ("int4_awq, int4_gptq, nf4 or int8_wo needs none" in finding.advice) == (
        vnni is not None
    )


def test_doctor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine(problem="nvidia-smi is not installed"))
    assert found["NVIDIA GPU"].value == "absent"
    assert "nvidia-smi is not installed" in found["NVIDIA GPU"].advice
    assert (found["tensorrt-llm"].value, found["tensorrt-llm"].ok) == ("absent", False)
    assert "container toolkit" not in found


def test_doctor_with_gpus_and_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4, L4), "580.65.06"), docker=True)
    assert found["NVIDIA GPU"].value == "2 x NVIDIA L4 (SM 89)"
    assert found["NVIDIA driver"].ok
    assert found["tensorrt-llm"].value == "1.2.1, in the container"
    assert all(finding.ok for finding in found.values() if finding.needed)
    # The container has a /dev/shm of its own.
    assert "shared memory" not in found


def test_doctor_refuses_a_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    old = InstalledGpu(0, "GPU-0", "Tesla T4", 75, 15360)
    found = _doctor(monkeypatch, Machine((old,), "580.65.06"), docker=True)
    assert (found["NVIDIA GPU"].value, found["NVIDIA GPU"].ok) == ("Tesla T4 (SM 75)", False)
    assert "from SM 80 (Ampere) on" in found["NVIDIA GPU"].advice


@pytest.mark.parametrize(
    ("docker", "row", "value", "advice"),
    [
        ("no-daemon", "docker", "daemon stopped", "Is the docker daemon.*systemctl start docker"),
        ("denied", "docker", "permission denied", "connect: permission.*usermod -aG docker"),
        ("no-nvidia", "container toolkit", "absent", "only runc.*nvidia-ctk runtime configure"),
    ],
)
def test_doctor_asks_docker_whether_it_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    docker: str,
    row: str,
    value: str,
    advice: str,
) -> None:
    _pretend(monkeypatch, tmp_path)
    assert diagnose(GPU).ok
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", docker)
    examined = diagnose(GPU)
    found = _named(examined)[row]
    assert (found.value, found.ok) == (value, False)
    assert re.search(advice, found.advice)
    assert examined.lacking(GPU) == ["tensorrt-llm", row]


def test_doctor_takes_cdi_devices_for_the_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path)
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", "cdi")
    examined = diagnose(GPU)
    assert examined.ok
    assert _named(examined)["container toolkit"].value == "CDI device nvidia.com/gpu=0"


@pytest.mark.parametrize("program", ["docker", "nvidia-smi"])
def test_doctor_leaves_a_program_that_hangs_and_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    """What it started holds its output open, so that waiting for the end of that would hang."""
    _pretend(monkeypatch, tmp_path)
    monkeypatch.setattr(gpu_doctor, "ASKING_S", 0.5)
    note = tmp_path / "started"
    (tmp_path / "bin" / program).unlink()
    hangs = tmp_path / "bin" / program
    hangs.write_text(f"#!/bin/sh\n/bin/sleep 50 &\necho $! >>{note}\nwait\n")
    hangs.chmod(0o755)
    found = _named(diagnose(GPU))
    row = found["docker" if program == "docker" else "NVIDIA GPU"]
    assert not row.ok
    assert "does not answer" in row.advice
    pids = [int(line) for line in note.read_text().split()]
    assert pids
    assert not [pid for pid in pids if is_alive(pid)]


def test_doctor_inside_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "580.65"), tensorrt_llm="1.2.1")
    assert (found["tensorrt-llm"].value, found["tensorrt-llm"].ok) == ("1.2.1, in place", True)
    assert "docker" not in found
    assert "shared memory" in found


def test_doctor_refuses_an_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "550.127.05"), docker=True)
    assert not found["NVIDIA driver"].ok
    assert "580 or later" in found["NVIDIA driver"].advice


def test_doctor_refuses_a_version_without_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _doctor(monkeypatch, Machine((L4,), "580.65"), docker=True, tensorrt_llm="1.3.0rc29")
    assert not found["tensorrt-llm"].ok
    assert "1.3.0rc22 and later have no engine flow" in found["tensorrt-llm"].advice


def test_doctor_says_what_containers_get_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docker_module, "SELINUX_ENFORCE", tmp_path / "enforce")
    for name in handed_on():
        monkeypatch.delenv(name)
    assert {"SELinux", "handed on"}.isdisjoint(_named(diagnose()))
    (tmp_path / "enforce").write_text("1")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    found = _named(diagnose())
    assert "label=disable" in found["SELinux"].value
    assert found["handed on"].value == "NCCL_P2P_DISABLE"
    monkeypatch.setenv("TRTLLM_PIPELINE_ENV", "LD_PRELOAD")
    found = _named(diagnose())
    assert not found["handed on"].ok
    assert "LD_PRELOAD is not handed on" in found["handed on"].advice


def test_doctor_names_the_known_vulnerabilities_of_the_pin() -> None:
    security = _named(diagnose())["security"]
    for number in (5805, 5840, 5855, 5883):
        assert f"bulletin {number}" in security.advice
    assert "asks for 11.0" in security.advice
    assert "loopback" in security.advice
    assert "the last release with engines" in security.advice
    assert not security.needed


def test_a_missing_package_keeps_targets_but_not_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("ml_dtypes", "pytriton")
    monkeypatch.setattr(
        diagnosis,
        "missing",
        lambda needs: list(dict.fromkeys(need for need in needs if need[0] in wanted)),
    )
    examined = diagnose(CPU)
    assert examined.lacking(CPU) == ["other packages"]
    packages = _named(examined)["other packages"]
    # The server's package has a line of its own.
    assert packages.value.startswith("absent: ml_dtypes")
    assert "pytriton" not in packages.value
    assert "pip install ./client '.[quantize,cpu]'" in packages.advice
    assert examined.lacking(None) == []
    assert diagnose().ok


def test_a_python_of_another_version_keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.sys, "version_info", (3, 13, 1))
    assert diagnose().lacking(None) == ["Python"]
    assert diagnose(CPU).lacking(CPU)[0] == "Python"


def test_a_target_that_is_none_is_a_wrong_command_line() -> None:
    with pytest.raises(UsageError, match=r"there is no target abacus.*Targets: openvino"):
        diagnose("abacus")


def test_ports_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setitem(machine_module.PORTS, "gRPC", port)
        usual = {row.name: row for row in machine_module.ports(())}[f"port {port}"]
        assert (usual.value, usual.ok, usual.needed) == ("in use", False, False)
        assert "--grpc-port" in usual.advice
        (asked,) = machine_module.ports([port])
        assert (asked.value, asked.ok, asked.needed) == ("in use", False, True)
    (free,) = machine_module.ports([port])
    assert (free.value, free.ok) == ("free", True)


def test_disk_is_that_of_the_build_directory(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    found = machine_module.disk(folder)
    assert str(folder) in found.value
    assert not folder.exists()
    assert "48" not in found.advice
    assert "45 GiB for 8 billion" in found.advice  # 8e9 * 6 / 2**30


def test_little_disk_memory_and_shared_memory_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = SimpleNamespace(total=1 << 30, used=0, free=32 << 20)
    monkeypatch.setattr(machine_module.shutil, "disk_usage", lambda _path: usage)
    disk = machine_module.disk(tmp_path)
    assert (disk.ok, disk.needed) == (False, True)
    shared = machine_module.shared_memory(64 << 20, "Triton's Python models need")
    assert (shared.value, shared.ok) == ("32 MiB free", False)
    assert "need 64m of /dev/shm" in shared.advice
    memory = machine_module.memory(512 << 20, 4 << 30)
    assert (memory.value, memory.ok, memory.needed) == ("512 MiB", False, True)
    assert machine_module.memory(None, 4 << 30).value == "not known"
    small = machine_module.memory(3 << 30, 4 << 30)
    assert (small.ok, small.needed) == (False, False)
    assert "about 4.0 GiB for a model of 8 billion parameters" in small.advice
    assert machine_module.memory(5 << 30, 4 << 30).ok


def test_what_a_system_does_not_tell_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on macOS, which has no /dev/shm."""
    monkeypatch.setattr(machine_module, "SHARED_MEMORY", tmp_path / "none")
    assert machine_module.shared_memory(1, "It needs").value == "not known"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine_module.open_files().value == "not known"


def test_another_system_has_the_tool_and_no_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(diagnosis.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(diagnosis.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine_module, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr("pipeline.targets.openvino.memory.machine_memory", lambda: None)
    examined = diagnose()
    assert examined.ok
    assert "platform" in examined.lacking(CPU)
    # What /proc does not say, sysconf does.
    assert _named(examined)["memory"].value.endswith("GiB")
    monkeypatch.delattr(machine_module.os, "sysconf")
    assert _named(diagnose())["memory"].value == "not known"


def test_temporary_files_that_cannot_be_made_keep_the_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_module.tempfile, "tempdir", str(tmp_path / "none"))
    examined = diagnose()
    assert examined.lacking(None) == ["temporary files"]
    assert "TMPDIR" in _named(examined)["temporary files"].advice


def test_json_is_an_object_without_advice_on_what_is_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path)
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", "no-daemon")
    told = diagnose(GPU).as_dict()
    assert told.keys() == {"schema", "target", "ok", "targets", "findings"}
    assert (told["schema"], told["target"], told["ok"]) == (1, GPU, False)
    assert told["targets"] == {GPU: {"missing": ["tensorrt-llm", "docker"]}}
    assert [row["name"] for row in told["findings"] if bool(row["advice"]) == row["ok"]] == []
    assert json.loads(json.dumps(told)) == told


def test_the_exit_code_is_that_of_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path)
    run = CliRunner()
    assert run.invoke(app, ["doctor", "--target", GPU]).exit_code == 0
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", "no-daemon")
    failed = run.invoke(app, ["doctor", "--target", GPU])
    assert failed.exit_code == 3
    assert failed.stdout.endswith(
        f"target {GPU}: cannot run here, for lack of: tensorrt-llm, docker\n"
    )
    # The other target and the tool itself are well.
    assert run.invoke(app, ["doctor"]).exit_code == 0
    told = run.invoke(app, ["doctor", "--target", GPU, "--json"])
    assert (told.exit_code, json.loads(told.stdout)["ok"]) == (3, False)


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_a_terminal_and_words_stay_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    _pretend(monkeypatch, tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TRTLLM_BUILD_DOUBLE_DOCKER", "no-daemon")
    whole, fitting = io.StringIO(), Terminal()
    for stream in (whole, fitting):
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(typer.Exit):
            doctor_command.doctor(target=GPU, output=Output())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", fitting.getvalue())
    assert max(map(len, shown.splitlines())) <= min(columns, 100)
    assert shown.split() == whole.getvalue().split()
    # Names and values begin in two columns, whatever the status before them.
    rows = [line for line in whole.getvalue().splitlines() if line.startswith(("ok", "miss", "no"))]
    assert len(rows) > 15
    assert {re.match(r"\w+ +", line).end() for line in rows} == {9}  # type: ignore[union-attr]


def _pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with an L40S and Docker, and the packages of this one."""
    programs = ("nvidia-smi", "docker")
    pretend(monkeypatch, tmp_path, programs=programs, tensorrt_llm=None, tensorrt=None, sm="89")


def test_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli.diagnosis as doctor\n"
        "doctor.diagnose()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tensorrt_llm', 'openvino'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
