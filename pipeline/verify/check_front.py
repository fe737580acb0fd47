"""HTTP, metrics, a full queue and a cache of prompts."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.engine_client.interface import AsyncTextClient
from pipeline.triton.contract import BLS, ENGINE
from pipeline.verify.check import (
    DECODES_PIECES,
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    as_long_as_accepted,
    check,
)
from pipeline.verify.http import posted, read_metrics, total
from pipeline.verify.requests import NO_END
from pipeline.verify.same_text import Answer, difference
from trtllm_client import ClientError, Completion, ServerBusy

_TOKENS = 12
# More streams than this would be a load test.
_MOST_STREAMS = 1024
_BAD_REQUEST = range(400, 500)
_PAIRS = 5
_WORDS = 512
_FEW = 4
_FLOOD = 4
_PATIENCE_S = 10.0
_LOOK_S = 0.02
_LOOKS = 50
_ANSWERS = 3


@check(
    "HTTP's generate and generate_stream give the text of gRPC, and refuse what is wrong as 4xx",
    asks="generate, generate_stream and a negative temperature on each text model, over HTTP",
    thorough=True,
    tensors=True,
)
def http_generate(context: Context) -> Details:
    """Texts of a stream are joined; the ensemble's only where it is ASCII."""
    prompt = context.plan.prompts[0]
    said: dict[str, Any] = {}
    for model in context.text_models():
        body = {"text_input": prompt, "max_tokens": _TOKENS, "top_k": 1, "end_id": NO_END}
        whole = _whole(context, model, body)
        expected = context.greedy(prompt, _TOKENS, end_id=NO_END, model=model)
        if not context.scores and whole != expected.text:
            raise CheckFailed(f"{model}: {whole!r} over HTTP, {expected.text!r} over gRPC")
        if context.decoupled(model):
            pieces = posted(context, model, {**body, "stream": True}, stream=True)
            texts = [piece.get("text_output", "") for piece in pieces]
            text = texts[-1] if context.accumulates and model == BLS else "".join(texts)
            same = text == whole or (model != context.model and not whole.isascii())
            if not context.scores and not same:
                raise CheckFailed(f"{model}: {text!r} streamed over HTTP, {whole!r} whole")
        (refused,) = posted(context, model, {**body, "temperature": -1.0}, stream=False)
        if refused.get("status") not in _BAD_REQUEST or not refused.get("error"):
            raise CheckFailed(f"{model}: a negative temperature is answered with {refused}")
        said[model] = refused["error"]
    return {"said": said, "note": DECODES_PIECES}


def _whole(context: Context, model: str, body: Mapping[str, Any]) -> str:
    answers = posted(context, model, body, stream=False)
    if len(answers) != 1 or "text_output" not in answers[0]:
        raise CheckFailed(f"{model}: generate answered {answers}")
    return str(answers[0]["text_output"])


@check(
    "the metrics have Triton's and the C++ backend's families, and move with the requests",
    asks="the metrics before, while and after requests run",
    thorough=True,
    tensors=True,
)
def metrics_move(context: Context) -> Details:
    """``nv_inference_*`` of Triton and ``nv_trt_llm_*`` of the engine."""
    before = read_metrics(context)
    families = {name for name, _ in before}
    needed = {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_request_duration_us",
    }
    if context.has(ENGINE):
        needed |= {"nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"}
    if missing := sorted(needed - families):
        raise CheckFailed(f"there is no {', '.join(missing)}", families=sorted(families))
    count = 3
    for _ in range(count):
        context.greedy(context.plan.prompts[0], _TOKENS)
    grown = _wait(
        context,
        lambda now: (
            (
                (total(now, "nv_inference_request_success", model=context.model) or 0)
                - (total(before, "nv_inference_request_success", model=context.model) or 0)
            )
            >= count
        ),
    )
    if not grown:
        raise CheckFailed(f"nv_inference_request_success did not grow by {count}")
    seen: dict[str, float] = {}
    if context.has(ENGINE) and context.decoupled():
        seen["pieces"] = _pieces_while_active(context)
    return {"families": sorted(families), **seen}


def _pieces_while_active(context: Context) -> int:
    """Counts the pieces of a long answer, during which the metrics show that it runs.

    Raises:
        CheckFailed: They do not. On a busy machine an answer may be whole before they are read, so
            a few are asked for.
    """
    for _ in range(_ANSWERS):
        with context.client.stream(
            context.plan.prompts[0], max_tokens=context.longest, top_k=1, end_id=NO_END
        ) as stream:
            next(stream)
            running = _seen_active(context)
            rest = sum(1 for _ in stream)
        if running or rest <= context.plan.max_tokens:
            return rest
    raise CheckFailed('nv_trt_llm_request_metrics{request_type="active"} did not move')


def active(metrics: Any) -> float | None:
    """Requests that the engine works on."""
    return total(metrics, "nv_trt_llm_request_metrics", request_type="active")


def _seen_active(context: Context) -> bool:
    """Whether the metrics show a request that runs; they are renewed a few times in a second."""
    for _ in range(_LOOKS):
        if active(read_metrics(context)):
            return True
        time.sleep(_LOOK_S)
    return False


def _wait(context: Context, condition: Any) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition(read_metrics(context)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


@check(
    "more requests than the server takes are refused as busy, in words, and the others answered",
    asks="more streams at once than the model and the engine's queue take",
    thorough=True,
    tensors=True,
)
def queue_full(context: Context) -> Details:
    """``max_concurrent_requests`` of the text model, or the engine's slots and its queue."""
    most = _most(context)
    if most is None:
        raise CheckSkipped("the server does not say how many requests it takes")
    if most > _MOST_STREAMS:
        raise CheckSkipped(f"not exercised: {most} streams would be a load test")
    asked = most + max(16, most // 4)
    answers = asyncio.run(_flood(context, asked))
    refused = [answer for answer in answers if isinstance(answer, ClientError)]
    wrong = [error for error in refused if not isinstance(error, ServerBusy)]
    if wrong:
        raise CheckFailed(
            f"{len(wrong)} of {asked} requests failed otherwise than as refused for a full queue: "
            f"{type(wrong[0]).__name__}: {wrong[0].what}"
        )
    if not refused:
        raise CheckSkipped(f"not exercised: {asked} requests at once did not fill the server")
    answered = [answer for answer in answers if isinstance(answer, str)]
    if len(set(answered)) > 1 and context.tolerance is None:
        raise CheckFailed("requests at a full queue have other texts", texts=sorted(set(answered)))
    context.greedy(context.plan.prompts[0])
    return {"asked": asked, "refused": len(refused), "said": refused[0].what}


def _most(context: Context) -> int | None:
    declared = context.declared("max_concurrent_requests") if context.is_bls else None
    if declared and declared.isdecimal():
        return int(declared)
    queue = context.declared("max_queue_size", ENGINE) if context.has(ENGINE) else None
    if queue and queue.isdecimal() and int(queue) > 0:
        return int(queue) + context.client.model_metadata(ENGINE).max_batch_size
    return None


async def _flood(context: Context, asked: int) -> list[str | ClientError]:
    # Long enough that the first are not over when the last come.
    tokens = min(_FLOOD * context.plan.max_tokens, context.longest)
    async with context.async_client() as client:
        return list(await asyncio.gather(*(_one(client, context, tokens) for _ in range(asked))))


async def _one(client: AsyncTextClient, context: Context, tokens: int) -> str | ClientError:
    try:
        answer = await client.generate(
            context.plan.prompts[0], max_tokens=tokens, top_k=1, end_id=NO_END
        )
    except ClientError as error:
        return error
    return answer.text


@check(
    "a prompt whose beginning is in the cache has the same text, and its first token comes sooner",
    asks="a long prompt twice, several times, against others of the same length",
    thorough=True,
    tensors=True,
)
def kv_reuse(context: Context) -> Details:
    """The times are the server's own, of pairs that follow each other; their median counts."""
    words = as_long_as_accepted(_WORDS, lambda count: _takes(context, count))
    pairs = []
    reused = 0
    for _ in range(_PAIRS):
        text = _long_prompt(context, words)
        cold, warm = (
            context.greedy(text, _FEW, end_id=NO_END, return_perf_metrics=True) for _ in range(2)
        )
        reused = max(reused, (warm.perf_metrics and warm.perf_metrics.kv_cache_reused_blocks) or 0)
        if problem := difference(context, text, _plain(cold), _plain(warm)):
            raise CheckFailed(f"the second time the text differs, {problem}")
        pairs.append((_first(cold), _first(warm)))
    if not reused:
        raise CheckSkipped("the server reuses no KV blocks (kv_cache_reused_blocks is 0)")
    ratio = statistics.median(warm / cold for cold, warm in pairs if cold > 0)
    if ratio >= 1:
        raise CheckFailed(
            f"with {reused} blocks from the cache the first token took {ratio:.2f} times as long",
            seconds=pairs,
        )
    return {"reused_blocks": reused, "first_token_ratio": round(ratio, 3)}


def _long_prompt(context: Context, count: int) -> str:
    """A text of so many words whose beginning no other has."""
    words = " ".join(context.plan.plain_prompts).split()
    return " ".join([uuid.uuid4().hex[:6], *(words * (count // len(words) + 1))[:count]])


def _takes(context: Context, count: int) -> int:
    context.greedy(_long_prompt(context, count), _FEW, end_id=NO_END)
    return count


def _plain(answer: Completion) -> Answer:
    return Answer(answer.text, answer.output_log_probs)


def _first(answer: Completion) -> float:
    """Seconds from the engine's taking a request up to its first token."""
    metrics = answer.perf_metrics
    if metrics is None:
        raise CheckFailed("the server sent no performance metrics")
    begin, end = metrics.first_scheduled_time_ns, metrics.first_token_time_ns
    return ((end or 0) - (begin or 0)) / 1e9
