"""Do many requests run together, and does a cancelled one make room?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise

from pipeline.triton.contract import BLS, ENGINE
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    as_long_as_accepted,
    check,
    first_difference,
)
from pipeline.verify.requests import NO_END
from trtllm_client import AsyncClient, AsyncStream, Cancelled

# Filling more slots than this would be a load test of a large GPU.
_MOST_SLOTS = 128
# A request with a slot starts faster than the slowest of those before it, which came all at once.
_SETTLE_FACTOR, _SHORTEST_SETTLE_S = 1.0, 0.1
_ATTEMPTS = 3


@check("many streams are generated together, each with the text it has alone")
def interleaved_streams(context: Context) -> Details:
    """All streams at once; their pieces must arrive mixed and their texts be those of one alone.

    Texts are compared on ``tensorrt_llm_bls`` only: the ensemble's depend on where pieces end.
    """
    context.needs_streams()
    prompts = [f"{prompt} {number}" for number in range(2) for prompt in context.plan.prompts]
    alone = [context.greedy(prompt, end_id=NO_END).text for prompt in prompts]
    count = context.plan.streams
    order, texts = asyncio.run(
        _together(context, [prompts[i % len(prompts)] for i in range(count)])
    )
    for number, text in enumerate(texts):
        expected = alone[number % len(prompts)]
        if text != expected and context.is_bls:
            raise CheckFailed(
                f"stream {number} of {count} has another text than alone, "
                f"{first_difference(expected, text)}"
            )
    switches = sum(a != b for a, b in pairwise(order))
    # One after the other gives count - 1 switches.
    if switches < 2 * count:
        raise CheckFailed(
            f"the streams came one after the other: {len(order)} pieces, {switches} switches",
            switches=switches,
        )
    return {"streams": count, "pieces": len(order), "switches": switches}


async def _together(context: Context, prompts: list[str]) -> tuple[list[int], list[str]]:
    order: list[int] = []
    async with context.async_client() as client:

        async def one(number: int, prompt: str) -> str:
            text = ""
            async for chunk in client.stream(
                prompt, max_tokens=context.plan.max_tokens, top_k=1, end_id=NO_END
            ):
                order.append(number)
                text += chunk.text
            return text

        texts = await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))
    return order, list(texts)


@dataclass
class _Running:
    """A long request and what became of it.

    Attributes:
        first_s: Seconds until its first piece.
        finished: Whether its last piece came.
        another: Set with every piece, and at the end.
    """

    stream: AsyncStream
    started_at: float = field(default_factory=time.monotonic)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    first_s: float = 0.0
    finished: bool = False
    another: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Reads to the end, or until it is cancelled."""
        try:
            async for chunk in self.stream:
                self.first_s = self.first_s or time.monotonic() - self.started_at
                self.first.set()
                self.finished = chunk.is_final
                self.another.set()
            self.finished = True
        except Cancelled:
            pass
        finally:
            self.another.set()


@check("cancelling a request frees its slot at once for one that waits")
def cancel_frees_slot(context: Context) -> Details:
    """Fills every slot, lets one more request wait, cancels one; the waiting one must start.

    It must start while all the others still run, so only the cancelled slot can have been its own.
    """
    context.needs_streams()
    if not context.has(ENGINE):
        raise CheckSkipped(f"the server has no model {ENGINE} that says how many slots there are")
    slots = context.client.model_metadata(ENGINE).max_batch_size
    if not 1 <= slots <= _MOST_SLOTS:
        raise CheckSkipped(f"not exercised: the engine has {slots} slots")
    details = _proof(context, slots, _long_tokens(context))
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


def _long_tokens(context: Context) -> int:
    """The longest answer, up to the plan's, that the engine accepts."""

    def ask(tokens: int) -> int:
        # To its end: a request that is cancelled here could take the slot in question.
        context.greedy(context.plan.prompts[0], tokens, end_id=NO_END)
        return tokens

    return as_long_as_accepted(context.plan.long_tokens, ask)


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
            others_run = await _all_go_on(running)
        except asyncio.TimeoutError:
            raise CheckFailed(
                f"the waiting request did not start within {context.plan.patience:g} s"
            ) from None
        finally:
            everything = [*running, *([waiting] if waiting else [])]
            await asyncio.gather(*(_cancel(client, request) for request in everything))
    if not others_run:
        raise CheckFailed(
            "the waiting request started only when another one had finished, so the cancelled "
            "one kept its slot",
            waited_seconds=round(waited, 3),
        )
    return {"slots": slots, "waited_seconds": round(waited, 3)}


async def _all_go_on(running: list[_Running]) -> bool:
    """Whether every request has another piece to come before its last one.

    Pieces of different streams may be read in another order than they were sent in, so that none
    has finished yet says nothing.
    """
    for request in running:
        request.another.clear()
    going_on = [request for request in running if not request.finished]
    await asyncio.gather(*(request.another.wait() for request in going_on))
    return not any(request.finished for request in running)


def _start(client: AsyncClient, context: Context, tokens: int) -> _Running:
    stream = client.stream(context.plan.prompts[0], max_tokens=tokens, top_k=1, end_id=NO_END)
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


async def _cancel(client: AsyncClient, request: _Running) -> None:
    request.stream.cancel()
    if client.model != BLS:
        # Triton does not tell the engine when a stream of the ensemble is cancelled.
        await client.cancel(request.stream.request_id)
    if request.task:
        await request.task
