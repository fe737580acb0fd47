"""One machine: compose files and units."""

from __future__ import annotations

import configparser
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from .support import files_of
from .test_kubernetes import accepted
from .tools import program, said


@pytest.mark.parametrize("shape", ["cpu", "gpus"])
def test_the_compose_schema_accepts_the_file(
    shape: str, builds: dict[str, Path], tmp_path: Path
) -> None:
    checker = program("check-jsonschema")
    text = files_of(builds[shape], "compose", "gateway.keySecret=x")["compose.yaml"]
    path = tmp_path / "compose.yaml"
    path.write_text(text)
    schema = ("--builtin-schema", "vendor.compose-spec")
    code, words = said(checker, *schema, str(path))
    assert code == 0, words
    if shape == "cpu":
        path.write_text(text.replace("depends_on", "depends_at"))
        assert said(checker, *schema, str(path))[0] == 1


def test_the_gateway_is_beside_the_server(builds: dict[str, Path]) -> None:
    text = files_of(builds["cpu"], "compose", "gateway.keySecret=x", "image=own/server:1")
    services = yaml.safe_load(text["compose.yaml"])["services"]
    server, gateway = services["triton"], services["gateway"]
    assert server["image"] == "own/server:1"
    assert "--url=grpc://triton:8001?metrics=8002" in gateway["command"]
    assert "&id" not in text["compose.yaml"]
    for service in (server, gateway):
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert all(volume["read_only"] for volume in service["volumes"])
        accepted(service["command"])
    # The key is named and never written.
    assert gateway["environment"]["OPENAI_API_KEY"] is None
    assert "--key-from=OPENAI_API_KEY" in gateway["command"]
    stops = [int(service["stop_grace_period"].rstrip("s")) for service in (server, gateway)]
    drains = [word for s in (server, gateway) for word in s["command"] if "--drain" in word]
    assert all(stop > int(word.partition("=")[2]) for stop, word in zip(stops, drains, strict=True))


@pytest.mark.parametrize("shape", ["cpu", "gpu"])
def test_systemd_accepts_the_units(shape: str, builds: dict[str, Path], tmp_path: Path) -> None:
    checker = program("systemd-analyze")
    units = files_of(builds[shape], "systemd", "gateway.keySecret=x")
    assert len(units) == 2
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    # Docker's own unit is not on every machine that writes one for another.
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    code, words = said(checker, "verify", *(str(tmp_path / name) for name in units))
    complaints = [line for line in words.splitlines() if str(tmp_path) in line]
    assert (code, complaints) == (0, [])


def test_the_gateways_unit_starts_the_command_and_outlives_the_server(
    builds: dict[str, Path],
) -> None:
    units = files_of(builds["cpu"], "systemd")
    name = next(name for name in units if name.endswith("-gateway.service"))
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(units[name])
    words = shlex.split(parsed["Service"]["ExecStart"])
    assert Path(words[0]).parent == Path(sys.executable).parent
    assert accepted(words[1:])["host"] == "127.0.0.1"
    server = name.replace("-gateway", "")
    assert server in parsed["Unit"]["After"]
    assert server in parsed["Unit"]["Wants"]
    assert not {"Requires", "BindsTo"} & set(parsed["Unit"])
    assert "--url=grpc://127.0.0.1:8001?metrics=8002" in words
