"""Ollama's Modelfile; the grammar is that of ``docs/modelfile.mdx`` and ``parser/parser.go``."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import CompileError

_QUOTE, _QUOTES = '"', '"""'
# Without a template of its own a model completes texts, and Ollama would guess one.
_PLAIN = "{{ .Prompt }}"


def modelfile(
    file: str, num_ctx: int, stops: Sequence[str], *, chats: bool, licence: str | None
) -> str:
    """Writes a Modelfile.

    Args:
        file: The GGUF file, beside it.
        num_ctx: Tokens of prompt and answer together; Ollama's own default is 2048, whatever the
            model takes.
        stops: Texts that end an answer.
        chats: Whether the GGUF file has a chat template, which Ollama reads there. TEMPLATE is in
            Go's language and not in the model's Jinja, so it is never a copy.
        licence: The licence's text.

    Raises:
        CompileError: A text cannot be quoted: there are no escapes.
    """
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {num_ctx}"]
    lines += [f"PARAMETER stop {quoted(stop, 'PARAMETER stop')}" for stop in stops]
    if not chats:
        lines.append(f"TEMPLATE {quoted(_PLAIN, 'TEMPLATE')}")
    if licence:
        lines.append(f"LICENSE {quoted(licence, 'LICENSE', lines=True)}")
    return "\n".join([*lines, ""])


def quoted(text: str, instruction: str, *, lines: bool = False) -> str:
    """Puts a text between one quote or three, between which it is read as it is.

    Args:
        text: The text.
        instruction: What it belongs to, for the message.
        lines: Whether it has three quotes in any case, as a text of several lines does.

    Raises:
        CompileError: The text has three quotes, or ends with one.
    """
    if _QUOTE not in text and not lines and "\n" not in text:
        return f"{_QUOTE}{text}{_QUOTE}"
    if _QUOTES in text or text.endswith(_QUOTE):
        raise CompileError(
            f"{instruction} has a text that a Modelfile cannot hold",
            where="Modelfile",
            why=f"It has {_QUOTES} in it, or a quote at its end, and there are no escapes",
            fix="Use compile.target llamacpp, whose file has it without quotes",
        )
    return f"{_QUOTES}{text}{_QUOTES}"
