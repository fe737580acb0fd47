"""What both clients are set to, and what they do before anything is sent."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.client._config import Endpoint, Tls, parse_url
from pipeline.client._errors import InvalidRequest
from pipeline.client._grpc import Message
from pipeline.client._request import GenerateRequest
from pipeline.client._wire import encode_request

# Everything but generation answers at once; longer than this is an outage.
INFO_TIMEOUT_S = 10.0
# The server closes the stream right after the final response; more than this is not waited for.
CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Prepared:
    """A message ready to be sent.

    Attributes:
        message: A ``ModelInferRequest``.
        timeout: Seconds for the whole call; None is no limit.
        stall_timeout: Seconds between two responses; None is no limit.
        max_tokens: The limit it runs under, if known.
        expects_data: Whether an end without any data is an error.
    """

    message: Message
    timeout: float | None
    stall_timeout: float | None
    max_tokens: int | None = None
    expects_data: bool = True


@dataclass(frozen=True)
class Settings:
    """The arguments of a client, checked.

    Attributes:
        endpoint: Where the server is.
        model: The Triton model that takes text.
        timeout: Seconds for a whole request; None is no limit.
        stall_timeout: Seconds between two responses of a stream; None is no limit.
        headers: gRPC metadata sent with every call.
        validate: Whether requests are checked before they are sent.
    """

    endpoint: Endpoint
    model: str
    timeout: float | None
    stall_timeout: float | None
    headers: tuple[tuple[str, str], ...]
    validate: bool

    @classmethod
    def build(
        cls,
        url: str,
        *,
        model: str,
        timeout: float | None,
        stall_timeout: float | None,
        tls: Tls | None,
        headers: Mapping[str, str] | None,
        validate: bool,
    ) -> Settings:
        """Checks the arguments of a client.

        Raises:
            InvalidRequest: The address or a limit is not usable.
        """
        return cls(
            endpoint=parse_url(url, secure=tls is not None),
            model=model,
            timeout=_seconds("timeout", timeout),
            stall_timeout=_seconds("stall_timeout", stall_timeout),
            headers=tuple((headers or {}).items()),
            validate=validate,
        )

    def prepare(
        self,
        request: GenerateRequest | str | bytes,
        sampling: Mapping[str, Any],
        *,
        model: str | None,
        timeout: float | None,
        stream: bool,
    ) -> Prepared:
        """The message for a prompt and fields, or for a request with fields replaced.

        Raises:
            InvalidRequest: The request is wrong.
        """
        if isinstance(request, GenerateRequest):
            request = dataclasses.replace(request, **sampling)
        else:
            request = GenerateRequest(request, **sampling)
        if self.validate:
            request.validate()
        message = encode_request(
            request,
            model=model or self.model,
            request_id=request.request_id or uuid.uuid4().hex,
            stream=stream,
        )
        # A single response comes after the last token, so its wait is no stall.
        stall_timeout = self.stall_timeout if stream else None
        return Prepared(message, self.limit(timeout), stall_timeout, request.max_tokens)

    def limit(self, timeout: float | None) -> float | None:
        """The limit of one call: its own, or else the client's."""
        return self.timeout if timeout is None else _seconds("timeout", timeout)


def _seconds(name: str, value: float | None) -> float | None:
    # Written so that NaN is refused too.
    if value is not None and not value > 0:
        raise InvalidRequest(f"{name} must be above 0 seconds, not {value:g}")
    return value
