"""Does a client that leaves, however it does so, make room at once?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.triton.contract import BLS, ENGINE, ENSEMBLE, PREPROCESSING
from pipeline.verify.check import (
    Check,
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
)
from pipeline.verify.check_edges import longest_sequence
from pipeline.verify.check_front import active
from pipeline.verify.http import opened_stream, read_metrics
from pipeline.verify.requests import NO_END
from pipeline.verify.tokens import token_ids
from trtllm_client import Cancelled, DeadlineExceeded

FREED_S = 0.5
"""Seconds within which the engine must have let go of a request whose client has left."""

_LONG = 16_384
_LOOK_S = 0.02
# A machine that stands still for so long between two looks cannot tell.
_STALL_S = 0.15
_ATTEMPTS = 5
# What has lived longer than this share of a whole request may have ended by itself.
_SHARE = 0.75
_DEADLINE_SHARE = 0.2
Leave = Callable[[Context, str, int, float], tuple[float, float]]

# Its own process, so that it can die without a word; what it is to send comes on standard input.
_CLIENT = """
import json, sys
from trtllm_client import Client, Tls
asked = json.load(sys.stdin)
tls = Tls(**asked["tls"]) if asked["tls"] else None
with Client(asked["url"], tls=tls, headers=asked["headers"], validate=False) as client:
    with client.stream(asked["prompt"], model=asked["model"], **asked["fields"]) as stream:
        next(stream)
        print("started", flush=True)
        for _ in stream:
            pass
"""


def leaving_checks() -> Iterator[Check]:
    """Makes a check for each way to leave."""
    for name, how, leave in (
        ("client_cancels", "cancels its stream", _cancelled),
        ("client_dies", "is killed in the middle of its stream", _killed),
        ("client_deadline", "has a deadline that passes", _late),
        ("http_disconnects", "closes its connection to generate_stream", _disconnected),
    ):
        yield Check(
            name,
            f"a long stream of {BLS} and of {ENSEMBLE} whose client {how}",
            f"where a client {how}, the engine has let go of the request within {FREED_S:g} s",
            _proof_of(leave),
            thorough=True,
            tensors=True,
        )


@dataclass(frozen=True)
class _Attempt:
    """A client that left.

    Attributes:
        seconds: From its leaving until its slot was seen to be free.
        lived: From its first piece until then.
        stalled: Whether this machine stood still meanwhile, so that the slot may have been free
            long before it was seen.
    """

    seconds: float
    lived: float
    stalled: bool


def _proof_of(leave: Leave) -> Callable[[Context], Details]:
    def run(context: Context) -> Details:
        context.needs_streams()
        if not (context.has(ENGINE) and context.has(PREPROCESSING)):
            raise CheckSkipped(f"the server has no {ENGINE} and {PREPROCESSING}")
        _idle(context)
        tokens = _most_tokens(context)
        models = [model for model in (BLS, ENSEMBLE) if context.has(model)]
        return {"seconds": {model: _freed(context, model, tokens, leave) for model in models}}

    return run


def _most_tokens(context: Context) -> int:
    begin = len(token_ids(context, context.plan.prompts[0]))
    return min(longest_sequence(context) - begin, _LONG)


def _freed(context: Context, model: str, tokens: int, leave: Leave) -> float:
    """Seconds after which the slot was free in the first of a few attempts that is as it must be.

    The request must have ended well before it would have by itself: on a fast server that is soon.
    """
    _idle(context)
    whole = _whole_seconds(context, model, tokens)
    tried: list[_Attempt] = []
    for _ in range(_ATTEMPTS):
        _idle(context)
        one = _leave(context, model, tokens, leave, whole)
        if one.seconds <= FREED_S and one.lived < _SHARE * whole:
            return round(one.seconds, 3)
        tried.append(one)
    counted = [one for one in tried if not one.stalled]
    if not counted:
        raise CheckSkipped("not exercised: this machine is too busy to tell when the slot was free")
    best = min(counted, key=lambda one: one.seconds)
    if best.seconds > FREED_S:
        raise CheckFailed(
            f"{model}: the slot was free after {best.seconds:.2f} s, not within {FREED_S:g} s",
            whole_seconds=round(whole, 3),
        )
    if _SHARE * whole < FREED_S:
        raise CheckSkipped(
            f"not exercised: {model} generates all its {tokens} tokens in {whole:.2f} s"
        )
    raise CheckFailed(
        f"{model}: the request ran on for {best.lived:.2f} s, and it takes {whole:.2f} s to its end"
    )


def _leave(context: Context, model: str, tokens: int, leave: Leave, whole: float) -> _Attempt:
    began, left = leave(context, model, tokens, whole)
    last, longest = time.monotonic(), 0.0
    while active(read_metrics(context)):
        time.sleep(_LOOK_S)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if now - left > context.plan.patience:
            raise CheckFailed(f"{model}: the slot was not free after {now - left:.0f} s")
    freed = time.monotonic()
    return _Attempt(freed - left, freed - began, longest > _STALL_S)


def _whole_seconds(context: Context, model: str, tokens: int) -> float:
    with _streamed(context, model, tokens) as stream:
        next(stream)
        started = time.monotonic()
        for _ in stream:
            pass
    return time.monotonic() - started


def _idle(context: Context) -> None:
    """Waits until nothing runs."""
    deadline = time.monotonic() + context.plan.patience
    while (now := active(read_metrics(context))) != 0:
        if now is None:
            raise CheckSkipped("the server has no nv_trt_llm_request_metrics")
        if time.monotonic() > deadline:
            raise CheckSkipped("not exercised: others use the server")
        time.sleep(_LOOK_S)


def _running(context: Context) -> None:
    """Waits until the metrics show the request, so that they can show its end."""
    deadline = time.monotonic() + 1.0
    while not active(read_metrics(context)):
        if time.monotonic() > deadline:
            raise CheckSkipped("not exercised: the metrics never showed the request")
        time.sleep(_LOOK_S)


def _fields(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "top_k": 1, "end_id": NO_END}


@contextmanager
def _streamed(
    context: Context, model: str, tokens: int, timeout: float | None = None
) -> Iterator[Any]:
    with context.client.stream(
        context.plan.prompts[0], model=model, timeout=timeout, **_fields(tokens)
    ) as stream:
        yield stream


def _cancelled(context: Context, model: str, tokens: int, _whole: float) -> tuple[float, float]:
    with _streamed(context, model, tokens) as stream:
        next(stream)
        began = time.monotonic()
        _running(context)
        left = time.monotonic()
        stream.cancel()
        try:
            for _ in stream:
                pass
        except Cancelled:
            pass
    return began, left


def _late(context: Context, model: str, tokens: int, whole: float) -> tuple[float, float]:
    began = time.monotonic()
    try:
        with _streamed(context, model, tokens, _DEADLINE_SHARE * whole) as stream:
            next(stream)
            began = time.monotonic()
            for _ in stream:
                pass
    except DeadlineExceeded:
        return began, time.monotonic()
    raise CheckSkipped(f"not exercised: {tokens} tokens are generated before the deadline")


def _killed(context: Context, model: str, tokens: int, _whole: float) -> tuple[float, float]:
    tls = context.tls
    asked = {
        "url": context.url,
        "tls": tls and {k: str(v) for k, v in vars(tls).items() if v is not None},
        "headers": dict(context.headers or {}),
        "model": model,
        "prompt": context.plan.prompts[0],
        "fields": _fields(tokens),
    }
    with subprocess.Popen(
        [sys.executable, "-c", _CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            json.dump(asked, client.stdin)
            client.stdin.close()
            if client.stdout.readline().strip() != "started":
                raise CheckFailed(f"{model}: a client in its own process got no piece")
            began = time.monotonic()
            _running(context)
        finally:
            client.kill()
        return began, time.monotonic()


def _disconnected(context: Context, model: str, tokens: int, _whole: float) -> tuple[float, float]:
    body = {"text_input": context.plan.prompts[0], "stream": True, **_fields(tokens)}
    with opened_stream(context, model, body):
        began = time.monotonic()
        _running(context)
        left = time.monotonic()
    return began, left
