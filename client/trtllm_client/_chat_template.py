"""A conversation's text, as the model's own chat template writes it.

It needs jinja2 and no transformers: the result is that of transformers'
``apply_chat_template(tokenize=False)``. The text has every special token of its own, so it is sent
with ``add_special_tokens=False``.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtllm_client._errors import InvalidRequest

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
DECODER = "added_tokens_decoder"


class ChatTemplate:
    """Writes the text of conversations.

    One template may be used by several threads.

    Args:
        source: Jinja source.
        special_tokens: Texts of the special tokens by the names that templates know, such as
            ``bos_token``.

    Attributes:
        CLASS_DEFAULTS: What transformers' tokenizer classes take for a special token that no file
            names, by the name of the class.
    """

    CLASS_DEFAULTS: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    }

    def __init__(self, source: str, special_tokens: Mapping[str, str] = {}) -> None:
        if not isinstance(source, str):
            raise InvalidRequest(f"a chat template must be text, not {type(source).__name__}")
        if not isinstance(special_tokens, Mapping) or not all(
            isinstance(part, str) for pair in special_tokens.items() for part in pair
        ):
            raise InvalidRequest(
                "special_tokens must be texts by name",
                fix='Give a dict such as {"bos_token": "<s>"}',
            )
        self._source = source
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ChatTemplate | None:
        """Reads the template that a server says; None where it says none.

        Args:
            parameters: Of ``preprocessing``'s configuration: ``chat_template``, its Jinja source,
                and ``chat_template_tokens``, a JSON object of the special tokens' texts.

        Raises:
            InvalidRequest: The tokens are no such object.
        """
        source = parameters.get("chat_template")
        if not source:
            return None
        try:
            return cls(source, json.loads(parameters.get("chat_template_tokens") or "{}"))
        except (ValueError, RecursionError, InvalidRequest) as error:
            raise InvalidRequest(
                "the parameter chat_template_tokens is no JSON object of texts",
                why=error.what if isinstance(error, InvalidRequest) else str(error),
            ) from error

    @property
    def source(self) -> str:
        """The Jinja source."""
        return self._source

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the special tokens, by the names that the template knows."""
        return dict(self._special_tokens)

    @classmethod
    def find(cls, directory: Path | str, tokenizer_class: str = "") -> ChatTemplate | None:
        """Reads the template of a model's folder, or of a tokenizer's; None where it has none.

        The file of its own comes first, as in transformers; of several named templates the default
        one counts.

        Args:
            directory: With ``chat_template.jinja`` or ``tokenizer_config.json``.
            tokenizer_class: Name of the tokenizer's class where ``tokenizer_config.json`` has none.

        Raises:
            InvalidRequest: A file is damaged or cannot be read.
        """
        source = _find_source(Path(directory))
        if source is None:
            return None
        return cls(source, cls.find_special_tokens(directory, tokenizer_class))

    @staticmethod
    def find_special_tokens(directory: Path | str, tokenizer_class: str = "") -> dict[str, str]:
        """Finds the texts of a model's special tokens by their names, such as ``eos_token``.

        ``special_tokens_map.json`` counts only where ``tokenizer_config.json`` does not list the
        added tokens, as in transformers (``PreTrainedTokenizerBase._from_pretrained``).

        Args:
            directory: A model's or a tokenizer's.
            tokenizer_class: Name of the tokenizer's class where ``tokenizer_config.json`` has none.

        Raises:
            InvalidRequest: A file is damaged or cannot be read.
        """
        config = _read_object(Path(directory) / TOKENIZER_CONFIG)
        kind = str(config.get("tokenizer_class") or tokenizer_class).removesuffix("Fast")
        named = {**ChatTemplate.CLASS_DEFAULTS.get(kind, {}), **config}
        if DECODER not in named:
            named |= _read_object(Path(directory) / SPECIAL_TOKENS)
        texts = {name: _text(value) for name, value in named.items() if name.endswith("_token")}
        return {name: text for name, text in texts.items() if text is not None}

    @classmethod
    def from_directory(cls, directory: Path | str) -> ChatTemplate:
        """Reads the template of a model's folder, or of a tokenizer's.

        Args:
            directory: With ``chat_template.jinja`` or ``tokenizer_config.json``.

        Raises:
            InvalidRequest: There is none, or a file is damaged.
        """
        found = cls.find(directory)
        if found is None:
            raise InvalidRequest(
                "the model has no chat template",
                where=str(directory),
                why=f"There is no {TEMPLATE_FILE}, and {TOKENIZER_CONFIG} names none",
                fix="Send the text that the model was trained on, or give the template of the "
                "model that it was made from",
            )
        return found

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Writes a conversation's text.

        Args:
            messages: Each with a ``role`` and its text as ``content``; an assistant's may have
                ``tool_calls`` in its place.
            tools: JSON schemas of the functions that the model may call.
            documents: Each with a ``title`` and a ``text``, for templates that know them.
            add_generation_prompt: Whether the text ends where the assistant's next answer begins.
            variables: What else the template knows, such as ``enable_thinking``; also special
                tokens in the place of the model's.

        Raises:
            InvalidRequest: The messages have a wrong form, the template refuses them, or it cannot
                be compiled or rendered.
            ImportError: jinja2 is not installed.
        """
        _check_messages(messages)
        for name, value in (("tools", tools), ("documents", documents)):
            _check_objects(name, value)
        from trtllm_client._template_sandbox import LimitExceeded, Refused, render_template

        known: dict[str, Any] = {
            **self._special_tokens,
            **variables,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        compiled = self._compiled
        try:
            return render_template(compiled, known)
        except Refused as error:
            raise InvalidRequest(
                "the chat template refuses these messages",
                why=str(error) or None,
                fix="Change the messages, their roles or their order",
            ) from error
        except LimitExceeded as error:
            raise InvalidRequest(
                "the chat template does more than a conversation needs",
                why=str(error),
                fix="Use the template that the model was published with, or send less",
            ) from error
        # A template can do anything wrong that an expression can.
        except Exception as error:
            raise _broken("rendered", error) from error

    @cached_property
    def _compiled(self) -> Template:
        from trtllm_client._template_sandbox import compile_template

        try:
            return compile_template(self._source)
        except Exception as error:
            raise _broken("compiled", error) from error


def _find_source(directory: Path) -> str | None:
    path = directory / TEMPLATE_FILE
    if path.exists():
        return _read(path)
    template = _read_object(directory / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    elif isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _text(token: object) -> str | None:
    """The text of a special token, which may be an object with more about it."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _read(path: Path) -> str:
    try:
        # A pipe would be waited for, and a device may have no end.
        if not path.is_file():
            raise OSError(errno.EINVAL, "It is not a file", str(path))
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path.name} is not UTF-8", where=str(path)) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_read(path))
        if not isinstance(content, dict):
            raise ValueError("It is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return content


def _unreadable(path: Path, error: Exception) -> InvalidRequest:
    return InvalidRequest(
        f"{path.name} cannot be read",
        where=str(path),
        why=getattr(error, "strerror", None) or str(error),
        fix="Download or save it again",
    )


def _broken(what: str, error: Exception) -> InvalidRequest:
    line = getattr(error, "lineno", None)
    reason = str(error).strip().partition("\n")[0]
    place = f"Line {line}: " if line else ""
    return InvalidRequest(
        f"the chat template cannot be {what}",
        why=f"{place}{type(error).__name__}: {reason}",
        fix="Give the messages that it expects, or use the template that the model was published "
        "with",
    )


_FORM = 'Give a list such as [{"role": "user", "content": "Hello"}]'


def _check_messages(messages: object) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(
            f"messages must be a list of messages, not {type(messages).__name__}", fix=_FORM
        )
    if not messages:
        raise InvalidRequest("messages is empty", fix=_FORM)
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise InvalidRequest(
                f"{where} must be an object with role and content, not {type(message).__name__}",
                fix=_FORM,
            )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            has = (
                "has no role" if role in (None, "") else f"has the role {role!r}, which is no text"
            )
            raise InvalidRequest(
                f"{where} {has}", fix='The role is a text such as "user", "assistant" or "system"'
            )
        content = message.get("content")
        if isinstance(content, str) or (content is None and message.get("tool_calls")):
            continue
        if content is None:
            has, fix = "has no content", "Give its text, which may be empty"
        else:
            has = f"has content that is no text but {type(content).__name__}"
            fix = "Give it as one text; images and other parts are not taken"
        raise InvalidRequest(f"{where} {has}", fix=fix)


def _check_objects(name: str, values: object) -> None:
    if values is None:
        return
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise InvalidRequest(f"{name} must be a list of objects, not {type(values).__name__}")
    for number, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise InvalidRequest(
                f"{name}[{number}] must be an object, not {type(value).__name__}",
                fix="A tool is given as the JSON schema of a function"
                if name == "tools"
                else "A document has a title and a text",
            )
