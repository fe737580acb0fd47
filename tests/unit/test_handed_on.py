"""Environment variables that reach a container: which ones, and that only their names are shown."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.main import app
from pipeline.errors import PipelineError, ServerError, UsageError
from pipeline.targets.handed_on import NAMES, hand_on, handed_on
from pipeline.targets.tensorrt.docker import docker_run
from pipeline.targets.tensorrt.process import run_logged
from pipeline.targets.tensorrt.serve.container import Endpoints
from pipeline.targets.tensorrt.serve.launch import docker_launch
from pipeline.targets.tensorrt.serve.server import LaunchedServer
from tests.unit.test_launch import bind, published
from tests.unit.triton import tensorrt

VALUE = "eth0-value-that-nobody-may-read"
# As Docker's client does with --env: NAME alone is taken from the client's own environment, and is
# nothing at all where it is not set there (docs.docker.com/reference/cli/docker/container/run).
DOCKER = """\
#!{python}
import json, os, sys
given = [word.partition("=")[2] for word in sys.argv if word.startswith("--env=")]
inside = {{}}
for item in given:
    name, equals, value = item.partition("=")
    if equals or name in os.environ:
        inside[name] = value if equals else os.environ[name]
record = {{"words": sys.argv[1:], "inside": inside}}
with open({record!r}, "w") as file:
    json.dump(record, file)
print("docker was here")
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that writes down its words and what a container would have of the environment."""
    record, program = tmp_path / "record.json", tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(DOCKER.format(python=sys.executable, record=str(record)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return record


def test_what_the_libraries_read_is_handed_on() -> None:
    # One documented variable of each: NCCL, Open MPI, UCX, TensorRT-LLM (two beginnings), CUDA.
    environ = {
        "NCCL_P2P_DISABLE": "1",
        "OMPI_MCA_pml": "ob1",
        "UCX_TLS": "tcp",
        "TRTLLM_ENABLE_PDL": "1",
        "TLLM_LOG_LEVEL": "INFO",
        "CUDA_LAUNCH_BLOCKING": "1",
        "HF_TOKEN": "secret",
        "MY_NCCL_P2P": "1",
    }
    assert handed_on(environ) == sorted(set(environ) - {"HF_TOKEN", "MY_NCCL_P2P"})


@pytest.mark.parametrize(
    "name",
    [
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "TRTLLM_ORCHESTRATOR", NAMES),
        *("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_VERSION", "NCCL_VERSION", "CUDA_CACHE_PATH"),
        *("CUDA_TOOLKIT_ROOT_DIR", "CUDA_MPS_PIPE_DIRECTORY", "LD_PRELOAD", "PATH"),
    ],
)
def test_what_the_container_knows_better_is_not(name: str) -> None:
    assert handed_on({name: ""}) == []


def test_others_are_named() -> None:
    environ = {NAMES: "http_proxy, absent", "http_proxy": "x", "https_proxy": "y"}
    assert handed_on(environ) == ["http_proxy"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "HF_TOKEN=hf_abc",
            r"HF_TOKEN=\.\.\. would show a secret .* name it alone: --env HF_TOKEN",
        ),
        ("WANDB_API_KEY=abc", "would show a secret"),
        ("DB_PASSWORD=abc", "would show a secret"),
        ("MY_KEY=abc", "would show a secret"),
        ("DB_PWD=abc", "would show a secret"),
        ("DB_URL=postgres://user:word@host/db", "would show a secret"),
        ("ABSENT", "ABSENT: this variable is not set.*--env ABSENT=VALUE"),
        ("LD_PRELOAD=/tmp/x.so", "LD_PRELOAD is not handed on"),
        ("LD_LIBRARY_PATH", "LD_LIBRARY_PATH is not handed on"),
        ("CUDA_VISIBLE_DEVICES=1", "GPUs are chosen with serve --devices"),
        ("1X=2", "'1X' is not the name"),
        ("=x", "'' is not the name"),
    ],
)
def test_what_cannot_be_named(word: str, message: str) -> None:
    environ: dict[str, str] = {}
    with pytest.raises(UsageError, match=message) as caught:
        hand_on([word], environ)
    assert "abc" not in str(caught.value)
    assert environ == {}


def test_naming_adds_up() -> None:
    environ = {NAMES: "A", "A": "1", "B": "2"}
    hand_on(["B", "C=3=4", "A"], environ)
    assert environ == {NAMES: "A,B,C", "A": "1", "B": "2", "C": "3=4"}
    assert handed_on(environ) == ["A", "B", "C"]


def test_a_bad_name_in_the_variable() -> None:
    with pytest.raises(UsageError, match=f"{NAMES}: LD_PRELOAD is not handed on"):
        handed_on({NAMES: "LD_PRELOAD"})


def test_a_build_has_the_value_and_its_log_the_name(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", VALUE)
    command = [*docker_run("name", "1:1", [], "/engine"), "image", "trtllm-build"]
    log = tmp_path / "build.log"
    run_logged(command, log, lambda _line: None)
    record = json.loads(docker.read_text())
    assert record["inside"]["NCCL_SOCKET_IFNAME"] == VALUE
    assert "--env=NCCL_SOCKET_IFNAME" in record["words"]
    assert VALUE not in " ".join(record["words"])
    assert "NCCL_SOCKET_IFNAME" in log.read_text()
    assert VALUE not in log.read_text()


def test_a_server_has_the_value_and_its_command_the_name(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_MCA_pml", VALUE)
    monkeypatch.setenv("TRTLLM_ORCHESTRATOR", "1")
    repository = bind(tensorrt.write_repository(tmp_path / "repository"))
    launch = docker_launch(repository, Endpoints("127.0.0.1", 1, 2, 3))
    log = tmp_path / "triton.log"
    with pytest.raises(ServerError, match="docker was here"):
        LaunchedServer(repository, launch, log_file=log, ready_timeout_s=30).start()
    record = json.loads(docker.read_text())
    assert record["inside"]["OMPI_MCA_pml"] == VALUE
    assert "TRTLLM_ORCHESTRATOR" not in record["inside"]
    for shown in (" ".join(record["words"]), launch.text, log.read_text()):
        assert VALUE not in shown
    assert "--env=OMPI_MCA_pml " in launch.text


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What the options below set is gone after the test."""
    for name in (NAMES, "NCCL_DEBUG", "http_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_serve_takes_names(
    clean: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = published(tmp_path, "tensorrt")
    clean.setenv("http_proxy", VALUE)
    options = ["--env", "http_proxy", "--env", f"NCCL_DEBUG={VALUE}"]
    app(["serve", str(repository), "--print-command", *options], standalone_mode=False)
    printed = capsys.readouterr().out
    assert {"--env=http_proxy", "--env=NCCL_DEBUG"} <= set(shlex.split(printed))
    assert VALUE not in printed


def test_a_run_refuses_a_secret_before_it_does_anything(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["run", str(tmp_path / "no-recipe.yaml"), "--env", "HF_TOKEN=hf_abc"]
    with pytest.raises(UsageError, match="would show a secret"):
        app(words, standalone_mode=False)


def test_a_run_hands_names_on_to_its_build(
    clean: pytest.MonkeyPatch, tmp_path: Path, docker: Path
) -> None:
    """The option sets what :func:`docker_run`, which every build goes through, reads."""
    words = ["run", str(tmp_path / "no-recipe.yaml"), "--env", f"http_proxy={VALUE}"]
    with pytest.raises(PipelineError, match="no-recipe"):
        app(words, standalone_mode=False)
    command = docker_run("name", "1:1", [], "/engine")
    assert "--env=http_proxy" in command
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(docker.read_text())["inside"]["http_proxy"] == VALUE
