"""What the objects are called that Kubernetes' manifests make of a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.manifests.tree import plain
from pipeline.monitoring.queries import GATEWAY, SERVER

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

PORT_NAMES = {SERVER: "metrics", GATEWAY: "http"}
"""The ports of pods that publish metrics, by component."""

DIGEST_LABEL = "__meta_kubernetes_pod_annotation_trtllm_pipeline_repository"
"""What Prometheus calls the pods' annotation with the digest of what they serve."""


def selector(deployed: Deployed, component: str) -> dict[str, str]:
    """Returns the labels by which the pods of a component are known.

    Args:
        deployed: What is deployed.
        component: ``server`` or ``gateway``.
    """
    return dict(plain(deployed.labels(component)))


def workload(deployed: Deployed) -> dict[str, str]:
    """Returns what is scaled, as a reference of an autoscaler.

    Args:
        deployed: What is deployed.
    """
    name = f"{deployed.name}-server"
    if deployed.group:
        version = "leaderworkerset.x-k8s.io/v1"
        return {"apiVersion": version, "kind": "LeaderWorkerSet", "name": name}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
