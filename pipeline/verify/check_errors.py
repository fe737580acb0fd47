"""Does a wrong request get a clear refusal, and does the server live on?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.verify.check import CheckFailed, Context, Details, check
from pipeline.verify.check_openai import bad_bodies
from pipeline.verify.requests import NO_END
from pipeline.verify.same_text import changed_since
from trtllm_client import (
    ClientError,
    DeadlineExceeded,
    GenerateRequest,
    InvalidRequest,
    add_input,
    encode_request,
)

Change = Callable[[Any], None]
_CUT_S = 5.0


@dataclass(frozen=True)
class BadInput:
    """A request that must be refused.

    Attributes:
        name: What is wrong with it.
        request: The request.
        change: Changes the message in a way that the client's types do not allow.
        may_be_answered: Whether a more able engine may answer it instead.
        may_be_cut: Whether a server may answer it with fewer tokens than asked for, if it says so.
        ends_ensemble: Whether Triton's ensembles end it without a word, which only clients see.
        ends_everyone: Whether TensorRT-LLM's executor ends every other request with it, so that
            it is sent only where something in front of the executor looks at that input.
    """

    name: str
    request: GenerateRequest
    change: Change | None = None
    may_be_answered: bool = False
    may_be_cut: bool = False
    ends_ensemble: bool = False
    ends_everyone: bool = False


def _with(name: str, values: list[Any], datatype: str | None = None) -> Change:
    def change(message: Any) -> None:
        for place, tensor in enumerate(message.inputs):
            if tensor.name == name:
                del message.inputs[place]
                del message.raw_input_contents[place]
                break
        add_input(message, name, values, datatype=datatype)

    return change


def bad_input_table(prompt: str) -> tuple[BadInput, ...]:
    """The requests that every server must refuse.

    Args:
        prompt: A prompt that by itself is fine.
    """
    good = GenerateRequest(prompt, max_tokens=4)
    return (
        BadInput("bytes that are not UTF-8", GenerateRequest(b"caf\xe9 \xff", max_tokens=4)),
        BadInput(
            "max_tokens missing", GenerateRequest(prompt, max_tokens=None), ends_ensemble=True
        ),
        BadInput("max_tokens zero", GenerateRequest(prompt, max_tokens=0)),
        BadInput("max_tokens negative", GenerateRequest(prompt, max_tokens=-5)),
        BadInput(
            "max_tokens beyond the engine",
            GenerateRequest(prompt, max_tokens=2**31 - 1, end_id=NO_END),
            may_be_cut=True,
        ),
        BadInput("prompt too long", GenerateRequest(f"{prompt} " * 40_000, max_tokens=4)),
        BadInput("max_tokens as INT64", good, _with("max_tokens", [4], "INT64")),
        BadInput("two values of max_tokens", good, _with("max_tokens", [4, 4])),
        BadInput("two texts in one prompt", good, _with("text_input", [prompt, prompt])),
        BadInput("unknown tensor", good, _with("no_such_tensor", [1], "INT32")),
        BadInput("temperature negative", GenerateRequest(prompt, max_tokens=4, temperature=-1.0)),
        BadInput("top_p above 1", GenerateRequest(prompt, max_tokens=4, top_p=1.5)),
        BadInput(
            "beam_width above the engine's", good, _with("beam_width", [64]), ends_everyone=True
        ),
        BadInput(
            "context logits of an engine without them",
            good,
            _with("return_context_logits", [True]),
            may_be_answered=True,
        ),
        BadInput(
            "bad_words where they cannot be kept",
            GenerateRequest(prompt, max_tokens=4, bad_words=("the",)),
            may_be_answered=True,
        ),
    )


@check(
    "wrong requests are refused with a clear error, and the next right one is answered",
    asks="wrong values, types and shapes, one request each, and then a right one",
)
def bad_inputs(context: Context) -> Details:
    """Each row of :func:`bad_input_table`, then a request whose answer is known.

    Only how many tokens fit is an engine's own affair: TensorRT-LLM's executor takes as many as it
    has room for (``LlmRequest::validate``), others refuse the request. An answer that was cut has
    to say so.
    """
    if not context.on_triton:
        return bad_bodies(context)
    prompt = context.plan.prompts[0]
    before = context.greedy(prompt)
    guarded = not context.is_bare
    answers: dict[str, str] = {}
    wrong = []
    for row in bad_input_table(prompt):
        if row.ends_ensemble and not context.is_bls:
            continue
        if row.ends_everyone and not guarded:
            continue
        started = time.monotonic()
        answers[row.name], clear = _ask(context, row)
        if not clear:
            wrong.append(f"{row.name}: {answers[row.name]}")
        if not row.may_be_cut and time.monotonic() - started > context.plan.patience / 2:
            wrong.append(f"{row.name}: took {time.monotonic() - started:.0f} s to be refused")
        if not context.client.is_ready():
            raise CheckFailed(f"the server is not ready after {row.name}", answers=answers)
    if problem := changed_since(context, prompt, before):
        wrong.append(problem)
    if wrong:
        raise CheckFailed("; ".join(wrong), answers=answers)
    return {"answers": answers}


def _ask(context: Context, row: BadInput) -> tuple[str, bool]:
    """What the server said, and whether that was a clear refusal or an allowed answer."""
    message = encode_request(
        row.request,
        model=context.model,
        request_id=f"bad {row.name}",
        stream=not context.answers_once,
    )
    if row.change:
        row.change(message)
    patience = context.plan.patience
    try:
        if row.may_be_cut:
            return _cut(context, row.request, min(patience, _CUT_S))
        answer = context.triton.send(message, timeout=patience).completion()
    except InvalidRequest as error:
        return error.what, True
    except ClientError as error:
        return f"{type(error).__name__}: {error.what}", False
    return f"answered with {answer.text!r}", row.may_be_answered


def _cut(context: Context, request: GenerateRequest, seconds: float) -> tuple[str, bool]:
    """What became of a request for more tokens than fit, and whether the server is honest.

    Its end is only waited for so long: a large engine may have room for very many tokens.

    Raises:
        ClientError: It was refused, or nothing came.
    """
    try:
        answer = context.client.generate(request, timeout=seconds)
    except DeadlineExceeded:
        with context.client.stream(request, timeout=seconds) as stream:
            next(stream)  # a server that hangs does not come so far
        return f"still generated after {seconds:g} s", True
    if answer.finish_reason == "length":
        return f"cut after {answer.num_output_tokens} tokens", True
    return (
        f"answered with {answer.num_output_tokens} tokens, and the finish reason is "
        f"{answer.finish_reason}, not length"
    ), False
