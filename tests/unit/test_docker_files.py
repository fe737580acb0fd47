"""The files below docker/ say what the code says, and nothing that compose would refuse."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.targets.tensorrt.serve.container import EXIT_TIMEOUT_S, INSIDE, MOUNT
from pipeline.targets.tensorrt.serve.docker import USER, docker_command
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from tests.conftest import PROJECT

DOCKER = PROJECT / "docker"
# Keys of a compose service that this file uses or might, from the compose specification.
SERVICE_KEYS = {
    *("build", "cap_drop", "command", "deploy", "environment", "healthcheck", "image", "init"),
    *("ports", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs"),
    *("ulimits", "user", "volumes"),
}
HEALTH_KEYS = {"test", "interval", "timeout", "start_period", "retries"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def service(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]["triton"]


def environment() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def instructions() -> list[tuple[str, str]]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and line[0] != "#"]
    return [(name, rest.strip()) for name, rest in lines]


def objection(command: list[str]) -> str | None:
    """What a tool says against its input; None when it accepts it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else None


def test_every_pin_is_the_toolchains() -> None:
    stock = ("Dockerfile", "build-gpu.Dockerfile", "multinode.Dockerfile")
    for path in (DOCKER / name for name in (*stock, "compose.yaml", ".env.example")):
        images = set(re.findall(r"nvcr\.io/[\w./:-]+", path.read_text()))
        assert images == {DEFAULT_CONTAINER.image}, path.name


def test_compose_uses_keys_that_exist(compose: dict[str, Any], service: dict[str, Any]) -> None:
    assert set(compose) == {"name", "services"}
    assert set(service) <= SERVICE_KEYS
    assert set(service["healthcheck"]) == HEALTH_KEYS
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "${GPU_COUNT:-1}", "capabilities": ["gpu"]}
    ]
    for duration in (
        service["stop_grace_period"],
        *(service["healthcheck"][key] for key in ("interval", "timeout", "start_period")),
    ):
        assert re.fullmatch(r"\d+[smh]", duration)


def test_every_variable_is_in_the_example_with_the_same_default() -> None:
    example = environment()
    used = VARIABLE.findall((DOCKER / "compose.yaml").read_text())
    assert {name for name, _kind, _value in used} == set(example)
    for name, kind, value in used:
        assert kind, f"{name} has neither a default nor an error"
        if kind == "-":
            assert example[name] == value


def test_compose_is_as_careful_as_the_command(service: dict[str, Any], tmp_path: Path) -> None:
    command = docker_command("image", tmp_path, ["x"], name="n", devices=[0], published=INSIDE)
    assert f"--user={service['user']}" in command
    assert f"--cap-drop={service['cap_drop'][0]}" in command
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert f"--shm-size={service['shm_size']}" in command
    for name, limit in service["ulimits"].items():
        assert f"--ulimit={name}={limit}" in command
    (volume,) = service["volumes"]
    assert volume["target"] == MOUNT
    assert volume["read_only"] is True
    assert volume["bind"] == {"create_host_path": False}
    # Triton's own exit timeout must end before Docker loses patience.
    assert int(service["stop_grace_period"].rstrip("s")) > EXIT_TIMEOUT_S


def test_ports_are_on_loopback_unless_told_otherwise(service: dict[str, Any]) -> None:
    inside = [INSIDE.http, INSIDE.grpc, INSIDE.metrics]
    assert [int(port.rpartition(":")[2]) for port in service["ports"]] == inside
    assert all(port.startswith("${HOST:-127.0.0.1}:") for port in service["ports"])


def test_image_and_compose_agree(service: dict[str, Any]) -> None:
    found = dict(instructions())
    assert found["FROM"] == "${TRITON_IMAGE}"
    assert found["USER"] == USER == service["user"]
    assert found["EXPOSE"].split() == [str(p) for p in (INSIDE.http, INSIDE.grpc, INSIDE.metrics)]
    assert yaml.safe_load(found["CMD"]) == service["command"]
    health = found["HEALTHCHECK"]
    assert yaml.safe_load(health[health.index("[") :]) == service["healthcheck"]["test"][1:]
    for key in ("interval", "timeout", "start-period", "retries"):
        value = service["healthcheck"][key.replace("-", "_")]
        assert f"--{key}={value}" in shlex.split(health)
    assert service["build"]["dockerfile"] == "docker/Dockerfile"


def test_the_launcher_is_copied_and_not_ignored() -> None:
    copied = [rest.split() for name, rest in instructions() if name == "COPY"]
    assert [words[1] for words in copied] == ["pipeline/targets/tensorrt/serve/container.py"]
    assert (PROJECT / copied[0][1]).is_file()
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert f"!{copied[0][1]}" in ignored
    assert copied[0][2] == "/opt/trtllm-pipeline/launch.py"


def test_no_instruction_fetches_anything() -> None:
    assert {name for name, _rest in instructions()} == {
        *("ARG", "FROM", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "CMD")
    }


def test_compose_itself_accepts_the_file() -> None:
    if not shutil.which("docker") or objection(["docker", "compose", "version"]):
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "--file", str(DOCKER / "compose.yaml")]
    command += ["--env-file", str(DOCKER / ".env.example"), "config", "--quiet"]
    assert objection(command) is None


@pytest.mark.parametrize("name", sorted(path.name for path in DOCKER.glob("*Dockerfile")))
def test_hadolint_accepts_each_dockerfile(name: str, tmp_path: Path) -> None:
    # Installed beside the interpreter, which need not be on the PATH.
    program = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if not program:
        pytest.skip("hadolint is not installed")
    assert objection([program, str(DOCKER / name)]) is None
    worse = tmp_path / "Dockerfile"
    worse.write_text((DOCKER / name).read_text() + "RUN cd /tmp && sudo true\n")
    assert "DL3004" in str(objection([program, str(worse)]))


def test_each_dockerfile_gets_what_it_copies_and_no_root() -> None:
    for path in DOCKER.glob("*Dockerfile"):
        ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
        assert "*" in ignored
        text = path.read_text().replace("\\\n", " ")
        for words in (line.split() for line in text.splitlines() if line.startswith("COPY")):
            sources = [word for word in words[1:-1] if not word.startswith("--")]
            assert {f"!{source}" for source in sources} <= set(ignored), path.name
            assert all((PROJECT / source).exists() for source in sources)
        users = [line for line in text.splitlines() if line.startswith("USER")]
        assert users[-1] == f"USER {USER}", path.name


def test_the_compose_schema_accepts_the_file() -> None:
    # Installed beside the interpreter, which need not be on the PATH.
    program = shutil.which("check-jsonschema", path=Path(sys.executable).parent)
    if not program:
        pytest.skip("check-jsonschema is not installed")
    schema = ["--builtin-schema", "vendor.compose-spec"]
    assert objection([program, *schema, str(DOCKER / "compose.yaml")]) is None
