"""``POST /v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pipeline.gateway.desk import Desk, Record
from pipeline.gateway.engine import Generation, Input
from pipeline.gateway.messages import plain_messages
from pipeline.gateway.model import Model
from pipeline.gateway.sampling import end_inputs, sampling_inputs
from pipeline.gateway.schema import ChatBody
from pipeline.gateway.stream import event
from pipeline.gateway.text import Piece, Writer
from pipeline.gateway.tools.choice import AnswerPlan, plan_answer
from pipeline.gateway.tools.history import with_calls
from pipeline.gateway.tools.markers import special_markers
from pipeline.gateway.tools.parts import Content, Part, delta_of, message_of
from pipeline.gateway.usage import counting_inputs, usage

_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")


@dataclass(frozen=True)
class Chat:
    """A chat that is ready to be answered.

    Attributes:
        body: Of the request.
        asked: What the engine is to generate.
        plan: What is done about tools and the answer's format.
        created: When, in seconds since 1970.
    """

    body: ChatBody
    asked: Generation
    plan: AnswerPlan
    created: int


def prepare(body: ChatBody, model: Model, request_id: str) -> Chat:
    """Renders the messages and says what is to be generated; takes a moment for a long chat.

    Args:
        body: Of the request, checked.
        model: The model.
        request_id: The id to run under.

    Raises:
        ApiError: The messages do not suit the model's template, or are too long.
        ToolsRefused: The tools or the answer's format cannot be had.
    """
    offers = model.offers
    plan = plan_answer({name: getattr(body, name) for name in _OF_TOOLS}, offers)
    text = model.render(
        with_calls(plain_messages(body.messages), offers.form),
        tools=plan.tools,
        variables=body.chat_template_kwargs,
    )
    # The template has written every special token there is to be.
    prompt = tuple(model.encode(text, "messages", add_special_tokens=False))
    inputs: dict[str, Input] = {
        **sampling_inputs(body),
        **end_inputs(model.end_ids, ignored=bool(body.ignore_eos)),
        **counting_inputs(body, model.limits.block),
        **model.adapter_inputs(body.model),
    }
    if body.logprobs:
        inputs["return_log_probs"] = True
    if plan.guide is not None:
        inputs |= plan.guide.inputs
    limit = model.room(len(prompt), body.limit, "messages")
    asked = Generation(prompt, limit, inputs, request_id, seed_is_free=body.seed is None)
    return Chat(body, asked, plan, int(time.time()))


class ChatAnswer:
    """The answer to one chat, whole or in pieces.

    Args:
        desk: Of the gateway.
        chat: The chat.
        record: Told how many tokens it were.
    """

    def __init__(self, desk: Desk, chat: Chat, record: Record) -> None:
        self._desk, self._chat, self._record = desk, chat, record
        body, model = chat.body, desk.model
        ends = () if body.ignore_eos else model.end_ids
        self._writer = Writer(
            model.tokenizer,
            prompt=chat.asked.prompt,
            max_tokens=chat.asked.max_tokens,
            end_ids=ends,
            stop=body.stops,
            markers=special_markers(model.tokenizer, chat.plan.markers),
        )
        self._reader = chat.plan.reader()
        record.prompt_tokens = len(chat.asked.prompt)
        self._id = f"chatcmpl-{record.request_id}"

    async def whole(self) -> dict[str, Any]:
        """Returns the whole answer (OpenAI's ``ChatCompletion``)."""
        found: list[Part] = []
        scores: list[dict[str, Any]] = []
        reason = None
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                found += self._parts(piece)
                scores += self._scores(piece)
                reason = piece.finish_reason
        choice = {
            "index": 0,
            "message": {**message_of(found), "refusal": None},
            "logprobs": {"content": scores, "refusal": None} if self._chat.body.logprobs else None,
            "finish_reason": self._reason(reason),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yields the events of a stream (OpenAI's ``ChatCompletionChunk``)."""
        counts = self._chat.body.counts_tokens
        begun = False
        write = _ChunkWriter(self._head("chat.completion.chunk"), counts=counts)
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    yield write({"role": "assistant", "content": ""})
                scores = self._scores(piece)
                parts = self._parts(piece)
                if scores and not parts:
                    parts = [Content("")]
                for part in parts:
                    yield write(delta_of(part), scores or None)
                    scores = []
                if piece.finish_reason is not None:
                    yield write({}, finish_reason=self._reason(piece.finish_reason))
        if counts:
            yield event(
                {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
            )

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._desk.generate(self._chat.asked, self._writer)) as pieces:
            async for piece in pieces:
                self._record.generated = self._writer.tokens
                yield piece

    def _parts(self, piece: Piece) -> list[Part]:
        parts = self._reader.feed(piece.text) if piece.text else []
        return parts if piece.finish_reason is None else [*parts, *self._reader.finish()]

    def _reason(self, reason: str | None) -> str | None:
        return None if reason is None else self._chat.plan.finish_reason(reason, self._reader.calls)

    def _head(self, kind: str) -> dict[str, Any]:
        model = self._desk.model
        return {
            "id": self._id,
            "object": kind,
            "created": self._chat.created,
            "model": self._chat.body.model or model.name,
            "system_fingerprint": model.fingerprint,
        }

    def _usage(self) -> dict[str, Any]:
        writer, block = self._writer, self._desk.model.limits.block
        return usage(len(self._chat.asked.prompt), writer.tokens, writer.reused_blocks, block)

    def _scores(self, piece: Piece) -> list[dict[str, Any]]:
        if piece.log_probs is None:
            return []
        made = []
        for id_, score in zip(piece.ids, piece.log_probs, strict=True):
            text, data = self._desk.model.token(id_)
            made.append({"token": text, "bytes": list(data), "logprob": score, "top_logprobs": []})
        return made


class _ChunkWriter:
    """Writes chunks; what is the same in all of them is written once."""

    def __init__(self, head: dict[str, Any], *, counts: bool) -> None:
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
        self._head = f'data: {text[:-1]},"choices":[{{"index":0,"delta":'
        # With usage asked for, every chunk but the last has none, and says so.
        self._tail = '}],"usage":null}\n\n' if counts else "}]}\n\n"

    def __call__(
        self,
        delta: dict[str, Any],
        scores: list[dict[str, Any]] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        written = json.dumps(delta, ensure_ascii=False, separators=(",", ":"))
        probs = "null"
        if scores is not None:
            probs = json.dumps({"content": scores, "refusal": None}, ensure_ascii=False)
        reason = "null" if finish_reason is None else f'"{finish_reason}"'
        return (
            f'{self._head}{written},"logprobs":{probs},"finish_reason":{reason}{self._tail}'
        ).encode()
