"""What serve prints to copy: units that systemd takes, compose files of the specification."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli.main import app
from pipeline.errors import UsageError
from pipeline.service.systemd import unit_text
from pipeline.targets.openvino.compose import IMAGE, MOUNT
from pipeline.targets.tensorrt.serve.container import EXIT_TIMEOUT_S
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from pipeline.triton.by_hand import by_hand
from tests.conftest import PROJECT
from tests.unit.test_launch import published

TARGETS = ("openvino", "tensorrt")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app(["serve", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def objection(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else None


def verified(unit: Path) -> str | None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    # As far as the unit itself goes: this machine need not run docker.
    text = unit.read_text().replace("Requires=docker.service\n", "")
    unit.write_text(text.replace("SupplementaryGroups=docker\n", ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    # It warns of unknown keys and goes on.
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    return "\n".join(said) or (done.stderr if done.returncode else None)


@pytest.mark.parametrize("target", TARGETS)
def test_systemd_takes_the_unit(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = published(tmp_path, target)
    drain = ("--drain", "120")
    text = printed(capsys, str(repository), "--print", "systemd", *drain, "--grpc-port", "9001")
    (tmp_path / "unit.service").write_text(text)
    assert verified(tmp_path / "unit.service") is None
    keys = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))
    assert keys["ExecStart"].endswith(
        f" serve {repository} --host=127.0.0.1 --grpc-port=9001 --metrics-port=8002 --drain=120 "
        "--log=-"
    )
    assert int(keys["TimeoutStopSec"]) > 120 + 15
    assert (keys["Restart"], keys["KillMode"]) == ("on-failure", "mixed")
    assert ("docker.service" in text) == (target == "tensorrt")


def test_a_key_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nTimeoutStopSecs=5\n")
    assert "TimeoutStopSecs" in (verified(unit) or "")


def test_words_of_a_unit_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "50% off $HOME; 'my' \"models\" \\ here"
    folder.mkdir()
    command = ["/bin/echo", str(folder), ";"]
    text = unit_text(command, folder, "x", exit_timeout_s=5, container=False)
    (tmp_path / "quoted.service").write_text(text)
    assert verified(tmp_path / "quoted.service") is None
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    assert line == (f'/bin/echo "{tmp_path}/50%% off $$HOME; \'my\' \\"models\\" \\\\ here" ";"')
    with pytest.raises(UsageError, match="cannot stand in a unit"):
        unit_text(
            ["/bin/echo", "a\nExecStartPre=b"], folder, "x", exit_timeout_s=5, container=False
        )


def service_of(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text)["services"]["triton"])


@pytest.mark.parametrize("target", TARGETS)
def test_compose_files_keep_to_the_specification(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = published(tmp_path, target)
    text = printed(capsys, str(repository), "--print", "compose", "--grpc-port", "9001")
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    program = shutil.which("check-jsonschema", path=Path(sys.executable).parent)
    if program:
        assert objection([program, "--builtin-schema", "vendor.compose-spec", str(file)]) is None
    service = service_of(text)
    others = ["127.0.0.1:9001:8001", "127.0.0.1:8002:8002"]
    # A GPU's ranks are asked over HTTP, on loopback; of the CPU's it is inside alone.
    http = ["127.0.0.1:8000:8000"] if target == "tensorrt" else []
    assert service["ports"] == [*http, *others]
    asked = printed(capsys, str(repository), "--print", "compose", "--http-port", "9000")
    assert service_of(asked)["ports"][0] == "127.0.0.1:9000:8000"
    wide = service_of(printed(capsys, str(repository), "--print", "compose", "--host", "0.0.0.0"))
    assert wide["ports"] == ["0.0.0.0:8001:8001", "0.0.0.0:8002:8002"]
    (volume,) = service["volumes"]
    assert (volume["source"], volume["read_only"]) == (str(repository), True)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "on-failure"
    assert json.loads(printed(capsys, str(repository), "--print", "compose", "--json"))["text"]


def test_a_gpus_http_is_on_loopback_where_nobody_asked_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (str(published(tmp_path, "tensorrt")), "--host", "0.0.0.0", "--print", "command")
    text = printed(capsys, *options)
    assert "--publish=127.0.0.1:8000:8000" in text
    assert "--publish=0.0.0.0:8001:8001" in text
    assert "--publish=0.0.0.0:9000:8000" in printed(capsys, *options, "--http-port", "9000")


def test_the_gpus_file_starts_what_the_command_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = published(tmp_path, "tensorrt")
    options = (str(repository), "--devices", "1", "--drain", "90")
    service = service_of(printed(capsys, *options, "--print", "compose"))
    command = json.loads(printed(capsys, *options, "--print-command", "--json"))["command"]
    image = command.index(DEFAULT_CONTAINER.image)
    assert [service["image"], *service["command"]] == command[image:]
    assert f"--user={service['user']}" in command
    assert f"--shm-size={service['shm_size']}" in command
    assert {f"--ulimit={name}={limit}" for name, limit in service["ulimits"].items()} <= {*command}
    assert {f"--env={name}={value}" for name, value in service["environment"].items()} <= {*command}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}
    assert "--exit-timeout-secs=90" in service["command"]
    assert int(service["stop_grace_period"].rstrip("s")) > 90 + 15
    assert EXIT_TIMEOUT_S != 90


def test_the_cpus_file_and_its_image_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, str(published(tmp_path, "openvino")), "--print", "compose")
    service = service_of(text)
    assert service["image"] == IMAGE
    docker = PROJECT / "docker" / "cpu.Dockerfile"
    build = f"docker build --file docker/cpu.Dockerfile --tag {IMAGE} ."
    assert build in text
    assert build in docker.read_text()
    assert '\nENTRYPOINT ["trtllm-pipeline"]\n' in docker.read_text()
    (volume,) = service["volumes"]
    assert service["command"][:2] == ["serve", volume["target"]] == ["serve", MOUNT]
    # The program's own parser takes the words.
    from typer.main import get_command

    (serve,) = [c for name, c in vars(get_command(app))["commands"].items() if name == "serve"]
    context = serve.make_context("serve", service["command"][1:])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["log"] == "-"
    ports = [int(port.rpartition(":")[2]) for port in service["ports"]]
    names = ("grpc_port", "metrics_port")
    assert [context.params[name] for name in names] == ports
    assert f":{context.params['http_port']}/" in " ".join(service["healthcheck"]["test"])
    copied = re.findall(r"^COPY (.*) \S+$", docker.read_text(), re.M)
    kept = (PROJECT / "docker" / "cpu.Dockerfile.dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (PROJECT / name).exists()
        assert f"!{name}" in kept


def test_a_server_is_seen_to_be_ready_past_a_proxy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docker's client hands its own proxies on to every container."""
    service = service_of(
        printed(capsys, str(published(tmp_path, "openvino")), "--print", "compose")
    )
    _, _, *words = service["healthcheck"]["test"]

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    def check(port: int) -> int:
        command = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in words)]
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        env = {**kept, "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode

    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert check(server.server_port) == 0
        finally:
            server.shutdown()
            thread.join()
    assert check(1) != 0


def test_dollars_are_not_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "$HOME"
    shutil.copytree(published(tmp_path, "openvino"), folder)
    service = service_of(printed(capsys, str(folder), "--print", "compose"))
    assert service["volumes"][0]["source"] == f"{tmp_path}/$$HOME"


def test_a_line_break_in_a_path_does_not_end_the_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two\nlines"
    shutil.copytree(published(tmp_path, "openvino"), folder)
    service = service_of(printed(capsys, str(folder), "--print", "compose"))
    assert service["volumes"][0]["source"] == str(folder)


def test_an_environment_in_a_folder_with_a_space_is_handed_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", "/my $venv's")
    ports = {"grpc_port": 1, "http_port": 2, "metrics_port": 3}
    *_, command = by_hand(tmp_path, "127.0.0.1", ports, 5).lines.partition("\nexec env ")
    words = command.replace(" \\\n", " ").split(" LD_LIBRARY_PATH=")[0]
    script = f"run=/the/run PATH=/old; printf %s {words}"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "PATH=/the/run/bin:/my $venv's/bin:/old"


def test_a_drain_that_no_server_could_keep_is_refused(tmp_path: Path) -> None:
    repository = published(tmp_path, "openvino")
    with pytest.raises(typer.BadParameter, match="86400"):
        app(["serve", str(repository), "--print=command", "--drain=86401"], standalone_mode=False)


@pytest.mark.parametrize("form", ["command", "systemd", "compose"])
def test_a_port_that_is_picked_later_cannot_be_printed(form: str, tmp_path: Path) -> None:
    repository = published(tmp_path, "openvino")
    with pytest.raises(UsageError, match=f"--print {form} needs the numbers of all ports"):
        app(["serve", str(repository), "--print", form, "--http-port=0"], standalone_mode=False)


def test_options_of_gpus_are_refused_in_every_form(tmp_path: Path) -> None:
    repository = published(tmp_path, "openvino")
    for form in ("command", "systemd", "compose"):
        with pytest.raises(UsageError, match="are for repositories of the tensorrt target"):
            app(["serve", str(repository), "--print", form, "--mpirun"], standalone_mode=False)
