"""The command line's surface: light start-up, help, and the README that shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from ..conftest import PROJECT

HEAVY = ("torch", "transformers", "modelopt", "openvino", "numpy", "tritonclient", "grpc", "rich")


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "pipeline.plan", "pipeline.run", "pipeline.recipe_file"]
)
def test_start_up_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(_python("-c", code).stdout.split())
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_the_client_needs_tritonclient_only() -> None:
    code = "import sys, pipeline.client; print(*sys.modules)"
    loaded = set(_python("-c", code).stdout.split())
    unwanted = {"torch", "transformers", "modelopt", "openvino", "pydantic", "yaml", "typer"}
    assert loaded.isdisjoint(unwanted), loaded & unwanted


def test_help_names_every_command() -> None:
    text = _python("-m", "pipeline", "--help").stdout
    for command in (
        "run plan serve generate verify bench compare doctor store".split()  # noqa: SIM905
    ):
        assert re.search(rf"\b{command}\b", text), command


def test_the_readme_shows_the_help_as_it_is() -> None:
    readme = (PROJECT / "README.md").read_text()
    shown = re.search(r"```\n\$ trtllm-pipeline --help\n(.*?)```", readme, re.DOTALL)
    assert shown, "the README has no --help block"
    text = _python("-m", "pipeline", "--help").stdout
    assert _words(shown[1]) == _words(text.replace("python -m pipeline", "trtllm-pipeline"))


def _words(text: str) -> list[str]:
    # Box-drawing characters and widths depend on the terminal, the words do not.
    return re.findall(r"[\w\-.,;:/`'()]+", text)


def test_the_version() -> None:
    from pipeline import __version__

    assert _python("-m", "pipeline", "--version").stdout.strip() == __version__
