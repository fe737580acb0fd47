"""The forms of calls, and which one a model writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from pipeline.gateway.tools.grammars import NewGrammar, hermes, llama3, mistral


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls.

    Attributes:
        name: As an option names it.
        grammar: What reads a call; it is given the names of the functions that there are.
        begins: Letters that a call may begin with.
        separators: What may stand between two calls, beside space.
        markers: Tokens that belong to the form. Where a tokenizer has them as special tokens, their
            text must be kept.
        arguments: The member of a call's object that holds its arguments.
        short_ids: Whether the model's template takes no ids but those of nine letters and digits.
    """

    name: str
    grammar: Callable[[Collection[str]], NewGrammar]
    begins: str
    markers: tuple[str, ...]
    separators: str = ""
    arguments: str = "arguments"
    short_ids: bool = False


FORMS: Mapping[str, CallForm] = {
    form.name: form
    for form in (
        CallForm(
            "llama3",
            lambda names: partial(llama3, names),
            begins="{<",
            markers=("<|python_tag|>",),
            separators=";",
            arguments="parameters",
        ),
        CallForm(
            "hermes",
            lambda _: hermes,
            begins="<",
            markers=("<tool_call>", "</tool_call>"),
        ),
        CallForm(
            "mistral",
            lambda _: mistral,
            begins="[",
            markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
            short_ids=True,
        ),
    )
}
"""By name."""


def form_of(template: str) -> CallForm | None:
    """Finds the form that a chat template teaches; None where it teaches none of ours.

    Args:
        template: Its Jinja source.
    """
    if not renders_tools(template):
        return None
    if "<tool_call>" in template:
        # Qwen3-Coder has these tags, too, and XML in place of JSON between them.
        return None if "<function=" in template else FORMS["hermes"]
    if "[TOOL_CALLS]" in template:
        return FORMS["mistral"]
    llama = "<|start_header_id|>" in template and '"parameters": ' in template
    return FORMS["llama3"] if llama else None


def renders_tools(template: str) -> bool:
    """Tells whether a chat template knows ``tools`` at all.

    Args:
        template: Its Jinja source.
    """
    return "tools" in template
