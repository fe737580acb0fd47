"""The application: its routes, and what becomes of errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.dependencies import check_installed
from pipeline.gateway.desk import ClientGone, Desk
from pipeline.gateway.errors import INVALID, ApiError, from_client, refused, unexpected
from pipeline.gateway.front import Front, too_large
from pipeline.gateway.metrics import CLIENT_GONE
from pipeline.gateway.requirements import REQUIREMENTS
from pipeline.gateway.schema import ChatBody, CompletionBody, Sampling, parse
from trtllm_client import ClientError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

Result = TypeVar("Result")
Body = TypeVar("Body", bound=Sampling)

INLINE_BYTES = 8192
"""A body up to this size is made tokens of in the event loop; a larger one would hold it up."""

BODY_S, SLOWEST = 30.0, 65_536
"""A request's body may take so many seconds, and one more for so many bytes that it may have."""


def make_app(desk: Desk) -> FastAPI:
    """Makes the application of a gateway.

    Args:
        desk: The engine, the model and how to run. Its engine is closed with the application.

    Raises:
        MissingDependencyError: A package of the extra ``gateway`` is not installed.
    """
    check_installed(REQUIREMENTS)
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response

    from pipeline.gateway.chat import ChatAnswer
    from pipeline.gateway.chat import prepare as prepare_chat
    from pipeline.gateway.completions import CompletionAnswer
    from pipeline.gateway.completions import prepare as prepare_completion
    from pipeline.gateway.stream import EventStream, begun

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await desk.engine.close()

    # No pages of its own: they load scripts from elsewhere.
    app = FastAPI(
        title="trtllm-pipeline gateway",
        openapi_url=None,
        lifespan=lifespan,
        # A redirect would lead to whatever the client calls this host.
        redirect_slashes=False,
    )
    app.add_middleware(Front, desk=desk)
    app.state.desk = desk

    def failed(request: Request, error: Exception) -> Response:
        record = request.state.record
        if isinstance(error, ClientGone):
            record.code = CLIENT_GONE
            return Response(status_code=CLIENT_GONE)
        if isinstance(error, ClientError):
            error = from_client(error)
        elif isinstance(error, HTTPException):
            error = _of_route(error.status_code, request.url.path)
        elif not isinstance(error, ApiError):
            error = unexpected(error, record.request_id)
        record.error = error.message
        return JSONResponse(
            error.body(record.request_id), error.status, headers=dict(error.headers)
        )

    for kind in (ApiError, ClientError, ClientGone, HTTPException):
        app.add_exception_handler(kind, failed)

    async def chat_completions(request: Request) -> Response:
        return await answered(request, ChatBody, prepare_chat, ChatAnswer)

    async def completions(request: Request) -> Response:
        return await answered(request, CompletionBody, prepare_completion, CompletionAnswer)

    async def answered(
        request: Request, kind: type[Body], prepare: Callable[..., Any], make: Callable[..., Any]
    ) -> Response:
        record = request.state.record
        try:
            if desk.trouble is not None:
                raise ApiError(503, desk.trouble, kind="server_error", retry_after=1)
            content = await _read(request, desk.options.most_bytes)
            body = await _aside(content, parse, kind, content)
            if body.model is not None and not desk.model.answers_to(body.model):
                raise unknown_model(body.model)
            body.check()
            # The id that the engine knows it by is nobody's to choose.
            ready = await _aside(content, prepare, body, desk.model, desk.new_id())
            answer = make(desk, ready, record)
            if body.stream:
                events = await desk.unless_gone(request.receive, begun(answer.events()))
                return EventStream(desk, events, record)
            return JSONResponse(await desk.unless_gone(request.receive, answer.whole()))
        except (ApiError, ClientError, ClientGone, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the client is told, and the log
            return failed(request, error)

    async def models(_: Request) -> Response:
        names = (desk.model.name, *desk.model.aliases, *desk.model.adapters)
        return JSONResponse({"object": "list", "data": [_model(desk, name) for name in names]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if not desk.model.answers_to(name):
            raise unknown_model(name)
        return JSONResponse(_model(desk, name))

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        why = "draining" if desk.draining else desk.trouble
        if why is None and not await desk.engine.ready():
            why = "the server is not ready"
        if why is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "why": why}, 503)

    async def metrics(_: Request) -> Response:
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # Plain routes: what FastAPI would read out of their signatures is read from the body here.
    app.add_route("/v1/chat/completions", chat_completions, methods=["POST"])
    app.add_route("/v1/completions", completions, methods=["POST"])
    app.add_route("/v1/models", models, methods=["GET"])
    app.add_route("/v1/models/{name:path}", one_model, methods=["GET"])
    app.add_route("/health/live", live, methods=["GET"])
    app.add_route("/health/ready", ready, methods=["GET"])
    # What vLLM and llama.cpp's server call it; load balancers are set to it.
    app.add_route("/health", ready, methods=["GET"])
    app.add_route("/metrics", metrics, methods=["GET"])
    return app


def unknown_model(name: str) -> ApiError:
    """Makes the error for a model that is not served (404).

    Args:
        name: What the request calls it.
    """
    return ApiError(
        404,
        f"The model {name[:200]!r} is not served here: GET /v1/models lists what is.",
        param="model",
        code="model_not_found",
    )


def _model(desk: Desk, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": desk.model.created,
        "owned_by": "trtllm-pipeline",
        # Where vLLM says it, and clients look for it.
        "max_model_len": desk.model.limits.sequence,
        **({"parent": desk.model.name} if name in desk.model.adapters else {}),
    }


def _of_route(status: int, path: str) -> ApiError:
    if status == 405:
        return ApiError(405, f"{path} takes another method.", code="method_not_allowed")
    if status == 404:
        return ApiError(
            404,
            f"There is no {path} here: /v1/chat/completions, /v1/completions, /v1/models, "
            "/health/live, /health/ready and /metrics are.",
            code="unknown_url",
        )
    return ApiError(status, "The request cannot be answered.", kind=INVALID)


async def _read(request: Request, most_bytes: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A web page can make a browser send anything else to an address of this machine.
        raise ApiError(
            415,
            "The body must be sent as application/json: with curl, add -H 'Content-Type: "
            "application/json'.",
            code="unsupported_media_type",
        )
    limit_s = BODY_S + most_bytes / SLOWEST
    try:
        content = await asyncio.wait_for(_body(request, most_bytes), limit_s)
    except asyncio.TimeoutError:
        raise ApiError(
            408,
            f"The body was not complete after {limit_s:.0f} s.",
            code="request_timeout",
        ) from None
    if not content:
        raise refused("The body is empty: send a JSON object.")
    return content


async def _body(request: Request, most_bytes: int) -> bytes:
    from starlette.requests import ClientDisconnect

    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most_bytes:
                raise too_large(most_bytes)
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGone from error
    return b"".join(parts)


async def _aside(content: bytes, work: Callable[..., Result], *arguments: Any) -> Result:
    """Does work that takes longer the longer a body is: in a thread, if it is a long one."""
    if len(content) <= INLINE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
