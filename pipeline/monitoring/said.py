"""What the command says of what watches and scales: each limit, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.monitoring.observed import observe

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

_NAMES = {
    "ttft": "first token",
    "itl": "per token",
    "waiting": "waiting",
    "free_blocks": "KV blocks left",
    "busy": "busy",
    "errors": "errors",
    "stall_s": "no step for",
    "resumes": "resumed",
    "down_s": "scale down after",
}


def lines(deployed: Deployed) -> list[str]:
    """Returns a line for each limit.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: See :func:`pipeline.monitoring.observed.observe`.
        UsageError: See there too.
    """
    observed = observe(deployed)
    width = max(map(len, _NAMES.values())) + 2
    found = {name: getattr(observed.limits, name) for name in _NAMES}
    return [
        f"{_NAMES[name] + ':':<{width}}{limit.text}: {limit.why}"
        for name, limit in found.items()
        if limit is not None
    ]
