"""How busy a server is, by its own metrics page (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.service.activity import page, samples
from pipeline.triton.tensors import ENGINE

_REQUESTS = ("nv_trt_llm_request_metrics", "request_type")
_BLOCKS = ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type")
_RESERVED = "nv_llm_kv_cache_reserved_blocks"


@dataclass(frozen=True)
class Load:
    """What an engine does at the moment.

    Attributes:
        active: Requests that it has, those that wait included.
        waiting: Those of them that are not in the batch.
        capacity: The most in a batch; None where it does not say.
        kv: Share of the KV cache that is used or, where it is told, promised; 0 to 1.
    """

    active: float
    waiting: float = 0.0
    capacity: float | None = None
    kv: float = 0.0


def read_load(text: str) -> Load | None:
    """Reads a metrics page; None where the engine's requests are not on it."""
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in samples(text):
        if labels.get("model") != ENGINE:
            continue
        label = next((label for family, label in (_REQUESTS, _BLOCKS) if family == name), "")
        found[name, labels.get(label, "")] = value
    active = found.get((_REQUESTS[0], "active"))
    if active is None:
        return None
    blocks = found.get((_BLOCKS[0], "max"), 0.0)
    taken = max(found.get((_BLOCKS[0], "used"), 0.0), found.get((_RESERVED, ""), 0.0))
    return Load(
        active,
        found.get((_REQUESTS[0], "waiting"), 0.0),
        found.get((_REQUESTS[0], "max")) or None,
        min(taken / blocks, 1.0) if blocks else 0.0,
    )


def ask_load(url: str) -> Load | None:
    """Fetches a server's metrics; None where it does not answer.

    Args:
        url: Of the metrics page.
    """
    text = page(url)
    return None if text is None else read_load(text)
