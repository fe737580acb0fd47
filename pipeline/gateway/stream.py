"""Answers in pieces, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from pipeline.gateway.desk import ClientGone, Desk, Record
from pipeline.gateway.errors import ApiError, from_client, unexpected
from pipeline.gateway.metrics import CLIENT_GONE
from trtllm_client import ClientError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # A proxy in between would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
]


def event(content: Any) -> bytes:
    """Writes one event.

    Args:
        content: A JSON value.
    """
    return b"data: " + json_bytes(content) + b"\n\n"


def json_bytes(content: Any) -> bytes:
    """Writes JSON as short as it gets, in UTF-8."""
    return _ENCODER.encode(content).encode()


class EventStream(Response):
    """Sends events as they come, and an error event where they break off.

    Args:
        desk: Of the gateway.
        events: The events; their first one is there already, so an error that comes before any of
            it is an answer with its own status.
        record: Told what became of the stream.
    """

    def __init__(
        self,
        desk: Desk,
        events: AsyncGenerator[bytes, None],
        record: Record,
    ) -> None:
        super().__init__()
        self._desk, self._events = desk, events
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of it."""
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        failed: ApiError | None = None
        try:
            await self._desk.unless_gone(receive, self._pump(send))
            return
        except ClientGone:
            self._record.code = CLIENT_GONE
            return
        except ApiError as error:
            failed = error
        except ClientError as error:
            failed = from_client(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the client is told, and the log
            failed = unexpected(error, self._record.request_id)
        finally:
            await self._events.aclose()
        self._desk.metrics.broke()
        self._record.code, self._record.error = failed.status, failed.message
        await send(_part(event(failed.body(self._record.request_id)), more=False))

    async def _pump(self, send: Send) -> None:
        async for data in self._events:
            await send(_part(data, more=True))
        await send(_part(DONE, more=False))


def _part(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def begun(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Waits for the first event, and returns all of them.

    Args:
        events: Not begun.
    """
    first = await anext(events, b"")

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for data in events:
                yield data
        finally:
            await events.aclose()

    return all_of_them()
