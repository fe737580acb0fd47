"""Which server a request goes to: numbers in, a name out.

The one that knows most of the prompt's beginning, unless it has more than its share of the load:
each server takes at most ``load_factor`` times the mean, rounded up, as in "Consistent Hashing with
Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, 2018, arXiv:1608.01350). So one beginning that
everybody has cannot bring a server down, and the next one learns it. Among equals the least loaded
is taken, and among those of equal load the one with the highest hash of beginning and name
(rendezvous hashing: Thaler and Ravishankar, 1998), so that several gateways agree without talking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

Why = Literal["prefix", "load"]


@dataclass(frozen=True)
class Candidate:
    """A server that may be chosen.

    Attributes:
        name: Its name.
        requests: What it works on and what waits there.
        capacity: Requests that it computes together; None where it does not say.
        kv: Share of its KV cache that is taken, 0 to 1.
        waiting: Requests that wait there for a place.
        matched: Blocks of the prompt's beginning that it has seen.
    """

    name: str
    requests: float
    capacity: float | None = None
    kv: float = 0.0
    waiting: float = 0.0
    matched: int = 0


def choose(candidates: Sequence[Candidate], key: bytes, factor: float) -> tuple[str, Why]:
    """Chooses a server.

    Args:
        candidates: At least one.
        key: What stands for the prompt where nothing else decides.
        factor: How much more than its share a server may have.

    Returns:
        Its name, and whether the prompt's beginning or the load decided.
    """
    weights = _weights(candidates)
    room = [c for c in candidates if c.requests + 1 <= _limit(c, candidates, weights, factor)]
    # Nobody waits for the sake of a cache while another server has a place.
    room = [c for c in room if not c.waiting] or room or list(candidates)
    longest = max(c.matched for c in room)
    known = [c for c in room if c.matched == longest]
    best = min(known, key=lambda c: (_fullness(c, weights), -_rank(key, c.name)))
    return best.name, "prefix" if longest else "load"


def _weights(candidates: Sequence[Candidate]) -> dict[str, float]:
    """What each server can take, against the others; all alike where one does not say."""
    if any(not c.capacity for c in candidates):
        return dict.fromkeys((c.name for c in candidates), 1.0)
    return {c.name: c.capacity or 1.0 for c in candidates}


def _limit(
    candidate: Candidate, all_: Sequence[Candidate], weights: dict[str, float], factor: float
) -> float:
    total = sum(c.requests for c in all_) + 1
    share = weights[candidate.name] / sum(weights.values())
    return math.ceil(factor * total * share)


def _fullness(candidate: Candidate, weights: dict[str, float]) -> float:
    return candidate.requests / weights[candidate.name] + candidate.kv


def _rank(key: bytes, name: str) -> int:
    return int.from_bytes(blake2b(key + name.encode(), digest_size=8).digest(), "big")
