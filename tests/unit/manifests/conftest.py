"""Builds of both targets, in each shape that is deployed in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .support import measured_report, write_build


def hub_recipe(folder: Path) -> dict[str, Any]:
    """A recipe whose model is the Hub's, and whose texts lie here."""
    for name in ("calibration.jsonl", "heldout.jsonl"):
        (folder / name).write_text('{"text": "One {{ two }} three.\\n\\u2028"}\n')
    return {
        "schema": 1,
        "name": "a-model",
        "model": {"source": "someone/a-model", "revision": None},
        "quantize": {
            "format": "int4_awq",
            "calibration": {"text": str(folder / "calibration.jsonl")},
        },
        "evaluate": {"text": str(folder / "heldout.jsonl")},
        "compile": {"target": "openvino"},
    }


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories by what is special about them."""
    root = tmp_path_factory.mktemp("builds")
    hub = measured_report(recipe=hub_recipe(root), model={"commit": "0" * 40})
    return {
        "cpu": write_build(root / "cpu", report=measured_report()),
        "unmeasured": write_build(root / "unmeasured"),
        "from-the-hub": write_build(root / "from-the-hub", report=hub),
        "gpu": write_build(root / "gpu", "tensorrt", report=measured_report(90.0)),
        "gpus": write_build(root / "gpus", "tensorrt", tp=4, report=measured_report(400.0)),
        "nodes": write_build(root / "nodes", "tensorrt", tp=8, pp=2),
    }
