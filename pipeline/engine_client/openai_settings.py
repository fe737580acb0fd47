"""Where a server with OpenAI's API is, how it is talked to, and what it says of itself."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.dependencies import require
from pipeline.engine_client.openai_answer import error_of
from pipeline.triton.access import KEY_HEADER
from trtllm_client import (
    ChatTemplate,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelMetadata,
    ServerMetadata,
    Tls,
)

COMPLETIONS, MODELS, HEALTH = "/v1/completions", "/v1/models", "/health"
# Beyond OpenAI's API, of llama.cpp's server alone.
PROPS, TOKENIZE, DETOKENIZE = "/props", "/tokenize", "/detokenize"
INFO_TIMEOUT_S = 10.0
"""Everything but generation answers at once; longer than this is an outage."""
# What llama.cpp's server says of a model without a chat template (common/chat.cpp): it does not
# refuse conversations then, and the model has never seen this form of them.
_NO_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "  {{- '<|im_start|>assistant\n' -}}\n"
    "{%- endif -%}"
)


@dataclass(frozen=True)
class Settings:
    """The arguments of a client, checked.

    Attributes:
        url: The address, without ``/v1`` and without a slash at its end.
        timeout: Seconds for a whole request; None is no limit.
        stall_timeout: Seconds between two pieces of a stream; None is no limit.
        headers: Sent with every request.
        verify: What httpx2 trusts: its own list, or certificates.
    """

    url: str
    timeout: float | None
    stall_timeout: float | None
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool

    @classmethod
    def build(
        cls,
        url: str,
        *,
        timeout: float | None,
        stall_timeout: float | None,
        tls: Tls | None,
        headers: Mapping[str, str] | None,
    ) -> Settings:
        """Checks the arguments.

        Raises:
            InvalidRequest: One is not usable.
            MissingDependencyError: httpx2 is not installed.
        """
        require("httpx2", "http")
        place = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(place)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if not named or parts.username:
            raise InvalidRequest(
                "the address of the server cannot be used",
                fix="Write http://HOST:PORT",
            )
        sent = dict(headers or {})
        if key := sent.pop(KEY_HEADER, None):
            sent["authorization"] = f"Bearer {key}"
        limits = [_limit(seconds) for seconds in (timeout, stall_timeout)]
        return cls(place, limits[0], limits[1], sent, _trust(tls))

    def connection(self) -> dict[str, Any]:
        """Returns the arguments of httpx2's clients, of both kinds."""
        import httpx2

        return {
            "base_url": self.url,
            "headers": {"accept-encoding": "identity", **self.headers},
            "verify": self.verify,
            # Proxies of the environment are for other addresses than a server of one's own.
            "trust_env": False,
            # A connection that the server is just closing would break the request that takes it.
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        }

    def read_timeout(self, timeout: float | None, *, stream: bool) -> float | None:
        """Returns the seconds that one wait may take; None is no limit.

        Args:
            timeout: For the whole request, instead of the client's.
            stream: Whether the answer comes in pieces.
        """
        whole = self.timeout if timeout is None else _limit(timeout)
        limits = [s for s in (whole, self.stall_timeout if stream else None) if s is not None]
        return min(limits) if limits else None

    def deadline(self, timeout: float | None) -> float:
        """Computes when a request that starts now must be finished, in ``time.monotonic``."""
        whole = self.timeout if timeout is None else _limit(timeout)
        return math.inf if whole is None else time.monotonic() + whole


def _limit(seconds: float | None) -> float | None:
    if seconds is None or seconds == math.inf:
        return None
    if not seconds > 0:
        raise InvalidRequest(f"a timeout must be above 0 seconds, not {seconds}")
    return float(seconds)


def _trust(tls: Tls | None) -> ssl.SSLContext | bool:
    if tls is None:
        return True
    if tls.server_name:
        raise InvalidRequest(
            "--tls-name is for gRPC; over https the certificate must have the address's own name"
        )
    try:
        root = tls.root_certificates
        context = ssl.create_default_context(cafile=str(root) if root else None)
        if tls.certificate_chain:
            context.load_cert_chain(
                str(tls.certificate_chain), tls.private_key and str(tls.private_key)
            )
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest("a TLS file cannot be used", why=str(error)) from error
    return context


def transport_error(error: Exception, address: str, *, received: int = 0) -> ClientError:
    """Makes the client's error of one of httpx2.

    Args:
        error: What httpx2 raised.
        address: The server's.
        received: Pieces of the answer that had arrived.
    """
    import httpx2

    arrived = f"{received} responses had arrived" if received else None
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        return ConnectionFailed(
            "no server answers",
            where=address,
            why=str(error) or None,
            fix="Check the address, and that the server runs",
        )
    if isinstance(error, httpx2.TimeoutException):
        return DeadlineExceeded(
            "no further answer in time" if received else "no answer in time",
            where=address,
            why=arrived,
            fix="Allow more time (timeout), or ask for fewer tokens",
        )
    return ConnectionFailed(
        "the connection broke",
        where=address,
        why=arrived or str(error) or type(error).__name__,
        fix="The server may have ended; its log has the cause",
    )


def late(address: str, received: int) -> DeadlineExceeded:
    """Makes the error of a request that was not finished in time."""
    return DeadlineExceeded(
        "the request was not finished in time" if received else "no answer in time",
        where=address,
        why=f"{received} responses had arrived" if received else None,
        fix="Allow more time (timeout), or ask for fewer tokens",
    )


@dataclass(frozen=True)
class Served:
    """What a server says of itself and its model.

    Attributes:
        name: The model's.
        server: The program's name, such as ``llamacpp``; empty where it is not said.
        version: Its version.
        slots: Requests that are generated together; 0 where that is not said.
        context: Tokens that prompt and answer of a request may have together; 0 likewise.
        template: The chat template's text; empty where there is none, or it is not said.
        tokens: Special tokens by their names in templates.
    """

    name: str
    server: str
    version: str
    slots: int
    context: int
    template: str
    tokens: Mapping[str, str]

    @property
    def begin(self) -> str:
        """The text of the token that begins every text; empty where that is not known."""
        return self.tokens.get("bos_token", "")

    @classmethod
    def read(
        cls, models: Mapping[str, Any], props: Mapping[str, Any] | None, model: str | None, url: str
    ) -> Served:
        """Reads the answers of ``/v1/models`` and of llama.cpp's ``/props``.

        Args:
            models: The one.
            props: The other; None where the server has no such page.
            model: The model that is wanted; None takes the first.
            url: The server's address, for errors.

        Raises:
            InvalidRequest: There is no such model, or the answer has another form.
        """
        try:
            entries = {str(entry["id"]): entry for entry in models["data"]}
            name = next(iter(entries)) if model is None else model
            if name not in entries:
                raise InvalidRequest(
                    f"the server has no model {name}",
                    where=url,
                    fix=f"It has {', '.join(entries)}",
                )
            entry, said = entries[name], props or {}
            settings = said.get("default_generation_settings") or {}
            template = said.get("chat_template") or ""
            named = {key: said[key] for key in ("bos_token", "eos_token") if said.get(key)}
            return cls(
                name=name,
                server=str(entry.get("owned_by") or ""),
                version=str(said.get("build_info") or entry.get("created") or ""),
                slots=int(said.get("total_slots") or 0),
                context=int(settings.get("n_ctx") or 0),
                template="" if template.strip() == _NO_TEMPLATE else str(template),
                tokens=named,
            )
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise InvalidRequest(
                "this is not a server with OpenAI's API",
                where=url,
                why=f"{MODELS} has another form",
                fix="Check the address; a Triton server is asked over gRPC, by HOST:PORT without "
                "http://",
            ) from error

    def chat_template(self, url: str) -> ChatTemplate:
        """Returns the model's own template.

        Raises:
            InvalidRequest: It has none.
        """
        if not self.template:
            raise InvalidRequest(
                "the server says no chat template",
                where=url,
                why="The model has none, or its server keeps it to itself",
                fix="Give the model's folder with --tokenizer, or send a text",
            )
        return ChatTemplate(self.template, self.tokens)

    def server_metadata(self) -> ServerMetadata:
        """Returns what ``Client.metadata`` does."""
        return ServerMetadata(self.server, self.version, ())

    def model_metadata(self) -> ModelMetadata:
        """Returns what ``Client.model_metadata`` does; there are no tensors."""
        return ModelMetadata(
            name=self.name,
            versions=("1",),
            platform=self.server,
            inputs=(),
            outputs=(),
            max_batch_size=self.slots,
            decoupled=True,
            parameters=(("max_seq_len", str(self.context)),) if self.context else (),
            backend=self.server,
        )


def checked(status: int, body: bytes, url: str) -> bytes:
    """Returns the body of an answer.

    Raises:
        ClientError: It is an error.
    """
    if status >= 400:
        raise error_of(status, body, url)
    return body
