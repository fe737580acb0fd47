"""Whose fault the client says it is when a model of this repository refuses a request.

Errors of a stream have no code, so their words alone decide. The words are read out of the models'
sources, with a number in place of each value.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from trtllm_client import InvalidRequest
from trtllm_client._errors import error_from_message

from ...conftest import PROJECT

ERRORS = ("RequestError", "CallError", "PromptError", "GuideError")
SERVERS = ("INTERNAL", "UNAVAILABLE")
# No request has this in its answer: it is raised before the model is ready.
NOT_ANSWERED = "while warming up"
VALUE = "7"
# Functions that return a refusal's text.
SAYS_WHY = re.compile(r"\w+_problem$|not_\w+$")


class Refusal(NamedTuple):
    """A text in the sources, and the code that is given with it; None is the default."""

    place: str
    text: str
    code: str | None


def text_of(node: ast.expr, constants: dict[str, str]) -> str | None:
    """The text of an expression, with a number for each value; None where it has none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        known = text_of(inner, constants) if isinstance(inner, ast.Name | ast.Constant) else None
        parts.append(VALUE if known is None else known)
    return "".join(parts)


def code_of(call: ast.Call) -> str | None:
    given = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    if not given:
        return None
    if isinstance(given[0], ast.Constant):
        return str(given[0].value)
    return given[0].attr if isinstance(given[0], ast.Attribute) else None


@cache
def refusals() -> tuple[Refusal, ...]:
    return tuple(_refusals())


def _refusals() -> Iterator[Refusal]:
    for path in sorted((PROJECT / "model_repo").glob("*/*.py")):
        if path.is_symlink():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: text
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and (text := text_of(node.value, {})) is not None
        }
        place = path.parent.name + "/" + path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ERRORS and node.args:
                    text = text_of(node.args[0], constants)
                    if text and text.replace(VALUE, "") and NOT_ANSWERED not in text:
                        yield Refusal(f"{place}:{node.lineno}", text, code_of(node))
            elif isinstance(node, ast.FunctionDef) and SAYS_WHY.match(node.name):
                for part in ast.walk(node):
                    if isinstance(part, ast.Return) and part.value is not None:
                        text = text_of(part.value, constants)
                        if text is not None:
                            yield Refusal(f"{place}:{part.lineno}", text, None)


def test_the_sources_were_read() -> None:
    texts = [refusal.text for refusal in refusals()]
    assert len(texts) > 60
    assert "the input text_input is missing" in texts
    assert any("plus 7 7 is 7; the engine was compiled for" in text for text in texts)


@pytest.mark.parametrize("refusal", refusals(), ids=lambda refusal: refusal.place)
def test_who_is_to_blame(refusal: Refusal) -> None:
    found = type(error_from_message(refusal.text, "here"))
    assert (found is InvalidRequest) == (refusal.code not in SERVERS), refusal.text
