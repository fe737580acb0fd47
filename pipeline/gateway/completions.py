"""``POST /v1/completions``: plain texts, several at once, with the prompt's log probabilities."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pipeline.gateway.desk import Desk, Record
from pipeline.gateway.engine import Generation, Input, Tokens
from pipeline.gateway.model import Model
from pipeline.gateway.sampling import NO_END, end_inputs, is_greedy, sampling_inputs
from pipeline.gateway.schema import CompletionBody
from pipeline.gateway.stream import event, json_bytes
from pipeline.gateway.text import Piece, Writer
from pipeline.gateway.usage import counting_inputs, usage
from pipeline.triton.contract import SCORES_PROMPTS
from trtllm_client import ServerFailed

AT_ONCE = 32
"""Prompts of one request that are sent to the engine at a time, where it does not say how many."""

_HALF = math.log(0.5)


@dataclass(frozen=True)
class Prompt:
    """One prompt of a request, ready to be answered.

    Attributes:
        index: Its place among the request's prompts.
        text: As the request has it; None where it has token ids.
        asked: What the engine is to generate.
        max_tokens: Tokens of the answer; 0 where only the prompt is wanted.
    """

    index: int
    text: str | None
    asked: Generation
    max_tokens: int


@dataclass
class Scores:
    """The lists of OpenAI's ``Logprobs``, of tokens one after the other."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def as_dict(self, *, top: bool) -> dict[str, Any]:
        """Returns the lists by name.

        Args:
            top: Whether the likeliest tokens are known.
        """
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs if top else None,
            "text_offset": self.text_offset,
        }


@dataclass
class Part:
    """What is new of one choice."""

    index: int
    text: str
    scores: Scores | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of a request.

    Attributes:
        body: Of the request.
        items: In the request's order.
    """

    body: CompletionBody
    items: tuple[Prompt, ...]


def prepare(body: CompletionBody, model: Model, request_id: str) -> Prompts:
    """Encodes the prompts and says what is to be generated; takes a moment for long ones.

    Args:
        body: Of the request, checked.
        model: The model.
        request_id: The id to run under; of several prompts each has its number behind it.

    Raises:
        ApiError: A prompt is too long, or has no token.
    """
    inputs: dict[str, Input] = {
        **sampling_inputs(body),
        **end_inputs(model.end_ids, ignored=bool(body.ignore_eos)),
        **counting_inputs(body, model.limits.block),
        **model.adapter_inputs(body.model),
    }
    if body.logprobs is not None:
        inputs["return_log_probs"] = True
        if body.echo:
            inputs[SCORES_PROMPTS] = True
    given = body.prompts
    found = []
    for index, prompt in enumerate(given):
        param = f"prompt[{index}]" if len(given) > 1 else "prompt"
        if isinstance(prompt, str):
            ids = model.encode(prompt, param, add_special_tokens=body.add_special_tokens)
        else:
            ids = prompt
            model.check_ids(ids, param)
        limit = model.room(len(ids), body.max_tokens, param)
        # An engine always makes a token, which is left out where none is wanted.
        asked = Generation(
            tuple(ids),
            max(limit, 1),
            inputs,
            f"{request_id}-{index}" if len(given) > 1 else request_id,
            seed_is_free=body.seed is None,
        )
        found.append(Prompt(index, prompt if isinstance(prompt, str) else None, asked, limit))
    return Prompts(body, tuple(found))


class CompletionAnswer:
    """The answers to the prompts of one request, whole or in pieces.

    Args:
        desk: Of the gateway.
        prompts: From :func:`prepare`.
        record: Told how many tokens it were.
    """

    def __init__(self, desk: Desk, prompts: Prompts, record: Record) -> None:
        body = prompts.body
        self._desk, self._body, self._prompts = desk, body, prompts.items
        self._record = record
        self._id, self._created = f"cmpl-{record.request_id}", int(time.time())
        at_once = desk.model.limits.requests or AT_ONCE
        self._room, self._asking = asyncio.Semaphore(at_once), asyncio.Semaphore(at_once)
        self._reused: list[int | None] = [None for _ in prompts.items]
        self._top = bool(body.logprobs) and (is_greedy(body) or body.max_tokens == 0)
        record.prompt_tokens = sum(len(prompt.asked.prompt) for prompt in prompts.items)

    async def whole(self) -> dict[str, Any]:
        """Returns the whole answer (OpenAI's ``Completion``)."""
        texts = ["" for _ in self._prompts]
        scores = [Scores() for _ in self._prompts]
        reasons: list[str | None] = [None for _ in self._prompts]

        async def one(prompt: Prompt) -> None:
            place = prompt.index
            async with aclosing(self._parts(prompt)) as parts:
                async for part in parts:
                    texts[place] += part.text
                    if part.scores is not None:
                        for name, values in vars(part.scores).items():
                            getattr(scores[place], name).extend(values)
                    reasons[place] = part.finish_reason

        await _together([one(prompt) for prompt in self._prompts])
        choices = [
            self._choice(Part(n, texts[n], scores[n], reasons[n])) for n in range(len(texts))
        ]
        return {**self._head(), "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yields the events of a stream."""
        counts = self._body.counts_tokens
        head = self._head()
        # What is the same in all of them is written once.
        begin = event({**head, "choices": []}).removesuffix(b"]}\n\n")
        end = b'],"usage":null}\n\n' if counts else b"]}\n\n"
        async with aclosing(self._merged()) as parts:
            async for part in parts:
                yield begin + json_bytes(self._choice(part)) + end
        if counts:
            yield event({**head, "choices": [], "usage": self._usage()})

    async def _merged(self) -> AsyncGenerator[Part, None]:
        """The parts of all choices as they come."""
        if len(self._prompts) == 1:
            async with aclosing(self._parts(self._prompts[0])) as parts:
                async for part in parts:
                    yield part
            return
        waiting: asyncio.Queue[Part | None] = asyncio.Queue(maxsize=2 * len(self._prompts))

        async def one(prompt: Prompt) -> None:
            async with aclosing(self._parts(prompt)) as parts:
                async for part in parts:
                    await waiting.put(part)

        async def all_of_them() -> None:
            try:
                await _together([one(prompt) for prompt in self._prompts])
            finally:
                await waiting.put(None)

        work = asyncio.ensure_future(all_of_them())
        try:
            while (next_part := await waiting.get()) is not None:
                yield next_part
            await work
        finally:
            work.cancel()
            while not work.done():
                # One that waits for room is to see that it was cancelled.
                while not waiting.empty():
                    waiting.get_nowait()
                await asyncio.wait({work}, timeout=0.1)

    async def _parts(self, prompt: Prompt) -> AsyncGenerator[Part, None]:
        """The parts of one choice."""
        async with self._room:
            body, model = self._body, self._desk.model
            writer = Writer(
                model.tokenizer,
                prompt=prompt.asked.prompt,
                max_tokens=prompt.asked.max_tokens,
                end_ids=() if body.ignore_eos else model.end_ids,
                stop=body.stops,
            )
            if body.echo and body.logprobs is None and prompt.max_tokens == 0:
                yield await self._echo(prompt, None)
                return
            before = echoed = 0
            async with aclosing(self._desk.generate(prompt.asked, writer)) as pieces:
                first: list[Piece] = []
                if body.echo:
                    if body.logprobs is not None:
                        first = [await anext(pieces)]
                    part = await self._echo(prompt, first[0] if first else None)
                    yield part
                    if prompt.max_tokens == 0:
                        return
                    echoed = len(part.text)
                async for piece in _chained(first, pieces):
                    self._record.generated += writer.tokens - before
                    before = writer.tokens
                    self._reused[prompt.index] = writer.reused_blocks
                    scores = None
                    if piece.log_probs is not None:
                        scores = self._scores(piece, piece.log_probs, echoed)
                    if piece.text or scores or piece.finish_reason:
                        yield Part(prompt.index, piece.text, scores, piece.finish_reason)

    def _scores(self, piece: Piece, values: Sequence[float], echoed: int) -> Scores:
        texts = [self._desk.model.token(id_)[0] for id_ in piece.ids]
        return Scores(
            texts,
            list(values),
            # Of a greedy answer each token is the likeliest.
            [{text: value} for text, value in zip(texts, values, strict=True)],
            [echoed + offset for offset in piece.offsets],
        )

    async def _echo(self, prompt: Prompt, scored: Piece | None) -> Part:
        """The prompt as the beginning of its answer, with what its tokens count for.

        Args:
            prompt: The prompt.
            scored: With the log probabilities of its tokens; None where they are not wanted.
        """
        model, ids = self._desk.model, prompt.asked.prompt
        reason = "length" if prompt.max_tokens == 0 else None
        text, offsets = _offsets(model, ids)
        shown = text if prompt.text is None else prompt.text
        if scored is None:
            return Part(prompt.index, shown, None, reason)
        found = scored.prompt_log_probs
        if found is None or len(found) != len(ids) - 1:
            raise ServerFailed(
                f"the server gave {len(found or ())} log probabilities for a prompt of {len(ids)} "
                "tokens"
            )
        texts = [model.token(id_)[0] for id_ in ids]
        tops: list[dict[str, float] | None] = [None]
        if self._top:
            tops += await asyncio.gather(
                *(self._top_of(ids, place, score) for place, score in enumerate(found, 1))
            )
        return Part(prompt.index, shown, Scores(texts, [None, *found], tops, offsets), reason)

    async def _top_of(self, ids: Sequence[int], place: int, score: float) -> dict[str, float]:
        """The token at a place of a prompt, and the likeliest one there, with their scores.

        The engine says the former alone. One with more than half of the probability is the
        likeliest; for the others the engine is asked what it would say there.
        """
        model = self._desk.model
        id_ = ids[place]
        text = model.token(id_)[0]
        if score > _HALF:
            return {text: score}
        inputs: dict[str, Input] = {
            "runtime_top_k": 1,
            "end_id": NO_END,
            "return_log_probs": True,
        }
        asked = Generation(tuple(ids[:place]), 1, inputs, self._desk.new_id())
        async with self._asking, self._desk.tokens(asked) as responses:
            async for tokens in responses:
                if tokens.ids and tokens.log_probs:
                    best = tokens.ids[0]
                    if best == id_:
                        break
                    other = model.token(best)[0]
                    # Two tokens may have one text, such as parts of characters.
                    return {
                        text: score,
                        other if other != text else f"token_id:{best}": (tokens.log_probs[0]),
                    }
        return {text: score}

    def _choice(self, part: Part) -> dict[str, Any]:
        scores = None
        if self._body.logprobs is not None and part.scores is not None:
            scores = part.scores.as_dict(top=self._top)
        return {
            "index": part.index,
            "text": part.text,
            "logprobs": scores,
            "finish_reason": part.finish_reason,
        }

    def _head(self) -> dict[str, Any]:
        model = self._desk.model
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._body.model or model.name,
            "system_fingerprint": model.fingerprint,
        }

    def _usage(self) -> dict[str, Any]:
        reused = [blocks for blocks in self._reused if blocks is not None]
        return usage(
            self._record.prompt_tokens,
            self._record.generated,
            sum(reused) if reused else None,
            self._desk.model.limits.block,
        )


def _offsets(model: Model, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of tokens, and where in it each of them begins."""
    writer = Writer(model.tokenizer, prompt=(), max_tokens=len(ids))
    piece = writer.push(Tokens(tuple(ids)))
    return piece.text + writer.finish().text, list(piece.offsets)


async def _chained(
    first: Sequence[Piece], rest: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Does all of them; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
