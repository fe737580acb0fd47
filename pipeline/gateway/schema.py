"""The bodies of requests, as OpenAI's clients send them.

Fields that are not known are ignored, as OpenAI's own server does with those of its clients'
libraries. Fields that would change the answer, also those of other servers, are refused by name
where they ask for something that no engine here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.gateway.errors import ApiError, refused

MOST_STOPS = 4
MOST_PROMPTS = 256
"""Prompts of one request to ``/v1/completions``."""
MOST_TOP_K = 1024
"""TensorRT-LLM's and the CPU engine's own limit (docs/sampling.md)."""

Body = TypeVar("Body", bound=BaseModel)

Text = Annotated[str, StringConstraints(strict=True)]
StopWord = Annotated[str, StringConstraints(strict=True, min_length=1)]
Stop = StopWord | Annotated[list[StopWord], Field(max_length=MOST_STOPS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]


# Fields of other servers, and of the other endpoint, that would change an answer; with the values
# that change nothing. Most are vLLM's (its SamplingParams, and its OpenAI protocol, as of 0.11).
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_UNLESS_FALSE = (None, True)
_CHANGES: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "allowed_token_ids",
            "bad_words",
            "chat_template",
            "documents",
            "grammar",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "include_stop_str_in_output",
            "json_schema",
            "logits_processors",
            "mirostat",
            "prompt_logprobs",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "stop_token_ids",
            "structural_tag",
            "structured_outputs",
            "truncate_prompt_tokens",
            "use_beam_search",
        ),
        _NOTHING,
    ),
    "add_generation_prompt": _UNLESS_FALSE,
    "length_penalty": (None, 1),
    "min_p": (None, 0),
    "skip_special_tokens": _UNLESS_FALSE,
    "spaces_between_special_tokens": _UNLESS_FALSE,
    "typical_p": (None, 1),
}
_OF_CHAT = dict.fromkeys(
    ("messages", "tools", "tool_choice", "functions", "function_call", "max_completion_tokens"),
    _NOTHING,
)
# In the place of a text, where it says no more than that one is wanted.
_TEXT = (*_NOTHING, {"type": "text"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """``stream_options``.

    Attributes:
        include_usage: Whether a last chunk says how many tokens it were.
    """

    include_usage: bool | None = None


class Sampling(_Strict):
    """What both kinds of requests have.

    Whatever else a request has is kept, so that what would change the answer can be refused.

    Attributes:
        model: Name of the model; None is the one that there is.
        temperature: 0 is greedy.
        top_p: Share of the probability that is sampled from.
        top_k: Tokens that are sampled from; no field of OpenAI's.
        seed: Makes sampling repeatable.
        stop: Texts that end the answer.
        presence_penalty: As the engine has it (docs/sampling.md).
        frequency_penalty: Likewise.
        repetition_penalty: Likewise; no field of OpenAI's.
        min_tokens: Tokens before the end token counts; no field of OpenAI's.
        ignore_eos: Whether the end token ends nothing; no field of OpenAI's.
        max_tokens: Tokens of the answer, at most; None is all that the context leaves.
        stream: Whether the answer comes in pieces.
        stream_options: How.
        n: Answers per prompt; only 1.
        logit_bias: Refused where it has anything in it.
        user: Ignored.
    """

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOP_K)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    user: Any = None

    _unknown: ClassVar[Mapping[str, tuple[Any, ...]]] = _CHANGES

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def counts_tokens(self) -> bool:
        """Whether a stream ends with a chunk that says how many tokens it were."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Refuses what no engine here does.

        Raises:
            ApiError: Naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in self._unknown and value not in self._unknown[name]:
                # Of all of them this one is meant most often.
                other = "send max_tokens" if name == "max_completion_tokens" else "leave it out"
                raise refused(f"{name} is not supported here: {other}.", name)
        if self.n not in (None, 1):
            raise refused("n must be 1: send the request once per answer.", "n")
        if self.logit_bias:
            raise refused("logit_bias is not supported: leave it out.", "logit_bias")
        if self.stream_options is not None and not self.stream:
            raise refused(
                "stream_options is for streams: set stream to true, or leave it out.",
                "stream_options",
            )


class ChatBody(Sampling):
    """The body of ``POST /v1/chat/completions``.

    Attributes:
        messages: The conversation.
        max_completion_tokens: The newer name of ``max_tokens``.
        logprobs: Whether each token has its log probability.
        top_logprobs: Only 0.
        tools: Functions that the model may call.
        tool_choice: Which of them it must.
        parallel_tool_calls: Whether it may call several at once.
        response_format: What the answer's text must be.
        chat_template_kwargs: Further variables of the chat template; no field of OpenAI's.
        continue_final_message: Whether the last message is the beginning of the answer; no field of
            OpenAI's, and refused.
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[Text] | None = None
    audio: Any = None
    web_search_options: Any = None
    continue_final_message: bool | None = None

    _unknown: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_CHANGES,
        **dict.fromkeys(("prompt", "echo", "suffix", "add_special_tokens"), _NOTHING),
    }

    def check(self) -> None:
        """Refuses what no engine here does; see :meth:`Sampling.check`."""
        super().check()
        if self.top_logprobs:
            raise refused(
                "top_logprobs must be 0: the engine says the log probability of the chosen token "
                "alone, which logprobs gives.",
                "top_logprobs",
            )
        if self.functions or self.function_call:
            param = "functions" if self.functions else "function_call"
            raise refused(f"{param} is the old name: send tools and tool_choice.", param)
        if self.modalities not in (None, [], ["text"]):
            raise refused("modalities must be text alone.", "modalities")
        for param in ("audio", "web_search_options"):
            if getattr(self, param) is not None:
                raise refused(f"{param} is not supported: leave it out.", param)
        if self.continue_final_message:
            raise refused(
                "continue_final_message is not supported: leave it out.", "continue_final_message"
            )
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise refused(
                "max_tokens and max_completion_tokens differ: send the latter alone.", "max_tokens"
            )
        if 0 in both:
            param = "max_tokens" if self.max_tokens == 0 else "max_completion_tokens"
            raise refused(f"{param} must be at least 1.", param)

    @property
    def limit(self) -> int | None:
        """Tokens of the answer, at most; None is all that the context leaves."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens


class CompletionBody(Sampling):
    """The body of ``POST /v1/completions``.

    Attributes:
        prompt: A text, several, token ids, or several lists of those.
        echo: Whether the answer begins with the prompt.
        logprobs: 0 gives each token its log probability, 1 the likeliest token's as well.
        best_of: Only 1.
        suffix: Refused.
        add_special_tokens: Whether a text gets what the tokenizer puts around it; no field of
            OpenAI's.
    """

    prompt: (
        Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None
    suffix: Text | None = None
    add_special_tokens: bool | None = None

    _unknown: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_CHANGES,
        **_OF_CHAT,
        "response_format": _TEXT,
    }

    def check(self) -> None:
        """Refuses what no engine here does; see :meth:`Sampling.check`."""
        super().check()
        if self.best_of not in (None, 1):
            raise refused("best_of must be 1.", "best_of")
        if self.suffix:
            raise refused("suffix is not supported: leave it out.", "suffix")
        if self.logprobs is not None and self.logprobs > 1:
            raise refused(
                "logprobs must be 0 or 1: the engine says the log probability of one token at each "
                "place.",
                "logprobs",
            )
        if self.max_tokens == 0 and not self.echo:
            raise refused("max_tokens must be at least 1, or 0 with echo.", "max_tokens")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(self.prompt)


def parse(kind: type[Body], body: bytes) -> Body:
    """Reads a body.

    Args:
        kind: What it is to be.
        body: JSON.

    Raises:
        ApiError: It is no JSON, or a field is wrong; naming the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in words; the value is not repeated, it may be a prompt."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    # Where several forms are allowed, the one that went furthest says what is wrong.
    first = problems[0]
    if first["type"] == "json_invalid":
        return refused(f"The body is no JSON: {first['msg'].partition(': ')[2]}.")
    if first["type"] == "model_type":
        return refused("The body must be a JSON object.")
    place = _place(first["loc"])
    if first["type"] == "missing":
        return refused(f"{place} is missing.", place)
    message = first["msg"]
    if len({problem["loc"][:1] for problem in problems}) == 1 and len(problems) > 1:
        message = _FORMS.get(str(first["loc"][0]), message)
        place = str(first["loc"][0])
    return refused(f"{place}: {message[:1].lower()}{message[1:]}.", place)


_FORMS: Mapping[str, str] = {
    "stop": f"it must be a text, or a list of at most {MOST_STOPS} texts, none of them empty",
    "prompt": "it must be a text, a list of texts, a list of token ids, or a list of such lists; "
    f"none may be empty, and a list has at most {MOST_PROMPTS} prompts",
}


def _place(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


Finish = Literal["stop", "length", "tool_calls"]
