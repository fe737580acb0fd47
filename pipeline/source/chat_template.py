"""The token that a chat template puts behind an answer of the assistant.

Templates are rendered as transformers renders them (``utils/chat_template_utils.py`` of 4.57), in
Jinja's immutable sandbox: a model's files are not trusted to run code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.reading.files import read_utf8

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE_FILE = "chat_template.jinja"
# No template trims, splits or escapes it.
_ANSWER = "ANSWER"
_QUESTION = {"role": "user", "content": "QUESTION"}
_CHAT = (_QUESTION, {"role": "assistant", "content": _ANSWER})


class TemplateError(ValueError):
    """The template cannot be rendered; the text is the reason, without its full stop."""


def find_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Finds a model's own template; None where it has none.

    The file of its own comes first, as in transformers; of several named templates the default one
    counts.

    Raises:
        OSError: The file cannot be read.
        TemplateError: It is not UTF-8.
    """
    path = directory / TEMPLATE_FILE
    if path.is_file():
        try:
            return read_utf8(path)
        except UnicodeDecodeError as error:
            raise TemplateError(f"{TEMPLATE_FILE} is not UTF-8") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    elif isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def turn_end(template: str, special: Mapping[str, Any], tokens: Collection[str]) -> str | None:
    """Finds the token that follows an answer, with nothing but white space between them.

    Where another question follows the answer it must be the same token: what differs there opens
    the next turn and does not close this one.

    Args:
        template: Jinja source.
        special: What templates know of the tokenizer, such as ``bos_token``.
        tokens: Texts of the added tokens; nothing else counts.

    Returns:
        None when an answer ends with ordinary text, or with nothing.

    Raises:
        TemplateError: It cannot be rendered, or does not show the answer.
    """
    try:
        compiled = _compile(template)
        texts = [
            compiled.render(
                messages=list(chat),
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **special,
            )
            for chat in (_CHAT, (*_CHAT, _QUESTION))
        ]
    # A template can do anything wrong that an expression can.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise TemplateError(f"{type(error).__name__}: {reason}") from error
    if any(_ANSWER not in text for text in texts):
        raise TemplateError("It does not show the assistant's answer")
    end, in_between = (_token_after_answer(text, tokens) for text in texts)
    return end if in_between in (end, None) else None


def _token_after_answer(text: str, tokens: Collection[str]) -> str | None:
    rest = text.rpartition(_ANSWER)[2].lstrip()
    following = [token for token in tokens if token.strip() and rest.startswith(token)]
    return max(following, key=len, default=None)


def _compile(source: str) -> Template:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError as JinjaTemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks answers for training and changes no text."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja's own interface

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise JinjaTemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(source)
