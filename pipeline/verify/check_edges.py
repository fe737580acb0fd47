"""Prompts and numbers at the edge of what a server takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pipeline.triton.contract import ENGINE, PREPROCESSING
from pipeline.verify.cases import INVALID
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.check_openai import longest_that_fits
from pipeline.verify.requests import (
    NO_END,
    engine_inputs,
    number_of,
    request,
    text_inputs,
    text_of,
)
from pipeline.verify.same_text import changed_since
from pipeline.verify.tokens import generated_ids, token_ids
from trtllm_client import ClientError, InvalidRequest, ServerFailed, Tensors

_FEW = 4
_MEGABYTE = 1_000_000
# Longer prompts than this would be a load test of a large model.
_LONGEST = 8192
_MOST_TOKENS = 2**24
_FILLERS = (" a", " the", " 1", " x", ".")
# Each is one mistake: a byte that begins nothing, an overlong NUL, half of a pair of UTF-16, and a
# character that is cut off.
_NOT_UTF8 = (INVALID, b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f\x98")
_ODD = (
    "a\x00b", "\x01\x1b[31m\x7f", "\ufeffOnce", "e\u0301 a\u0308", "\U0001f469\u200d\U0001f680",
    "\r\n\t ", "\u202eabc", "\ufffd\ufffe",
)  # fmt: skip


@check(
    "max_tokens 0 is refused each time, by name, and the next right request has its text",
    asks="max_tokens 0 twice, on each model, and a right request before and after",
    thorough=True,
    tensors=True,
)
def max_tokens_zero(context: Context) -> Details:
    """A server that fails inside is in another state the second time."""
    prompt = context.plan.prompts[0]
    before = context.greedy(prompt)
    said: dict[str, list[str]] = {}
    for model, ask in _each_model(context, prompt, 0):
        name = "request_output_len" if model == ENGINE else "max_tokens"
        for _ in range(2):
            said.setdefault(model, []).append(_refusal(ask, f"{model}: {name} 0"))
        named = name in said[model][0] or context.on_cpp_backend
        if not named or len(set(said[model])) > 1:
            raise CheckFailed(f"{model}: max_tokens 0 is refused in other words", said=said)
    if problem := changed_since(context, prompt, before):
        raise CheckFailed(problem)
    return {"said": said}


@check(
    "every model takes the longest prompt and the longest answer that fit, and none a longer one",
    asks="the most tokens of an answer and of a prompt, and one more of each, on each model",
    thorough=True,
)
def prompt_limit(context: Context) -> Details:
    """The limit is found by max_tokens, with an end id that ends the answer at its first token."""
    if not context.on_triton:
        return longest_that_fits(context)
    for model in (ENGINE, PREPROCESSING):
        if not context.has(model):
            raise CheckSkipped(f"the server has no {model} that says how long a prompt is")
    prompt = context.plan.prompts[0]
    sequence = longest_sequence(context)
    longest = _longest_prompt(context, sequence)
    begin = len(token_ids(context, prompt))
    said: dict[str, list[str]] = {}
    right = (
        (prompt, sequence - begin, f"{begin} tokens and max_tokens {sequence - begin}"),
        (_text_of(context, longest), 1, f"{longest} tokens and one token more"),
    )
    end = generated_ids(context, prompt, 1)[0]
    for text, tokens, what in right:
        for model, ask in _each_model(context, text, tokens, end_id=end):
            _must_take(ask, f"{model}: a prompt of {what}")
        longer = (text + _filler(text), 1) if tokens == 1 else (text, tokens + 1)
        for model, ask in _each_model(context, *longer):
            said.setdefault(model, []).append(_refusal(ask, f"{model}: one more than {what}"))
    context.greedy(prompt)
    return {"longest_sequence": sequence, "longest_prompt": longest, "said": said}


@check(
    "a prompt of a megabyte is refused clearly and soon, or answered, and the server lives on",
    asks="a prompt of 1 MB on each text model, and a right request before and after",
    thorough=True,
    tensors=True,
)
def large_prompt(context: Context) -> Details:
    """It must not take the time of other requests either; see plan.patience."""
    prompt = context.plan.prompts[0]
    before = context.greedy(prompt)
    said = {}
    for model in context.text_models():
        text = "word " * (_MEGABYTE // 5)
        inputs = text_inputs([text], _FEW, stream=False)
        started = time.monotonic()
        try:
            answer = list(context.triton.responses(request(model, inputs)))
            said[model] = f"answered with {text_of(answer[0])!r}" if answer else "nothing"
        except InvalidRequest as error:
            said[model] = error.what
        if time.monotonic() - started > context.plan.patience / 2:
            raise CheckFailed(f"{model}: took {time.monotonic() - started:.0f} s", said=said)
        if len(said[model]) > 2000:
            raise CheckFailed(f"{model}: the refusal repeats the prompt", said=said[model][:200])
    if problem := changed_since(context, prompt, before):
        raise CheckFailed(problem)
    return {"said": said}


@check(
    "every text is a prompt, also with NUL and control characters; bytes that are no text are not",
    asks="NUL, escapes, a byte order mark, joined emoji; four kinds of bytes that are not UTF-8",
    thorough=True,
    tensors=True,
)
def odd_prompts(context: Context) -> Details:
    """A tokenizer may know none of the characters; then the prompt has no token, and is refused."""
    counts: dict[str, dict[str, object]] = {}
    for model in context.text_models():
        counts[model] = {}
        for text in _ODD:
            inputs = text_inputs([text], _FEW, stream=False, return_num_input_tokens=True)
            try:
                answer = list(context.triton.responses(request(model, inputs)))
            except InvalidRequest as error:
                counts[model][text] = error.what
                continue
            counts[model][text] = number_of(answer[0], "num_input_tokens")
        for wrong in _NOT_UTF8:
            what = f"{model}: a prompt of the bytes {wrong!r}"
            said = _refusal(_asking(context, model, wrong, _FEW), what)
            if "UTF-8" not in said and not context.is_bare:
                raise CheckFailed(f"{what} is refused without saying that it is not UTF-8: {said}")
    first, *others = counts.values()
    if any(other != first for other in others):
        raise CheckFailed("the models count other tokens of one prompt", counts=counts)
    return {"tokens": first}


Ask = Callable[[], list[Tensors]]


def _each_model(
    context: Context, prompt: str, max_tokens: int, end_id: int = NO_END
) -> Iterator[tuple[str, Ask]]:
    """By model: asks for so many tokens after a prompt, and reads the answer."""
    for model in context.text_models():
        yield model, _asking(context, model, prompt, max_tokens, end_id)
    if context.has(ENGINE) and context.has(PREPROCESSING):
        ids = token_ids(context, prompt)
        inputs = engine_inputs(ids, max_tokens, stream=False, end_id=end_id)
        yield ENGINE, lambda: list(context.triton.responses(request(ENGINE, inputs)))


def _asking(
    context: Context, model: str, prompt: str | bytes, max_tokens: int, end_id: int = NO_END
) -> Ask:
    inputs = text_inputs([""], max_tokens, stream=False, end_id=end_id)
    message = request(model, {**inputs, "text_input": [prompt]})
    return lambda: list(context.triton.responses(message))


def _refusal(ask: Ask, what: str) -> str:
    """What the server says to a wrong request; one of its own faults is no refusal."""
    try:
        answer = ask()
    except ServerFailed as error:
        raise CheckFailed(f"{what} is answered with a fault of the server: {error.what}") from error
    except InvalidRequest as error:
        return error.what
    raise CheckFailed(f"{what} was answered: {[text_of(one) for one in answer]}")


def _must_take(ask: Ask, what: str) -> None:
    try:
        ask()
    except ClientError as error:
        raise CheckFailed(f"{what} is refused, which the engine takes: {error.what}") from error


def longest_sequence(context: Context) -> int:
    """Finds the most tokens that prompt and answer may have together.

    The end id is the first token of the answer, so that none of the answers is long.

    Raises:
        CheckSkipped: The server takes any number, and cuts the answer.
    """
    prompt = context.plan.prompts[0]
    (first,) = generated_ids(context, prompt, 1)

    def takes(tokens: int) -> bool:
        try:
            context.greedy(prompt, tokens, end_id=first)
        except InvalidRequest:
            return False
        return True

    return len(token_ids(context, prompt)) + _most(takes, _MOST_TOKENS)


def _longest_prompt(context: Context, sequence: int) -> int:
    """The most tokens that the engine takes for a prompt of one token's answer."""
    if sequence > _LONGEST:
        raise CheckSkipped(f"not exercised: a prompt of {sequence} tokens would be a load test")
    ids = token_ids(context, context.plan.prompts[0])

    def takes(tokens: int) -> bool:
        inputs = engine_inputs((ids * (tokens // len(ids) + 1))[:tokens], 1, stream=False)
        try:
            list(context.triton.responses(request(ENGINE, inputs)))
        except InvalidRequest:
            return False
        return True

    return _most(takes, 2 * _LONGEST)


def _most(takes: Callable[[int], bool], limit: int) -> int:
    """The largest number that is taken; 1 is."""
    low, high = 1, 2
    while takes(high):
        low, high = high, 2 * high
        if high > limit:
            raise CheckSkipped("not exercised: the server takes any number, and cuts the answer")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def _text_of(context: Context, tokens: int) -> str:
    """A prompt of so many tokens, all of which but the first few are of one filler."""
    for filler in _FILLERS:
        short, longer = (len(token_ids(context, "a" + filler * n)) for n in (8, 16))
        text = "a" + filler * (tokens - short + 8)
        # Joined, more of them may be fewer tokens; the server counts.
        if longer - short == 8 and _counted(context, text) in (tokens, None):
            return text
    raise CheckSkipped("not exercised: no text is known of which each piece is one token")


def _counted(context: Context, text: str) -> int | None:
    inputs = text_inputs([text], 1, stream=False, return_num_input_tokens=True)
    try:
        answer = list(context.triton.responses(request(context.model, inputs)))
    except InvalidRequest:
        return None  # for the check to say
    return number_of(answer[0], "num_input_tokens")


def _filler(text: str) -> str:
    return next(filler for filler in _FILLERS if text.endswith(filler))
