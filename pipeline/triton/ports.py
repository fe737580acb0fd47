"""Free ports, and clear words about ports that are not."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import secrets
import socket
from collections.abc import Mapping

from pipeline.errors import ServerError

# Below the range from which Linux takes the ports of outgoing connections (32768 and up): one of
# those could take a port between picking it and the server's opening it.
PICKED_PORTS = range(20000, 32000)
ATTEMPTS = 50


def local_address(host: str) -> str:
    """Returns the address under which this machine reaches a server bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def is_loopback(host: str) -> bool:
    """Says whether a server bound to ``host`` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reserve(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Tries the wanted ports, and picks a free one for each 0.

    Two servers on one gRPC port would share its connections instead of failing, so the ports are
    tried before a server is started.

    Args:
        host: The address to listen on.
        wanted: Port by purpose; the purpose is named in errors and in the option's name.

    Raises:
        ServerError: A port is in use, not allowed, or the address is not this machine's.
    """
    with contextlib.ExitStack() as held:
        return {
            purpose: _try(host, port, purpose, held) if port else _pick(host, purpose, held)
            for purpose, port in wanted.items()
        }


def _try(host: str, port: int, purpose: str, held: contextlib.ExitStack) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = held.enter_context(socket.socket(family))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        probe.listen(1)
    except (OSError, OverflowError) as error:
        raise _port_error(error, host, port, purpose) from error
    return port


def _pick(host: str, purpose: str, held: contextlib.ExitStack) -> int:
    for _ in range(ATTEMPTS):
        port = PICKED_PORTS[secrets.randbelow(len(PICKED_PORTS))]
        try:
            return _try(host, port, purpose, held)
        except ServerError as error:
            cause = error.__cause__
            if getattr(cause, "errno", None) != errno.EADDRINUSE:
                raise
    raise ServerError(
        f"no free {purpose} port was found", where=host, why=f"{ATTEMPTS} ports were in use"
    )


def _port_error(error: Exception, host: str, port: int, purpose: str) -> ServerError:
    code = getattr(error, "errno", None)
    option = f"--{purpose.lower()}-port"
    what = f"the {purpose} port {port} cannot be opened"
    fix = f"Choose another port with {option}; 0 picks a free one"
    if code == errno.EADDRINUSE:
        what = f"the {purpose} port {port} is in use"
        fix = f"Stop the program that listens there, or choose another port with {option}"
    elif code in (errno.EADDRNOTAVAIL, None) or isinstance(error, socket.gaierror):
        fix = "Use an address of this machine, and a port from 0 to 65535"
    return ServerError(what, where=f"{host}:{port}", why=str(error), fix=fix)
