"""The synchronous client of a server with OpenAI's API."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.engine_client.openai_answer import (
    Answer,
    Lines,
    completion_of,
    error_of,
    event_of,
    object_of,
)
from pipeline.engine_client.openai_request import as_it_is, body_of, named, text_of, with_fields
from pipeline.engine_client.openai_settings import (
    COMPLETIONS,
    DETOKENIZE,
    HEALTH,
    INFO_TIMEOUT_S,
    MODELS,
    PROPS,
    TOKENIZE,
    Served,
    Settings,
    checked,
    late,
    transport_error,
)
from trtllm_client import (
    Cancelled,
    Chunk,
    ClientError,
    Completion,
    GenerateRequest,
    InvalidRequest,
    ServerFailed,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtllm_client import ChatTemplate, ModelMetadata, ServerMetadata, Tls
    from trtllm_client._request import SamplingOptions


class OpenAiClient:
    """A connection to a server with OpenAI's API, such as llama.cpp's; safe to share.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        model: The model that takes the requests; None is the server's first.
        timeout: Seconds for a whole request; None and infinity are no limit.
        stall_timeout: Seconds between two pieces of a stream; likewise.
        tls: Certificates.
        headers: Sent with every request.

    Attributes:
        url: The address.
        model: The model's name; empty until the server was asked for it.

    Raises:
        InvalidRequest: The address, a limit or a certificate is not usable.
        MissingDependencyError: httpx2 is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float | None = 300.0,
        stall_timeout: float | None = 60.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = Settings.build(
            url, timeout=timeout, stall_timeout=stall_timeout, tls=tls, headers=headers
        )
        import httpx2

        self.url, self.model = self._settings.url, model or ""
        self._wanted = model
        self._http = httpx2.Client(**self._settings.connection())
        self._known: Served | None = None
        self._asking = Lock()

    def generate(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """Returns the whole answer in one response; see ``trtllm_client.Client.generate``."""
        asked = named(with_fields(request, sampling))
        body = {**body_of(asked, model=self._name(model), stream=False), **self._prompt(asked)}
        limit = self._settings.read_timeout(timeout, stream=False)
        content = object_of(self._post(COMPLETIONS, body, limit), self.url)
        answer = Answer.of(asked, self.url, whole=True)
        chunk = answer.feed(content)
        answer.end()
        return completion_of([chunk], asked.request_id or "")

    def stream(
        self,
        request: GenerateRequest | str | bytes,
        *,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> OpenAiStream:
        """Starts an answer in pieces; see ``trtllm_client.Client.stream``."""
        asked = named(with_fields(request, sampling))
        body = {**body_of(asked, model=self._name(model), stream=True), **self._prompt(asked)}
        return OpenAiStream(
            self._http,
            body,
            asked.request_id or "",
            Answer.of(asked, self.url, whole=False),
            self.url,
            read_timeout=self._settings.read_timeout(timeout, stream=True),
            deadline=self._settings.deadline(timeout),
        )

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: ChatTemplate | None = None,
        template_variables: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> OpenAiStream:
        """Starts the assistant's next message in pieces.

        The messages go through the model's own chat template here, as those to Triton do: a server
        that knows none writes them in a form that the model has never seen.
        """
        template = template or self.chat_template(model)
        text = template.render(messages, tools=tools, variables=template_variables)
        fields: SamplingOptions = {**sampling, "add_special_tokens": False}
        return self.stream(text, timeout=timeout, model=model, **fields)

    def chat_template(self, model: str | None = None) -> ChatTemplate:
        """Returns the chat template of the served model.

        Raises:
            InvalidRequest: The model has none, or the server does not say it.
            ClientError: The server does not answer.
        """
        return self._served(model).chat_template(self.url)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, where special tokens stand for themselves.

        Args:
            text: The text.
            add_special_tokens: Whether it gets what the tokenizer puts around a text.

        Raises:
            ClientError: The server does not answer, or is not llama.cpp's.
        """
        body = {"content": text, "add_special": add_special_tokens, "parse_special": True}
        answer = object_of(self._post(TOKENIZE, body, INFO_TIMEOUT_S), self.url)
        try:
            return [int(token) for token in answer["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailed("the server sent no token ids", where=self.url) from error

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text of token ids.

        Raises:
            ClientError: The server does not answer, or is not llama.cpp's.
        """
        body = {"tokens": list(tokens)}
        answer = object_of(self._post(DETOKENIZE, body, INFO_TIMEOUT_S), self.url)
        return str(answer.get("content", ""))

    def is_ready(self) -> bool:
        """Asks whether the server has loaded its model; no answer is False as well."""
        try:
            self._get(HEALTH)
            self._served(None, again=True)
        except ClientError:
            return False
        return True

    def metadata(self) -> ServerMetadata:
        """Asks the server for its name and version.

        Raises:
            ClientError: The server does not answer.
        """
        return self._served(None, again=True).server_metadata()

    def model_metadata(self, model: str | None = None) -> ModelMetadata:
        """Asks the server about a model.

        Raises:
            InvalidRequest: There is no such model.
            ClientError: The server does not answer.
        """
        return self._served(model).model_metadata()

    def cancel(self, request_id: str) -> None:
        """Does nothing: such a server knows no ids, and closing a stream ends its request."""

    def post(self, path: str, content: bytes, *, timeout: float | None = None) -> bytes:
        """Sends a body as it is, for tools that need what the other methods refuse.

        Raises:
            ClientError: The server refused it.
        """
        limit = self._settings.read_timeout(timeout, stream=False)
        return self._send("POST", path, content, limit)

    def close(self) -> None:
        """Closes the connection; running requests end."""
        self._http.close()

    def _served(self, model: str | None, *, again: bool = False) -> Served:
        with self._asking:
            if self._known is None or again:
                self._known = self._ask(self._wanted)
                self.model = self._known.name
            known = self._known
        return known if model in (None, known.name) else self._ask(model)

    def _ask(self, model: str | None) -> Served:
        models = object_of(self._get(MODELS), self.url)
        try:
            props = object_of(self._get(PROPS), self.url)
        except InvalidRequest:  # not llama.cpp's
            props = None
        return Served.read(models, props, model, self.url)

    def _name(self, model: str | None) -> str:
        return model or self.model or self._served(None).name

    def _prompt(self, request: GenerateRequest) -> dict[str, Any]:
        """The prompt as token ids, where nothing is to be put around it."""
        if not as_it_is(request, self._served(None).begin):
            return {}
        return {"prompt": self.tokenize(text_of(request), add_special_tokens=False)}

    def _get(self, path: str) -> bytes:
        return self._send("GET", path, None, INFO_TIMEOUT_S)

    def _post(self, path: str, body: Mapping[str, Any], limit: float | None) -> bytes:
        return self._send("POST", path, encoded(body), limit)

    def _send(self, method: str, path: str, content: bytes | None, limit: float | None) -> bytes:
        import httpx2

        try:
            response = self._http.request(method, path, content=content, timeout=limit)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise transport_error(error, self.url) from error
        except RuntimeError as error:  # so says httpx2 of a closed client
            raise closed(self.url) from error
        return checked(response.status_code, response.content, self.url)

    def __enter__(self) -> OpenAiClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OpenAiStream:
    """A running request; iterate it for its chunks.

    Leaving the ``with`` block, :meth:`cancel` or dropping the object ends the request on the server
    and frees its slot. One thread may iterate while others cancel.

    Attributes:
        request_id: The client's name of the request.
    """

    def __init__(
        self,
        http: Any,
        body: Mapping[str, Any],
        request_id: str,
        answer: Answer,
        address: str,
        *,
        read_timeout: float | None,
        deadline: float,
    ) -> None:
        self.request_id = request_id
        self._answer, self._address, self._deadline = answer, address, deadline
        self._received = 0
        self._cancelled = self._closed = False
        self._open = contextlib.ExitStack()
        self._response: Any = None
        self._lines: Iterator[str] | None = None
        self._request = (http, body, read_timeout)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """Returns the next chunk.

        Raises:
            StopIteration: The answer is complete, or the stream was closed.
            ClientError: The request failed.
        """
        if self._closed:
            raise StopIteration
        try:
            return self._read()
        except BaseException:
            self.close()
            raise

    def completion(self) -> Completion:
        """Collects what is left of the answer: all of it if nothing was read before.

        Raises:
            ClientError: The request failed.
        """
        return completion_of(list(self), self.request_id)

    def cancel(self) -> None:
        """Ends the request; a thread that waits for a chunk gets :class:`Cancelled`."""
        self._cancelled = True
        if self._response is not None:
            hang_up(self._response)

    def close(self) -> None:
        """Ends the request if it is still running."""
        self._closed = True
        self._open.close()

    def _read(self) -> Chunk:
        import httpx2

        try:
            if self._cancelled:
                raise Cancelled("the request was cancelled", where=self._address)
            lines = self._lines if self._lines is not None else self._start()
            for line in lines:
                if time.monotonic() >= self._deadline:
                    raise late(self._address, self._received)
                event = event_of(line, self._address)
                if event is not None:
                    self._received += 1
                    return self._answer.feed(event)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            if self._cancelled:
                raise Cancelled("the request was cancelled", where=self._address) from error
            if time.monotonic() >= self._deadline:
                raise late(self._address, self._received) from error
            raise transport_error(error, self._address, received=self._received) from error
        except RuntimeError as error:  # so says httpx2 of a closed client
            raise closed(self._address) from error
        if self._cancelled:
            raise Cancelled("the request was cancelled", where=self._address)
        self._answer.end()
        raise StopIteration

    def _start(self) -> Iterator[str]:
        http, body, read_timeout = self._request
        self._response = self._open.enter_context(
            http.stream("POST", COMPLETIONS, content=encoded(body), timeout=read_timeout)
        )
        if self._response.status_code >= 400:
            text = self._response.read()
            raise error_of(self._response.status_code, text, self._address)
        self._lines = _lines(self._response)
        return self._lines

    def __enter__(self) -> OpenAiStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def hang_up(response: Any) -> None:
    """Ends the connection of an answer under whoever reads it, which closing would not wake."""
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream else None
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _lines(response: Any) -> Iterator[str]:
    cut = Lines()
    for some in response.iter_raw():
        yield from cut.feed(some)


def encoded(body: Mapping[str, Any]) -> bytes:
    """Writes a body as JSON.

    Raises:
        InvalidRequest: A text is not UTF-8.
    """
    import json

    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "a text of the request is not valid UTF-8", why=error.reason
        ) from error


def closed(address: str) -> InvalidRequest:
    """Makes the error of a client that is used after it was closed."""
    return InvalidRequest(
        "the client is closed", where=address, fix="Make a new client; this one was closed"
    )
