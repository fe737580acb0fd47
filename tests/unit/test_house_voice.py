"""One voice: the docstring of a public function says first what it does ("Returns", "Reads")."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from pipeline.cli.main import app, store_app

from ..conftest import PROJECT

Function = ast.FunctionDef | ast.AsyncFunctionDef
# To grow: the files of these patterns speak in one voice; those of other rooms do not all yet.
ROOMS = (
    "pipeline/*.py",
    "pipeline/targets/*.py",
    "pipeline/targets/openvino/**/*.py",
    "pipeline/targets/tensorrt/*.py",
    "pipeline/targets/tensorrt/build/**/*.py",
    "pipeline/targets/tensorrt/lora/**/*.py",
    "pipeline/targets/tensorrt/plan/**/*.py",
    "pipeline/targets/tensorrt/serve/**/*.py",
    "pipeline/targets/tensorrt/trial/**/*.py",
    *(
        f"pipeline/{room}/**/*.py"
        for room in (
            *("bench", "checkpoint", "cli", "effort", "evaluation", "gateway", "harness"),
            *("layers", "models", "preflight", "progress", "quantize"),
            *("recipe", "reference", "report", "running", "source", "stages", "store", "triton"),
            *("ladder", "manifests", "monitoring", "scaffold", "verdict"),
        )
    ),
    "client/trtllm_client/*.py",
)
# Words that end like a verb of the third person and are none.
NO_VERBS = frozenset(
    (
        *("always", "as", "does", "has", "is", "its", "less", "this", "unless", "was"),
        *("bits", "bytes", "features", "findings", "kernels", "keys", "lines", "milliseconds"),
        *("numbers", "options", "positions", "process", "properties", "ranks", "rows", "seconds"),
        *("texts", "tokens", "versions", "warnings", "weights", "windows"),
    )
)


def is_verb(word: str) -> bool:
    """Whether a word may open a docstring: ``Reads``, but not ``The``, ``Bytes`` or ``Read``."""
    return word.isalpha() and word.endswith("s") and word.lower() not in NO_VERBS


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """The public functions and methods of a module by qualified name; those within others not."""
    for child in getattr(node, "body", []):
        name = getattr(child, "name", "_")
        if name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{name}", child


def is_property(function: Function) -> bool:
    """Whether it is read like an attribute, whose docstring may name the value."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(name.endswith(("property", ".setter")) for name in decorators)


def without_a_verb(text: str) -> Iterator[str]:
    """Functions of a source text whose docstring opens with something else, and its first words."""
    for name, function in functions(ast.parse(text)):
        words = (ast.get_docstring(function) or "").split()
        if words and not is_property(function) and not is_verb(words[0].strip(".,:;")):
            yield f"{name}: {' '.join(words[:6])}"


def commands() -> set[str]:
    """The commands' functions: their docstrings are help, which speaks in the imperative."""
    told = [app.registered_callback, *app.registered_commands, *store_app.registered_commands]
    called = [info.callback for info in told if info is not None]
    return {f"{call.__module__}.{call.__qualname__}" for call in called if call is not None}


@pytest.mark.parametrize("room", ROOMS)
def test_a_docstring_opens_with_what_the_function_does(room: str) -> None:
    paths = sorted(PROJECT.glob(room))
    assert paths, f"{room} is not there"
    spoken = commands()
    found = []
    for path in paths:
        place = path.relative_to(PROJECT).with_suffix("")
        found += [
            f"{place}.py: {line}"
            for line in without_a_verb(path.read_text(encoding="utf-8"))
            if ".".join([*place.parts, line.partition(":")[0]]) not in spoken
        ]
    assert found == [], "open with a verb, as 'Returns ...' or 'Checks ...'"


def test_the_commands_are_known() -> None:
    assert {
        "pipeline.cli.run.run",
        "pipeline.cli.store.list_",
        "pipeline.cli.main.root",
    } <= commands()


@pytest.mark.parametrize(
    "opening",
    ["The keys.", "Bytes of it.", "Whether it is.", "Read it.", "``x`` as text.", "[..., K]."],
)
def test_an_opening_without_a_verb_is_found(opening: str) -> None:
    named = f"f: {' '.join(opening.split()[:6])}"
    assert list(without_a_verb(f'def f():\n    """{opening}"""')) == [named]
    method = f'class C:\n    async def f(self):\n        """{opening}"""'
    assert list(without_a_verb(method)) == [f"C.{named}"]


@pytest.mark.parametrize(
    "text",
    [
        'def f():\n    """Reads it."""',
        'def f():\n    """Refuses: it never works."""',
        "def f():\n    pass",
        'def _f():\n    """The keys."""',
        'class _C:\n    def f(self):\n        """The keys."""',
        'class C:\n    """The keys."""\n    @property\n    def f(self):\n        """The keys."""',
        'def f():\n    """Makes g."""\n    def g():\n        """The keys."""',
    ],
)
def test_other_docstrings_are_let_through(text: str) -> None:
    assert list(without_a_verb(text)) == []
