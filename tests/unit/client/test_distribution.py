"""The client as a distribution of its own: what it imports, what it brings, what it sits beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline import __version__
from tests.conftest import PROJECT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLIENT = PROJECT / "client"
# What a user of the newest libraries has already.
BESIDE = ("transformers>=5", "numpy>=2", "openai")


def project(folder: Path) -> dict[str, object]:
    """The ``project`` table of a distribution."""
    table: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


def python(folder: Path, code: str) -> str:
    """What a program prints that runs in a folder and finds the client alone."""
    prelude = f"import sys; sys.path.insert(1, {str(CLIENT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_users_own_module_named_pipeline_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise RuntimeError('a user's own module')\n")
    told = python(tmp_path, "import trtllm_client; print(trtllm_client.Client.__name__)")
    assert told == "Client\n"


def test_every_module_works_without_the_tool(tmp_path: Path) -> None:
    """Also what is imported late: nothing of the tool, and none of its dependencies."""
    code = """
import importlib, pkgutil, sys
before = set(sys.modules)
for absent in ("pipeline", "pydantic", "yaml", "rich", "typer", "filelock", "huggingface_hub",
               "torch", "transformers", "typing_extensions"):
    sys.modules[absent] = None
import trtllm_client
for module in pkgutil.iter_modules(trtllm_client.__path__, "trtllm_client."):
    importlib.import_module(module.name)
with trtllm_client.Client("127.0.0.1:1") as client:
    print(client.is_ready())
"""
    assert python(tmp_path, code) == "False\n"


def test_it_depends_on_tritonclient_alone() -> None:
    (needed,) = (Requirement(text) for text in project(CLIENT)["dependencies"])
    assert (needed.name, needed.extras) == ("tritonclient", {"grpc"})
    assert not any(limit.operator in ("<", "<=", "==", "~=") for limit in needed.specifier)
    assert project(CLIENT)["requires-python"] == ">=3.10"
    assert (CLIENT / "trtllm_client" / "py.typed").is_file()


def test_the_tool_depends_on_the_client_of_its_own_version() -> None:
    import trtllm_client

    assert trtllm_client.__version__ == __version__
    needed = [Requirement(text) for text in project(PROJECT)["dependencies"]]
    (client,) = (need for need in needed if need.name == project(CLIENT)["name"])
    assert str(client.specifier) == f">={__version__}"


def test_the_base_has_no_upper_bound_that_only_the_quantizer_needs() -> None:
    table = project(PROJECT)
    base = {need.name: need for need in map(Requirement, table["dependencies"])}
    assert base["huggingface_hub"].specifier.contains("2.4.0")
    assert base["huggingface_hub"].specifier.contains("0.34.0")
    assert not {"numpy", "protobuf", "transformers"} & base.keys()
    quantizer = {
        need.name: need for need in map(Requirement, table["optional-dependencies"]["quantize"])
    }
    assert not quantizer["huggingface_hub"].specifier.contains("1.0.0")


def resolved(tmp_path: Path, *requirements: str) -> dict[str, str]:
    """What pip would install into an empty environment: versions by name."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    options = ["--quiet", "--disable-pip-version-check", "--retries", "0", "--timeout", "15"]
    done = subprocess.run(
        [*command, *options, "--report", str(report), str(CLIENT), *requirements],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode and not index_answers(tmp_path):
        pytest.skip("no package index answers here")
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in found}


def index_answers(tmp_path: Path) -> bool:
    """Whether pip finds a package that everybody has and this test is not about."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "0",
         "--timeout", "15", "--dest", str(tmp_path / "probe"), "hatchling"],
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.slow
def test_it_brings_few_distributions(tmp_path: Path) -> None:
    brought = resolved(tmp_path)
    assert {"trtllm-client", "tritonclient", "grpcio"} <= brought.keys()
    assert len(brought) <= 12, sorted(brought)


@pytest.mark.slow
def test_it_installs_beside_what_its_users_have(tmp_path: Path) -> None:
    brought = resolved(tmp_path, *BESIDE)
    assert int(brought["transformers"].partition(".")[0]) >= 5
    assert int(brought["numpy"].partition(".")[0]) >= 2
    assert "openai" in brought
