"""Where the server is and how to talk to it."""

from __future__ import annotations

import errno
import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_client._errors import InvalidRequest
from trtllm_client._grpc import grpc

DEFAULT_URL = "127.0.0.1:8001"

# tritonclient's channel arguments, except that pings find a dead peer while a stream waits:
# its own default of never would leave that to the stall limit alone.
_INT32_MAX = 2**31 - 1
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", _INT32_MAX),
    ("grpc.max_receive_message_length", _INT32_MAX),
    # gRPC servers drop clients that ping more often than every five minutes without data.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 2),
    # gRPC waits longer each time before it connects again, up to two minutes; a server that was
    # restarted is there after seconds, and whoever asks for it would be told that it is not.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True)
class Tls:
    """Certificates of an encrypted connection, as PEM files.

    Attributes:
        root_certificates: Authorities to trust; None is gRPC's own list.
        certificate_chain: The client's certificate, for servers that ask for one.
        private_key: The client's key; goes with ``certificate_chain``.
        server_name: The name in the server's certificate, when it is not the address's host.
    """

    root_certificates: Path | str | None = None
    certificate_chain: Path | str | None = None
    private_key: Path | str | None = None
    server_name: str | None = None

    def credentials(self) -> Any:
        """Makes gRPC channel credentials from the files.

        Raises:
            InvalidRequest: A file cannot be read or holds something else, or only one half of
                certificate and key is given.
        """
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidRequest(
                "a client certificate needs its key and the key its certificate",
                fix="Give both, or neither",
            )
        root = _read_certificates(self.root_certificates)
        chain = _read_certificates(self.certificate_chain)
        key = _read(self.private_key)
        if key is not None:
            _check_key(self.certificate_chain, self.private_key)
        return grpc.ssl_channel_credentials(
            root_certificates=root, private_key=key, certificate_chain=chain
        )


def _read(path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        # A pipe would be waited for, and a device may have no end.
        if not Path(path).is_file() and Path(path).exists():
            raise OSError(errno.EINVAL, "It is not a file", str(path))
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        # A name with a NUL character is a ValueError.
        raise InvalidRequest(
            "the TLS file cannot be read",
            where=str(path),
            why=getattr(error, "strerror", None) or str(error),
        ) from error


def _read_certificates(path: Path | str | None) -> bytes | None:
    content = _read(path)
    if content is not None:
        # gRPC would say of a damaged file that no server answers.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            raise InvalidRequest(
                "the TLS file holds no PEM certificate that can be read",
                where=str(path),
                why=error.reason,
                fix="Convert it with openssl",
            ) from error
    return content


def _check_key(chain: Any, key: Any) -> None:
    def no_password() -> str:
        raise InvalidRequest(
            "the key is encrypted, which gRPC cannot use",
            where=str(key),
            fix="Decrypt it into a file of its own: openssl pkey",
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, key, no_password)
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"the TLS key is not the PEM key of {chain}",
            where=str(key),
            why=error.reason,
            fix="Give the key that the certificate was made with",
        ) from error


@dataclass(frozen=True)
class Endpoint:
    """A parsed address.

    Attributes:
        target: ``host:port`` for gRPC.
        secure: Whether the connection is encrypted.
    """

    target: str
    secure: bool

    @property
    def url(self) -> str:
        """The address as users write it."""
        return f"{'grpcs' if self.secure else 'grpc'}://{self.target}"


_HOST_PORT = re.compile(r"^(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?$")


def parse_url(url: str, *, secure: bool = False) -> Endpoint:
    """Parses ``host:port``, ``grpc://host:port`` or ``grpcs://host:port`` (TLS).

    Args:
        url: The address.
        secure: Encrypts ``host:port`` without a scheme as well.

    Raises:
        InvalidRequest: The address has another form.
    """
    scheme, separator, rest = url.strip().rpartition("://")
    if separator and scheme not in ("grpc", "grpcs"):
        raise InvalidRequest(
            f"the scheme {scheme}:// is not gRPC",
            where=url,
            fix="Use host:port, grpc://host:port or grpcs://host:port with Triton's gRPC port "
            "(8001 by default)",
        )
    if scheme == "grpc" and secure:
        raise InvalidRequest(
            "TLS options need a TLS address", where=url, fix=f"Write grpcs://{rest}"
        )
    match = _HOST_PORT.match(rest)
    if not match or not 0 < int(match["port"]) < 65536:
        raise InvalidRequest(
            "this is not a server address",
            where=repr(url),
            fix=f"Write host:port, like {DEFAULT_URL}",
        )
    return Endpoint(f"{match['host']}:{match['port']}", secure or scheme == "grpcs")


def _is_of_this_machine(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_channel(endpoint: Endpoint, tls: Tls | None, module: Any) -> Any:
    """Opens a gRPC channel; it connects with the first call.

    Args:
        endpoint: Where to.
        tls: Certificates; None trusts gRPC's own list of authorities.
        module: ``grpc`` or ``grpc.aio``.

    Raises:
        InvalidRequest: See :meth:`Tls.credentials`.
    """
    options: Sequence[tuple[str, int | str]] = _CHANNEL_OPTIONS
    if _is_of_this_machine(endpoint.target):
        # gRPC would look for it behind the proxy of the environment, which has another one.
        options = (*options, ("grpc.enable_http_proxy", 0))
    if not endpoint.secure:
        return module.insecure_channel(endpoint.target, options=options)
    tls = tls or Tls()
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return module.secure_channel(endpoint.target, tls.credentials(), options=options)
