"""Tells systemd how a service does, by the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def take_socket() -> str | None:
    """Returns the address to tell, once; what is started from here on does not inherit it."""
    return os.environ.pop("NOTIFY_SOCKET", None)


def tell(address: str | None, state: str) -> None:
    """Sends a state such as ``READY=1``; does nothing without an address.

    Nobody at the address is no reason not to serve; a warning says so.

    Args:
        address: A path, or ``@`` and a name in the abstract namespace.
        state: Assignments, one a line.
    """
    if not address:
        return
    target = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), target)
        except OSError as error:
            logger.warning(
                "NOTIFY_SOCKET %s takes no %s: %s", address, state, error.strerror or error
            )
