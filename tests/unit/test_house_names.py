"""A compile target is known by name only where it lives.

What counts is the program: identifiers, parts of imported names and string constants. Comments and
docstrings may name what they explain.

Two rules keep the names of products apart from the names of targets:

* ``tensorrt_llm``, in any of its spellings (``tensorrt-llm``, ``tensorrtllm``, ``TensorRT-LLM``),
  is the package, the checkpoint format and the Triton model of every target, so it is taken out
  before anything is looked for.
* In a string a target's name is in lower case, as the recipe writes it. ``OpenVINO`` and
  ``TensorRT`` in a sentence are products. In identifiers the case does not matter:
  ``OpenVinoTarget`` knows its target as well as ``openvino_engine`` does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.targets import TARGETS
from tests.unit.source_text import docstrings_of, words_of

PACKAGE = Path(__file__).parents[2] / "pipeline"
PRODUCT = re.compile(r"tensorrt[-_]?llm", re.IGNORECASE)
NAME = re.compile("|".join(TARGETS))

# Where targets live: their folder, with the table, and the recipe, which lists their options.
HOMES = ("targets/", "recipe")


def known_targets(source: str) -> Iterator[str]:
    """The places in a module's text that know a target, as line and word."""
    tree = ast.parse(source)
    docstrings = docstrings_of(tree)
    for node in ast.walk(tree):
        yield from (
            f"{getattr(node, 'lineno', 0)}: {word}"
            for word in words_of(node)
            if _names_target(word)
        )
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if id(node) not in docstrings and NAME.search(PRODUCT.sub("", text)):
                yield f"{node.lineno}: {text!r}"


def _names_target(identifier: str) -> bool:
    return NAME.search(PRODUCT.sub("", identifier).lower()) is not None


@pytest.mark.parametrize(
    "source",
    [
        'if target == "openvino": pass',
        'needs("compile.tensorrt.workers")',
        'f"compile.openvino.{name}"',
        "from pipeline.targets.tensorrt.plan import rules",
        "import pipeline.targets.openvino",
        "def openvino_engine(): pass",
        "class TensorRtTarget: pass",
        "recipe.compile.tensorrt",
        "run(openvino=1)",
        "def f(tensorrt): pass",
        'PLACE = b"openvino_model.xml"',
    ],
)
def test_a_module_that_knows_a_target_is_found(source: str) -> None:
    assert len(list(known_targets(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""The target openvino."""',
        'X = 1\n"""What openvino takes."""',
        "X = 1  # tensorrt",
        'ENGINE, BLS = "tensorrt_llm", "tensorrt_llm_bls"',
        'versions("tensorrt-llm")',
        "modelopt.torch_to_tensorrt_llm_checkpoint()",
        'X = "TensorRT casts it; OpenVINO does not"',
    ],
)
def test_products_and_explanations_are_no_targets(source: str) -> None:
    assert list(known_targets(source)) == []


def test_no_module_outside_the_targets_knows_one_by_name() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(HOMES):
            source = path.read_text(encoding="utf-8")
            found += [f"{place}:{knows}" for knows in known_targets(source)]
    for path in sorted(PACKAGE.rglob("*.j2")):
        place = path.relative_to(PACKAGE).as_posix()
        text = PRODUCT.sub("", path.read_text(encoding="utf-8"))
        if not place.startswith(HOMES) and NAME.search(text):
            found.append(f"{place} names a target")
    assert not found, "\n".join(found)
