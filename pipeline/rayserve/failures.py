"""What Ray raises where a call of a deployment fails, as the errors of ``trtllm_client``.

The classes are known by name: the gateway's process has Ray, but whoever reads this need not.
They are those of ``ray.exceptions`` and ``ray.serve.exceptions`` of Ray 2.60.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_client import ClientError, ConnectionFailed, ServerBusy, ServerFailed

LOST = frozenset(
    {
        "RayActorError",  # with ActorDiedError and ActorUnavailableError
        "NodeDiedError",
        "WorkerCrashedError",
        "OutOfMemoryError",
        "ObjectLostError",
        "OwnerDiedError",
        "RaySystemError",
        "ReplicaUnavailableError",
        # Of the calls that go over gRPC (RAY_SERVE_USE_GRPC_BY_DEFAULT), where the peer ended one.
        "AioRpcError",
    }
)
"""The replica, its node or the way to it is gone; the same request may work on another."""

FULL = frozenset({"BackPressureError"})
"""More requests wait than ``max_queued_requests`` allows."""

_PACKAGES = ("ray", "grpc")


def as_client_error(error: BaseException, deployment: str) -> ClientError:
    """Makes the error that the gateway knows from what a call of a replica raised.

    Args:
        error: From Ray.
        deployment: Name of the deployment, for ``where``.

    Returns:
        ``ConnectionFailed`` where the replica was lost, so that the request can go on at another;
        ``ServerBusy`` where the queue is full; else ``ServerFailed``. Its text names the kind of
        error alone: what a replica raised may repeat what a client wrote.
    """
    where = f"the deployment {deployment}"
    names = set(_names(type(error)))
    kind = type(error).__name__
    if names & FULL:
        return ServerBusy(
            "all replicas are busy and their queue is full",
            where=where,
            fix="Try again later, or allow more replicas (max_replicas)",
        )
    if names & LOST:
        return ConnectionFailed(
            "the replica was lost",
            where=where,
            why=f"Ray says {kind}",
            fix="Ray replaces it; its log says why it ended",
        )
    return ServerFailed(
        "the call of a replica failed",
        where=where,
        why=f"Ray says {kind}",
        fix="The replica's log has the cause",
    )


def is_rays(error: BaseException) -> bool:
    """Says whether an error is one of Ray's or of the calls beneath, and none of this code."""
    return any(_names(type(error)))


def _names(kind: type) -> Iterator[str]:
    """The names of an error's class and of those above it that are Ray's or gRPC's."""
    for above in kind.__mro__:
        if above.__module__.partition(".")[0] in _PACKAGES:
            yield above.__name__
