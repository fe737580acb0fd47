"""Do many requests run together, and does a cancelled one make room?"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from itertools import accumulate, count

from pipeline.engine_client.connect import speaks_openai
from pipeline.engine_client.interface import AsyncTextClient, AsyncTextStream
from pipeline.triton.contract import BLS, ENGINE
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
)
from pipeline.verify.requests import NO_END
from pipeline.verify.same_text import difference, joined
from trtllm_client import Cancelled, Chunk

# Filling more slots than this would be a load test of a large GPU.
_MOST_SLOTS = 128
# A request with a slot starts faster than the slowest of those before it, which came all at once.
_SETTLE_FACTOR, _SHORTEST_SETTLE_S = 1.0, 0.1
_ATTEMPTS = 3
# Upstream's default of cancellation_check_period_ms (model_instance_state.cc).
_CANCELLATION_PERIOD_MS = 100
# The others have to go on for this part of what they had taken before, as the cancelled one would
# have ended about when they do.
_GO_ON_FACTOR = 0.1
# Two streams that follow each other seem to be open together when the first piece of the one is
# read before the last one of the other.
_OPEN_TOGETHER = 3


@check(
    "many streams are generated together, each with the text it has alone",
    asks="many streams at once",
)
def interleaved_streams(context: Context) -> Details:
    """All streams at once; several must be open together, and their texts be those of one alone.

    Texts are compared on ``tensorrt_llm_bls`` only: the ensemble's depend on where pieces end.
    """
    context.needs_streams()
    slots = _slots(context)
    many = min(context.plan.streams, context.most_requests)
    needed = min(slots, many, _OPEN_TOGETHER)
    if needed < 2:
        raise CheckSkipped("not exercised: the server takes one request at a time")
    plan = context.plan
    prompts = [plan.varied(prompt, number) for number in range(2) for prompt in plan.prompts]
    alone = [context.greedy(prompt, end_id=NO_END) for prompt in prompts]
    asked = [prompts[i % len(prompts)] for i in range(many)]
    streams = asyncio.run(_together(context, asked, context.plan.max_tokens))
    for number, stream in enumerate(streams):
        expected = alone[number % len(prompts)]
        problem = difference(context, asked[number], expected, joined(stream.chunks), may_end=False)
        if problem and context.is_bls:
            raise CheckFailed(f"stream {number} of {many} has another text than alone, {problem}")
    if _most_open(streams) < needed:
        # Short answers may be generated faster than requests arrive.
        streams = asyncio.run(_together(context, asked[: 2 * needed], context.longest))
    most = _most_open(streams)
    if most < needed:
        raise CheckFailed(
            f"the streams came one after the other: {most} of {len(streams)} were open at once",
            open_together=most,
        )
    pieces = sum(len(stream.chunks) for stream in streams)
    return {"streams": many, "pieces": pieces, "open_together": most}


def _slots(context: Context) -> int:
    """Requests that the engine generates at once; the plan's streams where it does not say."""
    return context.slots or context.plan.streams


@dataclass
class _Stream:
    """A stream that was read to its end.

    Attributes:
        chunks: Its pieces.
        places: The number of each piece among those of all streams, as they arrived.
    """

    chunks: list[Chunk] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def generated(self) -> tuple[int, int] | None:
        """When its first and its last token came, by the server's clock, in nanoseconds."""
        return _generated(self.chunks[-1]) if self.chunks else None


def _generated(last: Chunk) -> tuple[int, int] | None:
    """When the first token of a stream and the last until now came, by the server's clock."""
    first = last.perf_metrics and last.perf_metrics.first_token_time_ns
    end = last.perf_metrics and last.perf_metrics.last_token_time_ns
    return (first, end) if first and end else None


def _most_open(streams: list[_Stream]) -> int:
    """How many streams had begun and not ended, at most.

    What a busy machine reads late seems to come together, and what a server holds comes in one
    piece, so its own clock decides where it is told.
    """
    told = [generated for stream in streams if (generated := stream.generated)]
    if len(told) == len(streams):
        return _most_at_once(told)
    return _most_at_once([(s.places[0], s.places[-1]) for s in streams if len(s.places) > 1])


def _most_at_once(spans: list[tuple[int, int]]) -> int:
    """Of spans between two numbers, the most that overlap; one may end where another begins."""
    changes = sorted([*((start, 1) for start, _ in spans), *((end, -1) for _, end in spans)])
    return max(accumulate(change for _, change in changes), default=0)


async def _together(context: Context, prompts: list[str], tokens: int) -> list[_Stream]:
    numbers = count()
    async with context.async_client() as client:

        async def one(prompt: str) -> _Stream:
            stream = _Stream()
            async for chunk in client.stream(
                prompt,
                max_tokens=tokens,
                top_k=1,
                end_id=NO_END,
                return_perf_metrics=True,
                **context.scores,  # type: ignore[arg-type]
            ):
                stream.chunks.append(chunk)
                stream.places.append(next(numbers))
            return stream

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


@dataclass
class _Running:
    """A long request and what became of it.

    Attributes:
        first_s: Seconds until its first piece.
        finished: Whether its last piece came.
        finished_at: When it did, as ``time.monotonic``.
        generated: When its first and its latest token came, by the server's clock, in nanoseconds;
            None where the server does not say.
        another: Set with every piece, and at the end.
    """

    stream: AsyncTextStream
    started_at: float = field(default_factory=time.monotonic)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    first_s: float = 0.0
    finished: bool = False
    finished_at: float = math.inf
    generated: tuple[int, int] | None = None
    another: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Reads to the end, or until it is cancelled."""
        try:
            async for chunk in self.stream:
                self.first_s = self.first_s or time.monotonic() - self.started_at
                self.generated = _generated(chunk)
                self.first.set()
                self._finish(chunk.is_final)
                self.another.set()
            self._finish(True)
        except Cancelled:
            pass
        finally:
            self.another.set()

    def _finish(self, finished: bool) -> None:
        if finished and not self.finished:
            self.finished, self.finished_at = True, time.monotonic()


@check(
    "cancelling a request frees its slot at once for one that waits",
    asks="a stream in every slot, one more that waits, and one of them cancelled",
)
def cancel_frees_slot(context: Context) -> Details:
    """Fills every slot, lets one more request wait, cancels one; the waiting one must start.

    It must start while all the others still run, so only the cancelled slot can have been its own.
    """
    context.needs_streams()
    if context.slots is None:
        raise CheckSkipped(f"the server has no model {ENGINE} that says how many slots there are")
    slots = _slots(context)
    if not 1 <= slots <= min(_MOST_SLOTS, context.most_requests - 1):
        raise CheckSkipped(
            f"not exercised: the engine has {slots} slots, and the model takes "
            f"{context.most_requests} requests"
        )
    details = _proof(context, slots, context.longest)
    # Whatever was cancelled, the next request finds a working server.
    context.greedy(context.plan.prompts[0])
    return details


def _proof(context: Context, slots: int, tokens: int) -> Details:
    """One attempt that passes is enough: on a busy machine others may end by chance meanwhile.

    An attempt that proves nothing does not take back what another one found: a slot that was kept
    may be missing in the next attempt, which then cannot fill the server.
    """
    outcomes: list[CheckFailed | CheckSkipped] = []
    for _ in range(_ATTEMPTS):
        outcome = _attempt(context, slots, tokens)
        if isinstance(outcome, dict):
            return outcome
        outcomes.append(outcome)
    raise next((o for o in outcomes if isinstance(o, CheckFailed)), outcomes[-1])


def _attempt(context: Context, slots: int, tokens: int) -> Details | CheckFailed | CheckSkipped:
    try:
        return asyncio.run(_cancel_one(context, slots, tokens))
    except (CheckFailed, CheckSkipped) as outcome:
        return outcome


async def _cancel_one(context: Context, slots: int, tokens: int) -> Details:
    async with context.async_client() as client:
        running = [_start(client, context, tokens) for _ in range(slots)]
        waiting = None
        try:
            if not await _all_started(running, context.plan.patience):
                raise CheckSkipped(
                    f"not exercised: fewer than {slots} requests run at once (KV cache?)"
                )
            waiting = _start(client, context, tokens)
            slowest = max(request.first_s for request in running)
            await asyncio.sleep(max(_SETTLE_FACTOR * slowest, _SHORTEST_SETTLE_S))
            if waiting.first.is_set():
                raise CheckSkipped(f"not exercised: {slots} requests do not fill the server")
            if any(request.finished for request in running):
                raise CheckSkipped(f"not exercised: {tokens} tokens are generated too fast")
            cancelled_at = time.monotonic()
            await _cancel(client, running.pop(0))
            await asyncio.wait_for(waiting.first.wait(), context.plan.patience)
            waited = time.monotonic() - cancelled_at
            others_run = await _all_go_on(running, waiting)
            first_end = min((request.finished_at for request in running), default=math.inf)
        except asyncio.TimeoutError:
            raise CheckFailed(
                f"the waiting request did not start within {context.plan.patience:g} s"
            ) from None
        finally:
            everything = [*running, *([waiting] if waiting else [])]
            await asyncio.gather(*(_cancel(client, request) for request in everything))
    if not others_run and first_end - cancelled_at < _notice_s(context) + slowest:
        # Whether the slot was free before could not be seen.
        raise CheckSkipped(
            f"not exercised: another request ended {first_end - cancelled_at:.2f} s after the "
            "cancellation, too soon to tell whose slot was taken"
        )
    if not others_run:
        raise CheckFailed(
            "the waiting request started only when another one had finished, so the cancelled "
            "one kept its slot",
            waited_seconds=round(waited, 3),
        )
    return {"slots": slots, "waited_seconds": round(waited, 3)}


def _notice_s(context: Context) -> float:
    """Seconds within which the engine has to notice a cancellation: twice its period of looking."""
    name = "cancellation_check_period_ms"
    declared = (context.declared(name, ENGINE) if context.has(ENGINE) else None) or ""
    period = int(declared) if declared.isdecimal() else _CANCELLATION_PERIOD_MS
    return 2 * period / 1000


async def _all_go_on(running: list[_Running], waiting: _Running) -> bool:
    """Whether every request has tokens to come when the waiting one has its first.

    A busy machine may read pieces long after they were sent, and in another order, so the server's
    clock decides where it is told. Where it is not, another piece has to come before the last one.
    """
    pieces = await asyncio.gather(*(_goes_on(request, waiting.generated) for request in running))
    return all(pieces)


async def _goes_on(request: _Running, waiting: tuple[int, int] | None) -> bool:
    while not _is_past(request, waiting):
        if request.finished or (request.task and request.task.done()):
            return False
        request.another.clear()
        await request.another.wait()
        if not waiting:
            return not request.finished
    return True


def _is_past(request: _Running, waiting: tuple[int, int] | None) -> bool:
    """Whether a request has a token that came well after the first one of the waiting one."""
    if not waiting or not request.generated:
        return False
    first, latest = request.generated
    return latest - waiting[0] > _GO_ON_FACTOR * (waiting[0] - first)


def _start(client: AsyncTextClient, context: Context, tokens: int) -> _Running:
    stream = client.stream(
        context.plan.prompts[0],
        max_tokens=tokens,
        top_k=1,
        end_id=NO_END,
        return_perf_metrics=True,
    )
    running = _Running(stream)
    running.task = asyncio.get_running_loop().create_task(running.read())
    return running


async def _all_started(running: list[_Running], patience: float) -> bool:
    """Whether every request sent its first piece before any of them had finished."""
    starts = asyncio.create_task(_first_pieces(running))
    ends = [request.task for request in running if request.task]
    await asyncio.wait([starts, *ends], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    complete = starts.done() and not any(task.done() for task in ends)
    starts.cancel()
    await asyncio.gather(starts, return_exceptions=True)
    for task in ends:
        if task.done():
            task.result()
    return complete


async def _first_pieces(running: list[_Running]) -> None:
    for request in running:
        await request.first.wait()


async def _cancel(client: AsyncTextClient, request: _Running) -> None:
    request.stream.cancel()
    if client.model != BLS and not speaks_openai(client.url):
        # Triton does not tell the engine when a stream of the ensemble is cancelled.
        await client.cancel(request.stream.request_id)
    if request.task:
        await request.task
