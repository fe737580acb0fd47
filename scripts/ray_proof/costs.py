"""How much of a processor a streamed token takes, by what kind of process it goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil

from scripts.ray_proof.cluster import Cluster

KINDS = (
    ("haproxy", "HAProxy"),
    ("ProxyActor", "Ray's proxy"),
    (":gateway", "gateway"),
    (":replicas", "replica"),
    ("tritonserver", "tritonserver"),
    ("triton_python_backend_stub", "models"),
)


def processor_seconds(cluster: Cluster) -> dict[str, float]:
    """Processor time so far of each kind of process; what is of no kind is left out."""
    taken = dict.fromkeys((kind for _, kind in KINDS), 0.0)
    for process in cluster.processes():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            times = process.cpu_times()
            if kind := next((kind for word, kind in KINDS if word in words), None):
                taken[kind] += times.user + times.system
    return taken


def per_token_us(
    before: Mapping[str, float], after: Mapping[str, float], tokens: int
) -> dict[str, float]:
    """Microseconds of processor per token, by kind of process."""
    return {
        kind: 1e6 * (after[kind] - before[kind]) / tokens
        for kind in after
        if tokens and after[kind] > before[kind]
    }
