"""The client as a distribution of its own: what it imports and what it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from pipeline import __version__
from tests.conftest import PROJECT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLIENT = PROJECT / "client"


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
