"""What the checks ask: built-in prompts or the user's, as text or through the chat template.

A chat model goes on badly with a raw text, and often ends it at once; so where the server says its
chat template, the checks ask as a user would. A rendered text begins with its special tokens, which
the server does not add a second time (``add_special_tokens`` auto).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.engine_client.connect import speaks_openai
from pipeline.engine_client.interface import TextClient
from pipeline.errors import UsageError
from pipeline.source.lines import Conversation, Line
from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import Plan
from trtllm_client import ChatTemplate, ClientError, InvalidRequest

TURNS = (
    "Tell me a story about an old man at the sea.",
    "What does a dog do all day?",
    "Describe a morning in a small harbour.",
    "How is bread baked?",
)
MULTIBYTE_TURNS = (
    "Repeat this: 😀 😃 😄 😀 😃 😄 😀 😃",
    "Répète : é è ü ö ñ é è ü ö ñ é è",
    "漢字 漢字 漢字 漢字 を繰り返してください。",
    "Wie sagt man „sehr gut“ auf Französisch? Beginne mit „Très“.",
)
NO_TEMPLATE = "the server says no chat template"
_ANSWER = "ANSWER"
Messages = Sequence[Mapping[str, Any]]


def template_of(client: TextClient) -> tuple[ChatTemplate | None, str]:
    """Reads the chat template that a server says.

    Returns:
        The template, and an empty text; or None and why there is none.
    """
    try:
        template = _said(client)
    except InvalidRequest as error:
        return None, f"the server's chat template cannot be used: {error.what}: {error.why}"
    if template is None:
        return None, NO_TEMPLATE
    try:
        built_in(Plan(), template)
    except ImportError:  # a client without its extra [chat]
        return None, "without jinja2 (pip install jinja2) the server's chat template is not used"
    except InvalidRequest as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        return None, f"the server's chat template does not take a plain question: {why}"
    return template, ""


def _said(client: TextClient) -> ChatTemplate | None:
    if speaks_openai(client.url):
        try:
            return client.chat_template()
        except ClientError:
            return None
    try:
        parameters = dict(client.model_metadata(PREPROCESSING).parameters)
    except ClientError:
        parameters = {}
    return ChatTemplate.from_parameters(parameters)


def built_in(plan: Plan, template: ChatTemplate) -> Plan:
    """Returns the plan with questions of a user in the place of its built-in texts."""
    asked = {turn: [_user(turn)] for turn in (*TURNS, *MULTIBYTE_TURNS)}
    made = _rendered(plan, template, [asked[turn] for turn in TURNS])
    return replace(
        made,
        multibyte_prompts=tuple(_render(template, asked[turn]) for turn in MULTIBYTE_TURNS),
        said="questions through the server's chat template",
    )


def given(plan: Plan, prompts: Sequence[Line], template: ChatTemplate | None, without: str) -> Plan:
    """Returns the plan with prompts of the user.

    Args:
        plan: The built-in one.
        prompts: Texts, sent as they stand, and conversations.
        template: The server's.
        without: Why there is none.

    Raises:
        UsageError: A conversation cannot be rendered; its line is named.
    """
    made = plan
    texts: list[str] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
            continue
        if template is None:
            raise UsageError(
                f"the line is a conversation, and {without}",
                where=prompt.place,
                fix='Write the text that the model is to go on with: {"prompt": "..."}',
            )
        try:
            one = _rendered(plan, template, [prompt.question], prompt.tools)
        except InvalidRequest as error:
            raise UsageError(
                error.what, where=prompt.place, why=error.why, fix=error.fix
            ) from error
        texts += one.prompts
        made = replace(made, numbered={**made.numbered, **one.numbered}, closing=one.closing)
    chats = sum(isinstance(prompt, Conversation) for prompt in prompts)
    plain = tuple(prompt for prompt in prompts if isinstance(prompt, str))
    through = f", {chats} of them through the server's chat template" if chats else ""
    return replace(
        made,
        prompts=tuple(texts),
        plain_prompts=plain or plan.plain_prompts,
        said=f"{len(texts)} given{through}",
    )


def _rendered(
    plan: Plan,
    template: ChatTemplate,
    conversations: Sequence[Messages],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Plan:
    prompts = [_render(template, messages, tools) for messages in conversations]
    numbered = {
        prompt: tuple(_render(template, _with_number(messages, n), tools) for n in range(2))
        for prompt, messages in zip(prompts, conversations, strict=True)
    }
    answered = [*conversations[0], {"role": "assistant", "content": _ANSWER}]
    whole = _render(template, answered, tools, add_generation_prompt=False)
    _, shown, closing = whole.rpartition(_ANSWER)
    return replace(
        plan, prompts=tuple(prompts), numbered=numbered, closing=closing if shown else ""
    )


def _with_number(messages: Messages, number: int) -> Messages:
    *before, last = messages
    return [*before, {**last, "content": f"{last.get('content') or ''} {number}"}]


def _render(
    template: ChatTemplate,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def fitting(plan: Plan, length: Callable[[str], int | None]) -> Plan:
    """Returns a plan of built-in prompts without those that the engine has no room for.

    Where fewer than two fit, all are kept; the checks say what the server says to them.

    Args:
        plan: The plan.
        length: How many tokens a prompt has; None where the server refuses it.
    """
    kept = tuple(prompt for prompt in plan.prompts if length(plan.varied(prompt)) is not None)
    plain = tuple(prompt for prompt in plan.plain_prompts if length(f"{prompt} 0") is not None)
    return replace(
        plan,
        prompts=kept if len(kept) > 1 else plan.prompts,
        plain_prompts=plain if len(plain) > 1 else plan.plain_prompts,
    )
