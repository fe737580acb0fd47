"""What a server did since the last look, in a line, from its Prometheus metrics."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.tables import number
from pipeline.triton.tensors import ENGINE

TIMEOUT_S = 2.0
# A proxy of the environment has nothing to do with a server on this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
# Of servers without labels, which have their own name in front, as llama.cpp's has.
_OWN = re.compile(r"^\w+:(\w+) (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Counters:
    """Counts since the server started, and what it does now.

    Attributes:
        requests: That the engine has ended.
        failed: That it has ended with an error.
        cancelled: That their clients gave up.
        tokens: That were generated; None where the server does not count them.
        active: Requests that have not ended; None where the server does not say.
        waiting: Those of them that have not begun; likewise.
        counted: Whether the server counts requests.
    """

    requests: float = 0
    failed: float = 0
    cancelled: float = 0
    tokens: float | None = None
    active: float | None = None
    waiting: float | None = None
    counted: bool = True


def read_counters(text: str) -> Counters:
    """Reads what concerns the engine's model from a metrics page.

    Triton's own counters have a request when it has ended; both targets' engines add gauges with
    the names of TensorRT-LLM's backend, and the tokens of each request once it has ended, or of all
    as they come.
    """
    if own := dict(_OWN.findall(text)):
        return _of_own_server(own)
    requests = failed = cancelled = 0.0
    others: dict[str, float] = {}
    for name, labels, value in samples(text):
        if labels.get("model") != ENGINE:
            continue
        if name == "nv_inference_request_success":
            requests += value
        elif name == "nv_inference_request_failure":
            requests += value
            if labels.get("reason") == "CANCELED":
                cancelled += value
            else:
                failed += value
        elif name == "nv_trt_llm_request_metrics":
            others[labels.get("request_type", "")] = value
        else:
            others[name] = value
    tokens = others.get("nv_llm_generated_tokens_total", others.get("nv_llm_output_token_len_sum"))
    return Counters(
        requests, failed, cancelled, tokens, others.get("active"), others.get("waiting")
    )


def _of_own_server(values: Mapping[str, str]) -> Counters:
    """Those of llama.cpp's own server, which does not count requests."""
    running, deferred = (
        float(values.get(f"requests_{which}", 0)) for which in ("processing", "deferred")
    )
    tokens = float(values.get("tokens_predicted_total", 0))
    return Counters(tokens=tokens, active=running + deferred, waiting=deferred, counted=False)


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yields name, labels and value of each sample of a metrics page that has labels."""
    for sample in _SAMPLE.finditer(text):
        yield sample["name"], dict(_LABEL.findall(sample["labels"])), float(sample["value"])


def page(url: str, headers: Mapping[str, str] | None = None) -> str | None:
    """Fetches a metrics page; None where nothing answers.

    Args:
        url: Of the page.
        headers: What the server asks for.
    """
    asked = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 -- http alone
    try:
        with _DIRECT.open(asked, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return None


def ask(url: str, headers: Mapping[str, str] | None = None) -> Counters | None:
    """Fetches a server's metrics; None where it does not answer.

    Args:
        url: Of the metrics page.
        headers: What the server asks for.
    """
    text = page(url, headers)
    return None if text is None else read_counters(text)


def _totals(counters: Counters) -> tuple[float, ...]:
    return counters.requests, counters.failed, counters.cancelled, counters.tokens or 0


def activity(before: Counters, now: Counters, seconds: float) -> str | None:
    """Says what happened between two looks; None where nothing did.

    Args:
        before: The counts then. A server that was restarted since counts from 0 again.
        now: The counts now.
        seconds: The time between.
    """
    if now == before:
        return None
    if any(its < earlier for its, earlier in zip(_totals(now), _totals(before), strict=True)):
        before = Counters()
    ended = int(now.requests - before.requests)
    parts = [f"{ended:,} request{'' if ended == 1 else 's'}"] if now.counted else []
    for word, count in (
        ("failed", now.failed - before.failed),
        ("cancelled", now.cancelled - before.cancelled),
    ):
        if count:
            parts.append(f"{int(count):,} {word}")
    if now.tokens is not None:
        parts.append(f"{number((now.tokens - (before.tokens or 0)) / seconds, 3)} tokens/s")
    if now.active is not None:
        parts.append(f"{int(now.active):,} active")
    if now.waiting is not None:
        parts.append(f"{int(now.waiting):,} waiting")
    return f"in {number(seconds, 3)} s: {', '.join(parts)}"
