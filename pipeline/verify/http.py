"""Triton's generate endpoints and its metrics."""

from __future__ import annotations

import json
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.verify.check import CheckFailed, CheckSkipped, Context

_TIMEOUT_S = 30.0
_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Metrics = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def posted(context: Context, model: str, body: Mapping[str, Any], *, stream: bool) -> list[Any]:
    """Posts to a generate endpoint, and returns its answers; a refusal is one with ``error``."""
    sent = urllib.request.Request(  # noqa: S310 -- the address is the user's own
        f"{_http(context)}/v2/models/{model}/generate{'_stream' if stream else ''}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(sent, timeout=context.plan.patience) as answer:  # noqa: S310
            lines = answer.read().decode().splitlines()
    except urllib.error.HTTPError as error:
        return [{"status": error.code, **_json(error.read().decode(errors="replace"))}]
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{context.http}: {error}") from error
    return [_json(line.removeprefix("data:")) for line in lines if line.strip()]


def opened_stream(context: Context, model: str, body: Mapping[str, Any]) -> socket.socket:
    """Opens ``generate_stream`` and waits for its first piece; closing the socket is the client's
    disappearance."""
    address = urlsplit(_http(context))
    port = address.port or (443 if address.scheme == "https" else 80)
    connection = socket.create_connection((address.hostname or "", port), context.plan.patience)
    if address.scheme == "https":
        connection = ssl.create_default_context().wrap_socket(
            connection, server_hostname=address.hostname
        )
    data = json.dumps(body).encode()
    path = f"{address.path}/v2/models/{model}/generate_stream"
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    seen = b""
    while b"data:" not in seen:
        more = connection.recv(65536)
        if not more:
            raise CheckFailed(f"{path} ended without a piece: {seen[:200]!r}")
        seen += more
    return connection


def read_metrics(context: Context) -> Metrics:
    """Reads the server's metrics: values by name and labels."""
    if not context.metrics:
        raise CheckSkipped("the address of the server's metrics is not known: give --metrics URL")
    try:
        with urllib.request.urlopen(context.metrics, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{context.metrics}: {error}") from error
    return {
        (name, frozenset(_LABEL.findall(labels))): float(value)
        for name, labels, value in _LINE.findall(text)
    }


def total(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Adds up the values of a family that have some labels; None where there is none."""
    wanted = set(labels.items())
    found = [value for (family, has), value in metrics.items() if family == name and wanted <= has]
    return sum(found) if found else None


def _http(context: Context) -> str:
    if not context.http:
        raise CheckSkipped("the server's HTTP address is not known: give --http URL")
    return context.http


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise CheckFailed(f"the answer is no JSON: {text[:200]!r}") from None
