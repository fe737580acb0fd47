"""The flags that every tritonserver of the wheel gets."""

from __future__ import annotations

from collections.abc import Mapping

CLOSED_APIS = "shared-memory,model-repository,logging,trace"
"""What a client could reconfigure the server or read its machine's memory with."""


def restrictions(key: str, *, http: bool) -> list[str]:
    """Returns the flags that close APIs to whoever does not have a key.

    Args:
        key: ``APIS:NAME=KEY``.
        http: Whether there is an HTTP endpoint.
    """
    over_http = [f"--http-restricted-api={key}"] if http else []
    return [*over_http, f"--grpc-restricted-protocol={key}"]


def server_flags(host: str, ports: Mapping[str, int], *, http: bool = True) -> list[str]:
    """Returns the flags that every server of the wheel gets.

    Args:
        host: Address of all three endpoints.
        ports: ``grpc_port``, ``http_port`` and ``metrics_port``.
        http: Whether there is an HTTP endpoint.
    """
    return [
        *(
            [
                f"--http-address={host}",
                f"--http-port={ports['http_port']}",
            ]
            if http
            else ["--allow-http=false"]
        ),
        f"--grpc-address={host}",
        f"--grpc-port={ports['grpc_port']}",
        f"--metrics-address={host}",
        f"--metrics-port={ports['metrics_port']}",
        "--model-control-mode=none",
        # The configurations are complete; guessing at them would start every stub twice.
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--log-format=ISO8601",
    ]
