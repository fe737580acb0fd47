"""Conversations as the texts that a model reads, by its own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError, UsageError
from pipeline.models.config_json import read_config
from pipeline.source.end_ids import CLASSES
from pipeline.source.lines import Conversation, Line
from pipeline.source.probes import A_DAY
from trtllm_client import ChatTemplate, InvalidRequest

CHECKED = 1000
"""Conversations of a file that are rendered before any work; evaluation reads the first ones."""


@dataclass(frozen=True)
class Rendered:
    """A conversation's text, which has every special token of its own.

    Attributes:
        text: All of it, as the template writes it without a prompt for another answer.
        question: The text up to where the last answer begins; empty where the template takes no
            such conversation.
    """

    text: str
    question: str


Text = str | Rendered


class Renderer:
    """Makes texts of a file's lines.

    Args:
        directory: The model's snapshot. Its template is read when the first conversation comes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._template: ChatTemplate | None = None

    def texts(self, lines: Iterable[Line]) -> Iterator[Text]:
        """Renders the conversations among lines, and passes on the texts, one by one.

        Raises:
            UsageError: The model has no template, or its template refuses a line, which is named.
        """
        for line in lines:
            if isinstance(line, Conversation):
                text = self.text(line)
                yield Rendered(text, self._question(line))
            else:
                yield line

    def text(self, conversation: Conversation) -> str:
        """Renders a conversation without a prompt for another answer.

        Raises:
            UsageError: See :meth:`texts`.
        """
        return self._render(conversation, conversation.messages, add_generation_prompt=False)

    def _question(self, conversation: Conversation) -> str:
        try:
            return self._render(conversation, conversation.question, add_generation_prompt=True)
        except UsageError:
            return ""  # nothing to ask, such as an answer alone

    def _render(
        self, conversation: Conversation, messages: Sequence[dict[str, Any]], **options: Any
    ) -> str:
        template = self._opened(conversation.place)
        try:
            return template.render(
                messages,
                tools=conversation.tools,
                # A template may print the date, and the same inputs are to give the same bytes.
                strftime_now=A_DAY.strftime,
                **options,
            )
        except InvalidRequest as error:
            raise UsageError(
                error.what, where=conversation.place, why=error.why, fix=error.fix
            ) from error

    def _opened(self, place: str) -> ChatTemplate:
        if self._template is None:
            self._template = _template_of(self._directory, place)
        return self._template


def check_conversations(lines: Iterable[Line], directory: Path) -> None:
    """Renders the first :data:`CHECKED` conversations, to find what the template refuses.

    Args:
        lines: Of a file.
        directory: The model's snapshot.

    Raises:
        UsageError: See :meth:`Renderer.texts`.
    """
    renderer = Renderer(directory)
    conversations = (line for line in lines if isinstance(line, Conversation))
    for conversation in islice(conversations, CHECKED):
        renderer.text(conversation)


def _template_of(directory: Path, place: str) -> ChatTemplate:
    config = read_config(directory, SourceError, "A model's folder has one")
    try:
        template = ChatTemplate.find(directory, CLASSES.get(str(config.get("model_type")), ""))
    except InvalidRequest as error:
        raise UsageError(error.what, where=str(directory), why=error.why, fix=error.fix) from error
    if template is None:
        raise UsageError(
            "the line is a conversation, and the model has no chat template",
            where=place,
            why=f"{directory} has no chat_template.jinja, and its tokenizer_config.json names none",
            fix='Write the text as the model was trained on it: {"text": "..."}; or put the '
            "template of the model that it was made from beside it",
        )
    return template
