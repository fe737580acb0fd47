"""The command ``targets``: of nothing, of a recipe, of a model's folder, and into a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.cli.targets import BEGIN, END
from pipeline.errors import UsageError
from pipeline.formats import FORMATS
from pipeline.targets import TARGETS
from tests.conftest import DEMO_MODEL, PROJECT

DEMO = PROJECT / "configs/demo.yaml"


def said(*arguments: object) -> str:
    found = CliRunner().invoke(app, ["targets", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_every_target_is_a_column_and_every_format_a_row() -> None:
    lines = said().splitlines()
    head = next(line for line in lines if line.startswith("format "))
    assert head.split()[1:] == list(TARGETS)
    assert {line.split(" ")[0] for line in lines} >= set(FORMATS)
    assert max(map(len, lines[: lines.index("")])) <= 80


def test_a_recipe_is_asked_about_with_its_own_keys() -> None:
    cells = json.loads(said(DEMO, "--set", "compile.tensor_parallel=4", "--json"))["cells"]
    found = {(cell["format"], cell["target"]): cell for cell in cells}
    # ModelOpt cannot give copies of two KV heads to four ranks; what we write ourselves can.
    assert found["int8_sq", "openvino"]["taken"] is False
    assert "cannot repeat 2 KV heads over 4 ranks" in found["int8_sq", "openvino"]["what"]
    assert found["int8_wo", "openvino"]["taken"]


def test_a_models_folder_is_enough() -> None:
    document = json.loads(said(DEMO_MODEL, "--json"))
    assert document["model"] == str(DEMO_MODEL)
    nf4 = {c["target"]: c for c in document["cells"] if c["format"] == "nf4"}
    assert nf4["openvino"] == {
        "format": "nf4",
        "target": "openvino",
        "taken": True,
        "needs": {},
        "what": None,
        "why": None,
        "fix": None,
    }
    assert "int4_awq or int4_gptq" in nf4["tensorrt"]["fix"]


def test_a_page_gets_the_table_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nEARLIER\n{END}\nafter\n")
    said("--into", page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n| format |")
    assert text.endswith(f"</details>\n\n{END}\nafter\n")
    assert "EARLIER" not in text
    again = text
    said("--into", page)
    assert page.read_text() == again
    page.write_text("none\n")
    with pytest.raises(UsageError, match="has no place for the table"):
        said("--into", page)
