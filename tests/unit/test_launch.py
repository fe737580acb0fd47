"""The commands that serve a TensorRT repository, and what refuses to build them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import app
from pipeline.errors import (
    CompileError,
    MissingDependencyError,
    RepositoryError,
    ServerError,
    UnsupportedError,
    UsageError,
)
from pipeline.serving import device_numbers, open_server, serve_command, target_of
from pipeline.store.store import Store
from pipeline.targets.handed_on import handed_on
from pipeline.targets.tensorrt import docker as docker_module
from pipeline.targets.tensorrt import toolchain
from pipeline.targets.tensorrt.build.engine import write_manifest
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine, Toolkit
from pipeline.targets.tensorrt.serve import container, docker
from pipeline.targets.tensorrt.serve import launch as launch_module
from pipeline.targets.tensorrt.serve import server as server_module
from pipeline.targets.tensorrt.serve.container import (
    Endpoints,
    orchestrator_command,
    server_command,
)
from pipeline.targets.tensorrt.serve.failures import launch_cause
from pipeline.targets.tensorrt.serve.launch import (
    docker_launch,
    local_launch,
    plan_launch,
    serving_container,
)
from pipeline.targets.tensorrt.serve.server import LaunchedServer, link_view
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from tests.conftest import PROJECT
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.triton import demo, tensorrt
from tests.unit.triton.tensorrt import LLAMA_8B, QWEN_7B

GOLDEN = PROJECT / "tests" / "golden" / "launch"
HERE = Endpoints("127.0.0.1")
H100 = ("NVIDIA H100 80GB HBM3", 90)


def bind(repository: Path, **changes: Any) -> Path:
    """Writes the engine.json of an engine for an H100, built in the pinned image."""
    content = {
        "target": "tensorrt",
        "gpu": {"name": H100[0], "sm": H100[1], "memory_mib": 81559},
        "driver": "580.65.06",
        "tensorrt_llm": toolchain.TENSORRT_LLM,
        "tensorrt": toolchain.TENSORRT,
        "cuda": "13",
        "container": {"image": DEFAULT_CONTAINER.image, "digest": "sha256:0"},
        **changes,
    }
    write_manifest(repository / "tensorrt_llm/1/engine", content)
    return repository


def machine(*gpus: tuple[str, int]) -> Machine:
    installed = [
        InstalledGpu(index, f"GPU-{index}", name, sm, 81559)
        for index, (name, sm) in enumerate(gpus)
    ]
    return Machine(tuple(installed), "580.65.06", "" if gpus else "nvidia-smi is not installed")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return bind(tensorrt.write_repository(tmp_path / "repository", LLAMA_8B))


@pytest.fixture
def two_ranks(tmp_path: Path) -> Path:
    return bind(tensorrt.write_repository(tmp_path / "two", QWEN_7B))


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two H100 and docker, outside any container."""
    monkeypatch.setattr(launch_module, "inside_container", lambda: False)
    monkeypatch.setattr(launch_module, "inspect_machine", lambda: machine(H100, H100))
    monkeypatch.setattr(launch_module, "daemon_problem", lambda: None)
    return monkeypatch


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing to hand on to a container, and no SELinux, whatever this machine has."""
    for name in handed_on():
        monkeypatch.delenv(name)
    monkeypatch.setattr(docker_module, "SELINUX_ENFORCE", tmp_path / "enforce")


def compare_with_golden(name: str, command: Sequence[str]) -> None:
    """One word per line; ``REPOSITORY`` stands for the place of the repository."""
    text = "\n".join(command) + "\n"
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "UPDATE_GOLDEN=1 writes the files again"


@pytest.mark.parametrize(
    ("name", "model", "orchestrator"),
    [("tp1", LLAMA_8B, False), ("tp2-leader", QWEN_7B, False), ("tp2-orchestrator", QWEN_7B, True)],
)
def test_golden_commands(name: str, model: str, orchestrator: bool, tmp_path: Path) -> None:
    repository = bind(tensorrt.write_repository(tmp_path / "repository", model))
    launch = docker_launch(repository, HERE, orchestrator=orchestrator)
    place = str(repository)
    compare_with_golden(name, [word.replace(place, "REPOSITORY") for word in launch.command])
    assert shlex.split(launch.text) == list(launch.command)


def test_the_container_is_confined(repository: Path) -> None:
    command = docker_launch(repository, HERE).command
    inside = command.index(DEFAULT_CONTAINER.image)
    options = command[:inside]
    assert f"--mount=type=bind,source={repository},target=/models,readonly" in options
    assert {"--user=1000:1000", "--cap-drop=ALL", "--shm-size=2g"} <= set(options)
    assert {"--ulimit=memlock=-1", "--ulimit=stack=67108864", "--gpus=device=0"} <= set(options)
    published = [word for word in options if word.startswith("--publish=")]
    assert len(published) == 3
    assert all(word.startswith("--publish=127.0.0.1:") for word in published)
    assert {"--model-control-mode=none", "--disable-auto-complete-config"} <= set(command[inside:])


@pytest.mark.parametrize(("enforce", "labelled"), [("1", False), ("0\n", True), (None, True)])
def test_selinux_does_not_hide_the_mounts(
    enforce: str | None, labelled: bool, repository: Path, tmp_path: Path
) -> None:
    """1 is enforcing, 0 permissive (kernel documentation of selinuxfs)."""
    if enforce:
        (tmp_path / "enforce").write_text(enforce)
    option = "--security-opt=label=disable"
    for command in (
        docker_launch(repository, HERE).command,
        docker_module.docker_run("name", "1:1", [], "/"),
    ):
        assert (option not in command) is labelled
        assert "--security-opt=no-new-privileges" in command


def test_one_rank_under_mpirun() -> None:
    """As upstream's launch_triton_server.py starts it without --no-mpi."""
    plain, under = server_command(1), server_command(1, mpirun=True)
    assert plain[0] == "tritonserver"
    assert under == ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "1", *plain]
    assert server_command(2, mpirun=True) == server_command(2)


@pytest.mark.parametrize("build", [docker_launch, local_launch])
def test_mpirun_is_an_option_of_every_launch(
    build: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = Toolkit(toolchain.TENSORRT_LLM, toolchain.TENSORRT, "13", None)
    monkeypatch.setattr(launch_module, "toolkit", lambda: pinned)
    assert "mpirun" in build(repository, HERE, mpirun=True).command
    assert "mpirun" not in build(repository, HERE).command


def test_a_slice_of_a_gpu_is_given_by_name(outside: Any, repository: Path) -> None:
    """Docker's --gpus takes the name of a MIG slice; its number would be the whole GPU."""
    part = InstalledGpu(3, "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", *H100, 9728)
    outside.setattr(launch_module, "inspect_machine", lambda: Machine((part,), "580.65.06"))
    command = plan_launch(repository, HERE).command
    assert "--gpus=device=MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f" in command


def test_addresses_and_devices(two_ranks: Path) -> None:
    endpoints = Endpoints("::1", http=1, grpc=2, metrics=3)
    command = docker_launch(two_ranks, endpoints, devices=[3, 1]).command
    assert "--publish=[::1]:2:8001" in command
    # Docker splits the value at commas unless it is quoted inside.
    assert '--gpus="device=3,1"' in command


def test_leader_layout() -> None:
    command = server_command(4)
    # Bound to one core each, as Open MPI does for two processes, they would starve.
    assert command[:4] == ["mpirun", "--allow-run-as-root", "--bind-to", "none"]
    ranks = " ".join(command[4:]).split(" : ")
    assert len(ranks) == 4
    assert all(rank.startswith("-n 1 tritonserver --model-repository=/models") for rank in ranks)
    assert "--model-control-mode=none" in ranks[0]
    assert "--load-model" not in ranks[0]
    for rank in ranks[1:]:
        assert "--model-control-mode=explicit --load-model=tensorrt_llm" in rank
    prefixes = {word for word in command if "shm-region-prefix-name" in word}
    assert len(prefixes) == 4


def test_orchestrator_leaves_the_gpus_to_its_workers() -> None:
    command = orchestrator_command(2)
    assert command[:6] == ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "1"]
    assert ":" not in command
    assert command[-4:] == [
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        "--cuda-memory-pool-byte-size=0:0",
        "--cuda-memory-pool-byte-size=1:0",
    ]


@pytest.mark.parametrize("devices", [[0], [0, 0], [0, 1, 2]])
def test_as_many_gpus_as_ranks(two_ranks: Path, devices: list[int]) -> None:
    with pytest.raises(UsageError, match=r"has 2 rank\(s\), so it needs 2 different GPU\(s\)"):
        docker_launch(two_ranks, HERE, devices=devices)


def test_a_comma_in_the_path(tmp_path: Path) -> None:
    repository = bind(tensorrt.write_repository(tmp_path / "a,b"))
    with pytest.raises(UnsupportedError, match="cannot mount a path with a comma"):
        docker_launch(repository, HERE)


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({}, "26.06"),
        ({"container": {"image": "nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3"}}, "26.04"),
        ({"container": None}, "26.06"),
        ({"tensorrt_llm": "1.0.0", "tensorrt": "10.11.0.33", "container": None}, "25.10"),
        ({"tensorrt_llm": "1.2.0rc8", "container": None}, "26.03"),
        ({"tensorrt_llm": "0.21.0", "tensorrt": "10.11.0.33"}, "25.08"),
    ],
)
def test_the_image_is_one_with_the_engines_tensorrt(changes: dict[str, Any], tag: str) -> None:
    manifest = {"tensorrt_llm": toolchain.TENSORRT_LLM, "tensorrt": toolchain.TENSORRT, **changes}
    assert serving_container(manifest).tag == tag


def test_no_image_has_the_engines_tensorrt(repository: Path) -> None:
    bind(repository, tensorrt="10.99.0.1")
    with pytest.raises(
        UnsupportedError,
        match=r"no container is known with .* TensorRT 10\.99\.0\.1.*26\.06-trtllm",
    ):
        docker_launch(repository, HERE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"tensorrt": "10.99.0.1"},
            r"Triton 26\.04, 26\.05, 26\.06, 26\.07 holds TensorRT-LLM 1\.2\.1 with TensorRT 10\.1",
        ),
        ({"tensorrt_llm": "1.3.0rc15"}, r"No Triton container from 25\.08 to 26\.07, the last"),
    ],
)
def test_why_no_image_has_it(repository: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        docker_launch(bind(repository, **changes), HERE)


def test_tensorrt_llm_of_another_python(outside: Any, repository: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin/trtllm-build", "")
    outside.setenv("PATH", str(tmp_path / "bin"))
    outside.setattr(launch_module, "daemon_problem", lambda: "docker is not installed")
    with pytest.raises(MissingDependencyError, match=r"scripts/install python3 \.venv"):
        plan_launch(repository, HERE)


def test_an_engine_of_unknown_origin(tmp_path: Path) -> None:
    repository = tensorrt.write_repository(tmp_path / "repository")
    with pytest.raises(CompileError, match=r"no readable engine\.json"):
        docker_launch(repository, HERE)


def test_an_engine_that_does_not_say_its_ranks(repository: Path) -> None:
    (repository / "tensorrt_llm/1/engine/config.json").write_text('{"pretrained_config": {}}')
    with pytest.raises(RepositoryError, match=r"how many ranks it has\. KeyError: 'mapping'"):
        docker_launch(repository, HERE)


def test_plan_on_the_right_machine(outside: Any, two_ranks: Path) -> None:
    launch = plan_launch(two_ranks, HERE)
    assert launch.image == DEFAULT_CONTAINER.image
    assert list(launch.command) == list(docker_launch(two_ranks, HERE).command)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (
            [("NVIDIA L4", 89)],
            r"is for NVIDIA H100 80GB HBM3 \(SM 90\), GPU 0 is NVIDIA L4 \(SM 89",
        ),
        ([("NVIDIA H100 PCIe", 90)], r"GPU 0 is NVIDIA H100 PCIe \(SM 90\).*26\.06-trtllm-python"),
    ],
)
def test_another_gpu(outside: Any, repository: Path, gpus: Any, message: str) -> None:
    outside.setattr(launch_module, "inspect_machine", lambda: machine(*gpus))
    with pytest.raises(UnsupportedError, match=message):
        plan_launch(repository, HERE)


def test_too_few_gpus(outside: Any, two_ranks: Path) -> None:
    outside.setattr(launch_module, "inspect_machine", lambda: machine(H100))
    with pytest.raises(UnsupportedError, match=r"has 2 rank\(s\), but 1 of the GPUs asked for"):
        plan_launch(two_ranks, HERE)


def test_without_a_gpu_the_command_is_in_the_message(outside: Any, repository: Path) -> None:
    outside.setattr(launch_module, "inspect_machine", machine)
    with pytest.raises(UnsupportedError, match="Here, nvidia-smi is not installed") as caught:
        plan_launch(repository, HERE)
    assert caught.value.exit_code == 3
    assert f"`{docker_launch(repository, HERE).text}`" in str(caught.value)


def test_without_docker_the_command_is_in_the_message(outside: Any, repository: Path) -> None:
    outside.setattr(launch_module, "daemon_problem", lambda: "docker is not installed")
    with pytest.raises(UnsupportedError, match="Here, docker is not installed") as caught:
        plan_launch(repository, HERE)
    assert f"`{docker_launch(repository, HERE).text}`" in str(caught.value)


def test_docker_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker_module.daemon_problem() == "docker is not installed"


def test_docker_without_its_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert docker_module.daemon_problem() == (
        "docker cannot start containers: Cannot connect to the Docker daemon"
    )


def test_a_repository_that_the_containers_user_cannot_read(outside: Any, repository: Path) -> None:
    secret = repository / "preprocessing/1/tokenizer/tokenizer.json"
    secret.chmod(0o600)
    if secret.stat().st_uid == docker.UID:
        pytest.skip("these tests run as the container's user")
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: the container's user.*chmod -R"):
        plan_launch(repository, HERE)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The pinned container on a machine with an H100."""
    tools = Toolkit(toolchain.TENSORRT_LLM, toolchain.TENSORRT, "13", None)
    monkeypatch.setattr(launch_module, "inside_container", lambda: True)
    monkeypatch.setattr(launch_module, "inspect_machine", lambda: machine(H100, H100))
    monkeypatch.setattr(launch_module, "toolkit", lambda: tools)
    return monkeypatch


def test_in_place_inside_the_container(inside: Any, repository: Path) -> None:
    launch = plan_launch(repository, HERE)
    assert launch.image is None
    assert launch.command[0] == "tritonserver"
    assert "--http-address=127.0.0.1" in launch.command
    assert launch.environment == {
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert launch.text.startswith(f"ln -sfn {repository} /models && env PYTHONDONTWRITEBYTECODE=1")


def test_in_place_with_the_wheel_of_the_engines_tensorrt(
    monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", tensorrt=f"{toolchain.TENSORRT}.post1")
    assert local_launch(repository, HERE).command[0] == "tritonserver"
    pretend(monkeypatch, tmp_path / "other", tensorrt="10.13.3.9.post1")
    with pytest.raises(UnsupportedError, match=r"has TensorRT 10\.13\.3\.9, not 10\.14\.1\.48"):
        local_launch(repository, HERE)


def test_in_place_with_devices_and_workers(inside: Any, two_ranks: Path) -> None:
    launch = plan_launch(two_ranks, HERE, devices=[1, 0], orchestrator=True)
    assert launch.environment == {
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRTLLM_ORCHESTRATOR": "1",
        "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1,0",
    }


def test_in_place_with_another_toolchain(inside: Any, repository: Path) -> None:
    other = Toolkit("1.1.0", "10.13.3.9", "13", None)
    inside.setattr(launch_module, "toolkit", lambda: other)
    with pytest.raises(
        UnsupportedError, match=r"has TensorRT-LLM 1\.1\.0, not 1\.2\.1; .*Serve it in nvcr.*26\.06"
    ):
        local_launch(repository, HERE)


def test_a_view_names_the_real_engine(repository: Path, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    link_view(repository, view)
    config = (view / "tensorrt_llm/config.pbtxt").read_text()
    assert f'"{repository}/tensorrt_llm/1/engine"' in config
    assert "/models/" not in config
    assert (view / "tensorrt_llm/1/engine/rank0.engine").is_file()
    assert (view / "preprocessing/1/tokenizer/tokenizer.json").is_file()
    assert "/models/" in (repository / "tensorrt_llm/config.pbtxt").read_text()


def published(tmp_path: Path, target: str) -> Path:
    """A repository with the manifest that the store gives it."""
    store = Store(tmp_path / "store")
    with store.workspace("repository", "key") as directory:
        if target == "tensorrt":
            bind(tensorrt.write_repository(directory))
        else:
            demo.write_repository(directory)
        artifact = store.publish(
            directory,
            stage="repository",
            key="key",
            material={},
            inputs={},
            facts={"target": target},
            seconds=0.0,
        )
    return artifact.path


def as_a_shell_has_it(text: str) -> list[str]:
    """The words of a command line, by bash itself."""
    script = f'docker() {{ printf "%s\\0" docker "$@"; }}; {text}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_serve_prints_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = published(tmp_path, "tensorrt")
    assert target_of(repository) == "tensorrt"
    ask = ["serve", str(repository), "--print-command", "--grpc-port=9001", "--devices=1"]
    app(ask, standalone_mode=False)
    text = capsys.readouterr().out
    words = as_a_shell_has_it(text)
    assert words[:2] == ["docker", "run"]
    assert "--publish=127.0.0.1:9001:8001" in words
    assert "--gpus=device=1" in words
    assert max(len(line) for line in text.splitlines()) < 40 + len(str(tmp_path)) * 2
    app(["serve", str(repository), "--print", "command", "--json"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert printed["image"] == DEFAULT_CONTAINER.image
    assert printed["command"] == list(serve_command(repository, **PORTS).command)
    assert printed["command"] == as_a_shell_has_it(printed["text"])


PORTS = {"grpc_port": 8001, "http_port": 8000, "metrics_port": 8002}


def test_serve_here_exits_with_the_command(tmp_path: Path, outside: Any) -> None:
    outside.setattr(launch_module, "inspect_machine", machine)
    repository = published(tmp_path, "tensorrt")
    with pytest.raises(UnsupportedError, match=r"at the same place there, run `docker run .*`\.$"):
        app(["serve", str(repository), "--grpc-port=0", "--http-port=0", "--metrics-port=0"],
            standalone_mode=False)  # fmt: skip


def test_gpu_options_on_a_repository_for_the_cpu(tmp_path: Path) -> None:
    repository = published(tmp_path, "openvino")
    with pytest.raises(UsageError, match="are for repositories of the tensorrt target"):
        serve_command(repository, mpirun=True)
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_server(repository, tmp_path / "log", devices=[0])
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_server(repository, tmp_path / "log", mpirun=True)


@pytest.mark.parametrize("text", ["", "all", "0,", "0;1", "-1"])
def test_devices_that_are_not_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="does not name GPUs"):
        device_numbers(text)


def test_devices() -> None:
    assert device_numbers(None) is None
    assert device_numbers("0, 3") == [0, 3]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("Version tag does not match. Note: Current Version: 0, Serialized", "another TensorRT or"),
        (
            "unable to find backend library for backend 'tensorrtllm', try",
            "has no tensorrtllm back",
        ),
        ("Both encoder and decoder model paths are empty", "not where gpt_model_path says"),
        ("Cannot find parameter with name: tokenizer_dir", "lacks a parameter"),
        ("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: out of memory", "too small, or"),
        ("docker: Error: could not select device driver with capabilities", "cannot hand the GPU"),
        ("Bind for 127.0.0.1:8001 failed: port is already allocated", "A port is in use"),
        ("There are not enough slots available in the system", "fewer CPU cores"),
        ("something else entirely", "The last line of its log is: something else entirely"),
    ],
)
def test_causes(log: str, why: str) -> None:
    assert why in launch_cause(log).why


def program(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


SERVER = f"""exec {sys.executable} -c '
import http.server, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("stopped in order")))
port = next(word for word in sys.argv if word.startswith("--http-port=")).split("=")[1]
print(*sys.argv[1:], flush=True)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(port)), Ready).serve_forever()
' "$@" """


def test_a_launched_server_is_awaited_and_stopped(
    inside: Any, repository: Path, tmp_path: Path
) -> None:
    # A stand-in that answers the readiness probe; the real container needs a GPU.
    program(tmp_path / "bin/tritonserver", SERVER)
    inside.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    log = tmp_path / "triton.log"
    with open_server(repository, log, target="tensorrt") as server:
        assert isinstance(server, LaunchedServer)
        assert server.ready_s is not None
        server.wait(0.01)
    text = log.read_text()
    assert text.rstrip().endswith("stopped in order")
    # It was given a view of the repository, which is gone now.
    (flag,) = (word for word in text.split() if word.startswith("--model-repository="))
    assert "triton-" in flag
    assert not Path(flag.partition("=")[2]).exists()


def test_a_launched_server_that_fails(inside: Any, repository: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin/tritonserver", "echo 'Failed to deserialize cuda engine'; exit 1")
    inside.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(ServerError, match=r"Triton did not start\. The engine was built with"):
        open_server(repository, tmp_path / "log", target="tensorrt").start()


DOCKER = """
case $1 in
run) trap '' TERM; touch "$DOCKER_LOG.up"; while :; do sleep 0.05; done ;;
*) echo "$@" >> "$DOCKER_LOG" ;;
esac
"""


def test_a_container_that_does_not_stop_is_removed(
    outside: Any, repository: Path, tmp_path: Path
) -> None:
    program(tmp_path / "bin/docker", DOCKER)
    outside.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    outside.setenv("DOCKER_LOG", str(tmp_path / "docker.log"))
    outside.setattr(server_module, "CLEAR_UP_S", 0.1)
    endpoints = Endpoints("127.0.0.1", http=1, grpc=20001, metrics=3)
    launch = docker_launch(repository, endpoints, exit_timeout_s=0)
    server = LaunchedServer(repository, launch, ready_timeout_s=0.3)
    with pytest.raises(ServerError, match="Triton was not ready after 0 s"):
        server.start()
    assert (tmp_path / "docker.log").read_text() == "rm --force trtllm-pipeline-20001\n"


def test_a_hurried_stop_removes_the_container_at_once(
    outside: Any, repository: Path, tmp_path: Path
) -> None:
    program(tmp_path / "bin/docker", DOCKER)
    outside.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    outside.setenv("DOCKER_LOG", str(tmp_path / "docker.log"))
    endpoints = Endpoints("127.0.0.1", http=1, grpc=20001, metrics=3)
    launch = docker_launch(repository, endpoints, exit_timeout_s=600)
    assert "--exit-timeout-secs=600" in launch.command
    server = LaunchedServer(repository, launch)
    # Before it is deaf to the signal, a stop would end it in order.
    up = tmp_path / "docker.log.up"
    outside.setattr(LaunchedServer, "answers", lambda _self: up.exists())
    server.start()
    assert server.patience_s == 600
    # As from a second Ctrl-C while stop waits.
    hurried = threading.Timer(0.3, server.hurry)
    hurried.start()
    server.stop()
    hurried.join()
    assert (tmp_path / "docker.log").read_text() == "rm --force trtllm-pipeline-20001\n"


def test_the_entry_point_becomes_the_server(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(container, "MOUNT", str(two_ranks))
    started: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: started.append(arguments))
    container.main(["--orchestrator"])
    container.main([])
    (_, spawning, spawn_environment), (file, leading, environment) = started
    assert spawning == orchestrator_command(2)
    assert spawn_environment["TRTLLM_ORCHESTRATOR"] == "1"
    assert (file, leading) == ("mpirun", server_command(2))
    assert "TRTLLM_ORCHESTRATOR" not in environment
    assert "mpirun --allow-run-as-root" in capsys.readouterr().out


def test_the_entry_point_in_another_image(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(container, "MOUNT", str(repository))
    monkeypatch.setattr(os, "execvpe", None)
    monkeypatch.setenv("TRT_VERSION", "10.13.3.9")
    assert container.main([]) == 3
    assert capsys.readouterr().err == (
        "error: the engine was built with TensorRT 10.14.1.48, this image has 10.13.3.9. "
        f"Use {DEFAULT_CONTAINER.image} (TRITON_IMAGE of docker compose).\n"
    )


def test_an_engine_that_was_built_in_place_names_no_image(repository: Path) -> None:
    bind(repository, container=None)
    problem = container.tensorrt_problem(repository, "10.15.1.29-1+cuda13.1")
    assert problem
    assert "has 10.15.1.29-1+cuda13.1. Use an image with TensorRT 10.14.1.48; " in problem


def test_the_entry_point_uses_mpirun_when_asked(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MOUNT", str(repository))
    monkeypatch.delenv("TRT_VERSION", raising=False)
    started: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: started.append(arguments))
    container.main(["--mpirun"])
    assert started[0][1] == server_command(1, mpirun=True)


@pytest.mark.parametrize("image", [None, "10.14.1.48", "10.14.1.48.post1", "10.14.1.48-1+cuda13.1"])
def test_the_entry_point_in_the_engines_image(
    image: str | None, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MOUNT", str(repository))
    started: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("TRT_VERSION", raising=False)
    if image:
        monkeypatch.setenv("TRT_VERSION", image)
    container.main([])
    assert started[0][0] == "tritonserver"


@pytest.mark.parametrize("manifest", [None, "{}", "[1]", '{"tensorrt": "unknown"}'])
def test_an_engine_that_does_not_say_its_tensorrt_is_left_to_triton(
    manifest: str | None, repository: Path
) -> None:
    path = repository / container.ENGINE_MANIFEST
    path.unlink()
    if manifest:
        path.write_text(manifest)
    assert container.tensorrt_problem(repository, "10.13.3.9") is None


def test_the_entry_point_without_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(container, "MOUNT", str(tmp_path))
    assert container.main([]) == 5
    assert "does not say how many ranks the engine has" in capsys.readouterr().err


def test_the_entry_point_stands_alone() -> None:
    source = Path(container.__file__).read_text()
    assert "import pipeline" not in source
    assert "from pipeline" not in source
