"""Are NVIDIA's own requests taken, and mistakes of spelling not?"""

from __future__ import annotations

import math
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.triton.contract import ENGINE, PREPROCESSING
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    as_long_as_accepted,
    check,
)
from pipeline.verify.requests import (
    NO_END,
    Value,
    engine_inputs,
    number_of,
    request,
    stop_message,
    text_inputs,
    text_of,
)
from pipeline.verify.same_text import answer_of, difference
from pipeline.verify.tokens import token_ids
from trtllm_client import ClientError, InvalidRequest

_TOKENS = 4
_MISSPELT = "temprature"
# Inputs of earlier releases of NVIDIA's repository, by their name today.
_RENAMED = {"random_seed": "seed", "min_length": "min_tokens"}
_STOP_PERIOD_S = 0.05
# Of so many stops the first one that ends its generation decides, or so many that did not.
_ATTEMPTS, _FAILURES = 5, 2
# Fewer tokens may be generated before a stop arrives.
_FEWEST_TO_STOP = 100
# Seconds. A busy machine may hand on a message so late.
_LATE_S = 0.25


@check(
    "the request that NVIDIA's client stops with ends the generation",
    asks="a long request to tensorrt_llm, and stop with its id",
    tensors=True,
)
def stop_request(context: Context) -> Details:
    """Stops a long request to ``tensorrt_llm`` by its id, with the client's own parameter.

    ``inflight_batcher_llm_client.py --stop-after-ms`` sends it once, so once must do.
    """
    if not (context.has(ENGINE) and context.has(PREPROCESSING)):
        raise CheckSkipped(f"the server has no {ENGINE} and {PREPROCESSING}")
    ids = token_ids(context, context.plan.prompts[0])
    stop = _stop_streamed if context.decoupled(ENGINE) else _stop_whole

    def ask(tokens: int) -> Details:
        if tokens < _FEWEST_TO_STOP:
            raise CheckSkipped(
                f"not exercised: a generation of {tokens} tokens, for which the engine has room, "
                "is over before a stop can come"
            )
        ran_on = 0
        for _ in range(_ATTEMPTS):
            count, went_on = stop(context, ids, tokens)
            if count < tokens:
                return {"asked_for": tokens, "generated": count}
            # A stop that came when most was generated proves nothing, and on a busy machine what
            # is read late may have been generated long before.
            ran_on += went_on > max(_whole_seconds(context, ids, tokens) / 2, _LATE_S)
            if ran_on == _FAILURES:
                raise CheckFailed(f"the generation ran on to all its {tokens} tokens")
        raise CheckSkipped("not exercised: the server generates faster than it could be stopped")

    return as_long_as_accepted(context.longest, ask)


def _whole_seconds(context: Context, ids: list[int], tokens: int) -> float:
    """Seconds from the first token to the last one of a generation that nobody stops."""
    inputs = engine_inputs(ids, tokens, stream=context.decoupled(ENGINE))
    started = time.monotonic()
    running = context.triton.responses(request(ENGINE, inputs, request_id=uuid.uuid4().hex))
    if context.decoupled(ENGINE):
        next(running)
        started = time.monotonic()
    for _ in running:
        pass
    return time.monotonic() - started


def _stop_streamed(context: Context, ids: list[int], tokens: int) -> tuple[int, float]:
    """How many tokens came, and seconds from the answer to the stop until the last of them."""
    request_id = uuid.uuid4().hex
    inputs = engine_inputs(ids, tokens, stream=True)
    running = context.triton.responses(request(ENGINE, inputs, request_id=request_id))
    count = number_of(next(running), "sequence_length")
    _send_stop(context, request_id)
    stopped = time.monotonic()
    count += sum(number_of(tensors, "sequence_length") for tensors in running)
    return count, time.monotonic() - stopped


def _stop_whole(context: Context, ids: list[int], tokens: int) -> tuple[int, float]:
    """Where nothing says that the generation has begun, the stop is sent until it has ended."""
    request_id = uuid.uuid4().hex
    inputs = engine_inputs(ids, tokens, stream=False, exclude_input_in_output=True)
    message = request(ENGINE, inputs, request_id=request_id)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: list(context.triton.responses(message)))
        answer.add_done_callback(lambda _: ended.set())
        stopped = math.inf
        while not ended.wait(_STOP_PERIOD_S):
            _send_stop(context, request_id)
            stopped = min(stopped, time.monotonic())
        went_on = time.monotonic() - stopped
    return sum(number_of(tensors, "sequence_length") for tensors in answer.result()), went_on


def _send_stop(context: Context, request_id: str) -> None:
    message = stop_message(request_id, {"Streaming": True, "stray": "anything"})
    try:
        for _ in context.triton.responses(message):
            pass
    except ClientError as error:
        raise CheckFailed(f"the stop request was refused: {error.what}") from error


@check(
    "request parameters of NVIDIA's clients are taken, a misspelt input is refused by name",
    asks="the request parameter Streaming, and a misspelt one",
    tensors=True,
)
def request_parameters(context: Context) -> Details:
    """``Streaming`` on the text model and the engine; an input that was meant, on the text model.

    Triton's generate endpoint makes a parameter of every key that is no input.
    """
    prompt = context.plan.prompts[0]
    messages = {context.model: text_inputs([prompt], _TOKENS, stream=False)}
    if context.has(ENGINE) and context.has(PREPROCESSING):
        messages[ENGINE] = engine_inputs(token_ids(context, prompt), _TOKENS, stream=False)
    for model, inputs in messages.items():
        message = request(model, inputs, parameters={"Streaming": False})
        try:
            if not list(context.triton.responses(message)):
                raise CheckFailed(f"{model} gave no answer to a request with Streaming")
        except ClientError as error:
            raise CheckFailed(
                f"{model} refuses the parameter Streaming of NVIDIA's client: {error.what}"
            ) from error
    refusal = _refusal(context, messages[context.model], _MISSPELT)
    if not re.search(rf"\b{_MISSPELT}\b", refusal):
        raise CheckFailed(f"the refusal of {_MISSPELT} does not name it: {refusal}")
    return {"refusal": refusal}


@check(
    "an input by its name of earlier releases is refused with the name of today",
    asks="random_seed and min_length",
    tensors=True,
)
def old_names(context: Context) -> Details:
    """As a request parameter, which is what the generate endpoint makes of it."""
    inputs = text_inputs([context.plan.prompts[0]], _TOKENS, stream=False)
    refusals = {}
    for old, new in _RENAMED.items():
        refusals[old] = refusal = _refusal(context, inputs, old)
        if not re.search(rf"\b{new}\b", refusal):
            raise CheckFailed(f"the refusal of {old} does not say {new}: {refusal}")
    return {"refusals": refusals}


def _refusal(context: Context, inputs: Mapping[str, Sequence[Value]], name: str) -> str:
    """What the server says to a request with a parameter that is no input."""
    message = request(context.model, inputs, parameters={name: 7})
    try:
        texts = [text_of(tensors) for tensors in context.triton.responses(message)]
    except InvalidRequest as error:
        return error.what
    raise CheckFailed(f"a request with {name}, which is not an input, was answered with {texts}")


@check(
    "models that are not decoupled answer a plain unary call, with the same text",
    asks="one prompt as a plain ModelInfer call",
    tensors=True,
)
def unary_call(context: Context) -> Details:
    """``ModelInfer`` against ``ModelStreamInfer`` on each text model that answers once."""
    prompt = context.plan.prompts[0]
    inputs = text_inputs([prompt], context.plan.max_tokens, stream=False, **context.scores)
    answered = []
    for model in context.text_models():
        if context.decoupled(model):
            continue
        answer = answer_of([context.triton.infer_tensors(request(model, inputs))])
        expected = context.greedy(prompt, end_id=NO_END)
        if problem := difference(context, prompt, expected, answer, may_end=False):
            raise CheckFailed(
                f"{model} answered {answer.text!r} to a unary call, not {expected.text!r}, "
                f"{problem}"
            )
        answered.append(model)
    if not answered:
        raise CheckSkipped("every text model here is decoupled, so Triton refuses unary calls")
    return {"models": answered}
