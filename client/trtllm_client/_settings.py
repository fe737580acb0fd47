"""What both clients are set to, and what they do before anything is sent."""

from __future__ import annotations

import dataclasses
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtllm_client._config import Endpoint, Tls, parse_url
from trtllm_client._errors import InvalidRequest
from trtllm_client._grpc import Message
from trtllm_client._info import ModelMetadata
from trtllm_client._request import GenerateRequest
from trtllm_client._traits import Traits
from trtllm_client._wire import answer_whole, encode_request

if TYPE_CHECKING:
    from trtllm_client._request import SamplingOptions

# Everything but generation answers at once; longer than this is an outage.
INFO_TIMEOUT_S = 10.0
# The server closes the stream right after the final response; more than this is not waited for.
CLOSE_TIMEOUT_S = 1.0
# More than thirty years; gRPC's clock does not reach much further.
LONGEST_TIMEOUT_S = 1e9
# What gRPC takes as metadata; it has lower case names only.
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_HEADER_TEXT = re.compile(r"[\x20-\x7e]*")


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

    def deadline(self) -> float:
        """Computes when a call that starts now must be finished, in ``time.monotonic`` seconds.

        It is infinite where there is no timeout.
        """
        return math.inf if self.timeout is None else time.monotonic() + self.timeout

    def suited_to(self, traits: Traits) -> Prepared:
        """Adapts the request to how its model answers; changes the message in place."""
        if traits.decoupled:
            return self
        answer_whole(self.message)
        # A single response comes after the last token, so its wait is no stall.
        return dataclasses.replace(self, stall_timeout=None)


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
        accumulate_tokens: Whether each response of a stream holds the whole text so far; None takes
            the model's word.
    """

    endpoint: Endpoint
    model: str
    timeout: float | None
    stall_timeout: float | None
    headers: tuple[tuple[str, str], ...]
    validate: bool
    accumulate_tokens: bool | None

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
        accumulate_tokens: bool | None,
    ) -> Settings:
        """Checks the arguments of a client and keeps them.

        Raises:
            InvalidRequest: The address, a limit or a header is not usable.
        """
        return cls(
            endpoint=parse_url(url, secure=tls is not None),
            model=model,
            timeout=_seconds("timeout", timeout),
            stall_timeout=_seconds("stall_timeout", stall_timeout),
            headers=tuple(_header(name, value) for name, value in (headers or {}).items()),
            validate=validate,
            accumulate_tokens=accumulate_tokens,
        )

    def prepare(
        self,
        request: GenerateRequest | str | bytes,
        sampling: SamplingOptions,
        *,
        model: str | None,
        timeout: float | None,
        stream: bool,
    ) -> Prepared:
        """Makes the message for a prompt and fields, or for a request with fields replaced.

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

    def traits(self, metadata: ModelMetadata) -> Traits:
        """Says how a model answers, from what the server says about it and what the user does."""
        return Traits.of(metadata, self.accumulate_tokens)

    def assumed_traits(self) -> Traits:
        """Says how a model answers where the server does not: in pieces of new text."""
        return Traits(accumulates=bool(self.accumulate_tokens))

    def limit(self, timeout: float | None) -> float | None:
        """Returns the seconds that one call may take: its own, or the client's; None is no limit.

        Raises:
            InvalidRequest: It is not a positive number, or too large.
        """
        return self.timeout if timeout is None else _seconds("timeout", timeout)


def _seconds(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidRequest(f"{name} must be a number of seconds, not {value!r}")
    if value == math.inf:
        return None
    if not 0 < value <= LONGEST_TIMEOUT_S:
        raise InvalidRequest(
            f"{name} must be above 0 seconds and at most {LONGEST_TIMEOUT_S:g}, not {value!r}",
            fix="None is no limit",
        )
    return value


def _header(name: str, value: str) -> tuple[str, str]:
    for what, text, allowed in (
        ("name", str(name).lower(), _HEADER_NAME),
        ("value", value, _HEADER_TEXT),
    ):
        if not isinstance(text, str) or not allowed.fullmatch(text):
            # The value may be a secret, so it is not repeated.
            raise InvalidRequest(
                f"the header {name!r} has a {what} that gRPC cannot send",
                fix="Use letters, digits and _.- in a name, and printable ASCII text in a value",
            )
    return name.lower(), value
