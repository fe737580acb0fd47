"""What every request passes first: its id, the key, the body's size, and whether there is room."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipeline.gateway.desk import Desk, Record
from pipeline.gateway.errors import ApiError, busy, draining

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

API = "/v1/"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ENDPOINTS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/models"))
OTHER = "other"


class Front:
    """ASGI middleware around the application.

    Args:
        app: What answers.
        desk: Of the gateway.
    """

    def __init__(self, app: App, desk: Desk) -> None:
        self._app, self._desk = app, desk
        self._keys = [f"Bearer {key}".encode() for key in desk.options.keys]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else self._desk.new_id()
        path = scope["path"]
        record = Record(request_id, path if path in _ENDPOINTS else OTHER)
        scope.setdefault("state", {})["record"] = record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.code = record.code or message["status"]
                extra = [(b"x-request-id", request_id.encode())]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        if not path.startswith(API):
            await self._app(scope, receive, sending)
            return
        started = time.perf_counter()
        counted = scope["method"] == "POST"
        try:
            self._check(headers, counted=counted)
        except ApiError as error:
            record.error = error.message
            await send_error(error, request_id, sending)
        else:
            await self._count(scope, receive, sending, counted=counted)
        self._note(scope["method"], path, record, time.perf_counter() - started)

    async def _count(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, *, counted: bool
    ) -> None:
        if not counted:
            await self._app(scope, receive, send)
            return
        desk = self._desk
        desk.inflight += 1
        desk.metrics.inflight.inc()
        try:
            await self._app(scope, receive, send)
        finally:
            desk.inflight -= 1
            desk.metrics.inflight.dec()

    def _check(self, headers: dict[bytes, bytes], *, counted: bool) -> None:
        if self._keys:
            given = headers.get(b"authorization", b"")
            # All of them are looked at, so that the time tells nothing of which one is near.
            if not sum(hmac.compare_digest(given, key) for key in self._keys):
                raise ApiError(
                    401,
                    "This gateway asks for a key: send it as Authorization: Bearer KEY.",
                    code="invalid_api_key",
                )
        if not counted:
            return
        desk = self._desk
        if desk.draining:
            raise draining()
        if desk.inflight >= desk.options.most_requests:
            raise busy(
                f"The gateway answers {desk.options.most_requests} requests at a time, and as many "
                "are being answered. Ask again later."
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > desk.options.most_bytes:
            raise too_large(desk.options.most_bytes)

    def _note(self, method: str, path: str, record: Record, seconds: float) -> None:
        desk = self._desk
        desk.metrics.answered(record.endpoint, record.code, seconds)
        if method == "POST":
            what = path if record.endpoint != OTHER else "an unknown path"
            said = f"{method} {what} {record.code} in {seconds:.3f} s"
            if record.prompt_tokens:
                said += f", {record.prompt_tokens}+{record.generated} tokens"
            said += f", {record.request_id}"
            # What is wrong with a request may quote it, and a prompt is in no log.
            if record.error and record.code >= 500:
                said += f": {record.error}"
            desk.say(said)


def too_large(most_bytes: int) -> ApiError:
    """Makes the error for a body that is too large (413).

    Args:
        most_bytes: That it may have.
    """
    return ApiError(
        413, f"The body may have at most {most_bytes:,} bytes.", code="request_too_large"
    )


async def send_error(error: ApiError, request_id: str, send: Send) -> None:
    """Sends an error as the whole answer, without an application."""
    body = json.dumps(error.body(request_id)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
