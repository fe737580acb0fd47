"""The Triton models import nothing that their container lacks, and nothing of ``pipeline``."""

from __future__ import annotations

import ast
import sys

import pytest

from ..conftest import PROJECT

# NVIDIA's image has these for its own preprocessing and postprocessing models; Triton makes the
# last one.
ANYWHERE = frozenset(("numpy", "tokenizers", "triton_python_backend_utils"))
# Each of the engines' fronts is in the repositories of its own target alone; TensorRT-LLM itself
# needs yaml.
MORE = {
    "tensorrt_llm": frozenset(("openvino", "openvino_genai")),
    "llmapi": frozenset(("tensorrt_llm", "yaml")),
}
MODELS = sorted(path.name for path in (PROJECT / "model_repo").iterdir() if path.is_dir())


def imported(text: str) -> set[str]:
    """The packages that a source text imports anywhere, relative ones left out."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("model", [name for name in MODELS if name != "__pycache__"])
def test_a_model_imports_what_its_container_has(model: str) -> None:
    allowed = sys.stdlib_module_names | ANYWHERE | MORE.get(model, frozenset())
    files = sorted((PROJECT / "model_repo" / model).rglob("*.py"))
    found = {
        f"{path.name} imports {name}"
        for path in files
        for name in imported(path.read_text(encoding="utf-8")) - allowed
    }
    assert found == set()


def test_every_kind_of_import_is_seen() -> None:
    text = "import a.b\nfrom c.d import e\nfrom .f import g\ndef h():\n    import i"
    assert imported(text) == {"a", "c", "i"}
