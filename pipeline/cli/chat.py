"""A chat on the terminal: the options about it, and the conversation that is typed."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.cli.answers import Asking
    from pipeline.engine_client.interface import TextClient
    from trtllm_client import ChatTemplate

PROMPT = "> "
PANEL = "Chat"
HELP = """\
/clear        forget the conversation
/system TEXT  say how to answer from now on; without TEXT, say nothing
/exit         leave, as Ctrl-D and Ctrl-C do here
Ctrl-C        stop an answer
A message that begins with / has a space in front."""


@dataclass(frozen=True)
class ChatOptions:
    """What ``generate`` is told of a chat.

    Attributes:
        chat: Whether the prompt is a message to a chat model.
        system: How the model is to answer.
        tokenizer: A folder with the template, instead of the server's.
        template_variable: Variables of the template, as NAME=VALUE.
    """

    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Talk to a chat model: PROMPT is a message; without one, a conversation.",
            rich_help_panel=PANEL,
        ),
    ] = False
    system: Annotated[
        str | None,
        typer.Option(
            "--system", metavar="TEXT", help="How the model is to answer.", rich_help_panel=PANEL
        ),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR",
            help="Folder with the chat template, where the server does not say it.",
            rich_help_panel=PANEL,
        ),
    ] = None
    template_variable: Annotated[
        list[str] | None,
        typer.Option(
            "--template-variable",
            metavar="NAME=VALUE",
            help="What else the template knows, e.g. enable_thinking=false; repeatable.",
            rich_help_panel=PANEL,
        ),
    ] = None

    def check(self) -> None:
        """Refuses options that mean nothing.

        Raises:
            UsageError: One is given without ``--chat``.
        """
        given = {
            "--system": self.system,
            "--tokenizer": self.tokenizer,
            "--template-variable": self.template_variable or None,
        }
        alone = [name for name, value in given.items() if value is not None]
        if alone and not self.chat:
            raise UsageError(
                f"{alone[0]} says something of a chat",
                why="without --chat the prompt is sent as it is",
                fix="Add --chat, or leave it out",
            )

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the template by name; JSON values are read as such.

        Raises:
            UsageError: One has no name or no ``=``.
        """
        from pipeline.reading.json_text import parse_json

        found: dict[str, Any] = {}
        for text in self.template_variable or ():
            name, separator, value = text.partition("=")
            if not separator or not name.isidentifier():
                raise UsageError(
                    f"--template-variable needs NAME=VALUE, not {text!r}",
                    fix="Write --template-variable enable_thinking=false",
                )
            try:
                found[name] = parse_json(value)
            except ValueError:
                found[name] = value
        return found

    def template(self) -> ChatTemplate | None:
        """Reads the template of ``--tokenizer``; None without the option.

        Raises:
            InvalidRequest: There is none.
        """
        from trtllm_client import ChatTemplate

        return ChatTemplate.from_directory(self.tokenizer) if self.tokenizer else None


def template_of(client: TextClient) -> ChatTemplate:
    """Asks the server for its template.

    Raises:
        UsageError: It does not say one.
    """
    from trtllm_client import InvalidRequest

    try:
        return client.chat_template()
    except InvalidRequest as error:
        raise UsageError(
            error.what,
            where=error.where,
            why=error.why,
            fix="Name the model's folder, which has the template: --tokenizer DIR",
        ) from error


@dataclass
class Conversation:
    """The messages so far, in the order of a chat: a user's, an assistant's, and so on.

    Attributes:
        system: What comes before them; None is nothing.
        turns: The messages.
    """

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages, as a template takes them."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    def say(self, text: str) -> None:
        """Adds a message of the user."""
        self.turns.append({"role": "user", "content": text})

    def hear(self, text: str) -> None:
        """Adds the answer to it."""
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Removes the message that has no answer."""
        self.turns.pop()


def converse(asking: Asking, conversation: Conversation, max_tokens: int) -> None:
    """Reads messages from the terminal and prints the answers, until the user leaves.

    Args:
        asking: How requests are made.
        conversation: Continued in place.
        max_tokens: The limit of each answer.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- gives input() line editing
    print("/help says what can be typed; Ctrl-D leaves.", file=sys.stderr)
    while (line := _read()) is not None:
        text = line.strip()
        if line.startswith("/"):
            if text == "/exit":
                return
            _command(text, conversation)
        elif text:
            conversation.say(text)
            _turn(asking, conversation, max_tokens)


def _read() -> str | None:
    """What is typed next; None where the user leaves."""
    from pipeline.cli.console import show

    while True:
        try:
            return input(PROMPT)
        except UnicodeDecodeError as error:  # noqa: PERF203 -- each line is to be told
            show("error", f"this is not valid {error.encoding}, so it was not sent", "bold red")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt as stop:
            _only_ctrl_c(stop)
            print()
            return None


def _only_ctrl_c(stop: KeyboardInterrupt) -> None:
    """Lets through what ends the whole command and is a kind of interrupt too."""
    if type(stop) is not KeyboardInterrupt:
        raise stop


def _command(text: str, conversation: Conversation) -> None:
    from pipeline.cli.console import show

    name, _, rest = text.partition(" ")
    if name == "/help":
        print(HELP)
    elif name == "/clear":
        conversation.turns.clear()
    elif name == "/system":
        conversation.system = rest.strip() or None
    else:
        show("error", f"there is no command {name}; /help says what can be typed", "bold red")


def _turn(asking: Asking, conversation: Conversation, max_tokens: int) -> None:
    from pipeline.cli.answers import Answer
    from pipeline.cli.console import print_answer, show
    from trtllm_client import ClientError, InvalidRequest

    answer = Answer()
    try:
        asking.ask(conversation.messages, answer, print_answer)
        print()
    except KeyboardInterrupt as stop:
        _only_ctrl_c(stop)
        print()
        if not answer.text:
            conversation.take_back()
            show("note", "stopped before it began; the message was taken back", "bold")
            return
        show("note", "stopped; what has come is kept as the answer", "bold")
    except ClientError as error:
        if answer.text:
            print()
        conversation.take_back()
        show("error", str(error), "bold red")
        advice = "the message was taken back"
        if isinstance(error, InvalidRequest) and conversation.turns:
            advice += "; /clear makes room, and so does a lower --max-tokens"
        show("note", advice, "bold")
        return
    else:
        if answer.finish_reason(max_tokens) == "length":
            show("note", f"the answer was cut at --max-tokens {max_tokens}", "bold")
    conversation.hear(answer.text)
