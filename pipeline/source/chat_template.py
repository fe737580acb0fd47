"""The token that a chat template puts behind an answer of the assistant."""

from __future__ import annotations

from collections.abc import Collection

from trtllm_client import ChatTemplate, InvalidRequest

# No template trims, splits or escapes it.
_ANSWER = "ANSWER"
_QUESTION = {"role": "user", "content": "QUESTION"}
_CHAT = (_QUESTION, {"role": "assistant", "content": _ANSWER})


class TemplateError(ValueError):
    """The template cannot be rendered; the text is the reason, without its full stop."""


def turn_end(template: ChatTemplate, tokens: Collection[str]) -> str | None:
    """Finds the token that follows an answer, with nothing but white space between them.

    Where another question follows the answer it must be the same token: what differs there opens
    the next turn and does not close this one.

    Args:
        template: The model's.
        tokens: Texts of the added tokens; nothing else counts.

    Returns:
        None when an answer ends with ordinary text, or with nothing.

    Raises:
        TemplateError: It cannot be rendered, or does not show the answer.
    """
    try:
        texts = [
            template.render(chat, add_generation_prompt=False)
            for chat in (_CHAT, (*_CHAT, _QUESTION))
        ]
    except InvalidRequest as error:
        raise TemplateError(error.why or error.what) from error
    if any(_ANSWER not in text for text in texts):
        raise TemplateError("It does not show the assistant's answer")
    end, in_between = (_token_after_answer(text, tokens) for text in texts)
    return end if in_between in (end, None) else None


def _token_after_answer(text: str, tokens: Collection[str]) -> str | None:
    rest = text.rpartition(_ANSWER)[2].lstrip()
    following = [token for token in tokens if token.strip() and rest.startswith(token)]
    return max(following, key=len, default=None)
