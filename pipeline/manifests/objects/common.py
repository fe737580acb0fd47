"""What objects of several parts have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.manifests.deployed import Deployed
from pipeline.manifests.tree import When, Why, Words

USER = 1000
"""The unprivileged user of every image here: triton-server in NVIDIA's, nobody's in ours."""

MEBIBYTE = 1 << 20
READ_BY_ALL = 0o444
RUN_BY_ALL = 0o555


@dataclass(frozen=True)
class Document:
    """One object.

    Attributes:
        path: The file that it is written to, which may have several, without its ending.
        tree: The object.
        holds: Whether it is written.
        expression: Helm's condition for it; None where it is always there.
    """

    path: str
    tree: Mapping[str, Any]
    holds: bool = True
    expression: str | None = None


def metadata(deployed: Deployed, name: Words, component: str, **more: Any) -> dict[str, Any]:
    """Returns an object's metadata.

    Args:
        deployed: The deployment.
        name: The object's.
        component: The part that it belongs to.
        more: Further fields, such as annotations.
    """
    namespace = deployed.chosen("namespace")
    return {
        "name": name,
        "namespace": When(namespace.value is not None, namespace.expression, namespace),
        "labels": deployed.labels(component),
        **more,
    }


def confined(*, user: int = USER, volumes: bool = True) -> dict[str, Any]:
    """Returns the securityContext of a pod: no root, and the usual system calls alone.

    Args:
        user: Who everything runs as.
        volumes: Whether it writes to a volume.
    """
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Changing the owner of every file of a large volume would take longer than loading it.
        **({"fsGroupChangePolicy": "OnRootMismatch"} if volumes else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def powerless() -> dict[str, Any]:
    """Returns the securityContext of a container: no privilege, and nothing to write to."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def resources(deployed: Deployed, key: str, gpus: int, why: str) -> dict[str, Any]:
    """Returns what a container is given.

    Args:
        deployed: The deployment.
        key: Of its :class:`pipeline.manifests.values.Resources`.
        gpus: How many it needs.
        why: Where the numbers are from.
    """
    cpu, memory = deployed.chosen(f"{key}.cpu"), deployed.chosen(f"{key}.memory")
    cards = {"nvidia.com/gpu": gpus} if gpus else {}
    return {
        "requests": Why({"cpu": cpu, "memory": memory, **cards}, why),
        "limits": Why(
            {"memory": memory, **cards},
            "No limit of processors: at one, a step of everybody's text would stand still.",
        ),
    }


def spread(deployed: Deployed, component: str) -> list[Any]:
    """Returns topologySpreadConstraints that keep replicas on different nodes where they can."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": deployed.labels(component)},
        }
    ]


def pull_secrets(deployed: Deployed) -> When:
    """Returns imagePullSecrets, where there are any."""
    chosen = deployed.chosen("image_pull_secrets")
    return When(bool(chosen.value), chosen.expression, chosen)


def account(deployed: Deployed) -> dict[str, Any]:
    """Returns the fields of a pod about its account, which the cluster's API knows nothing of."""
    return {
        "serviceAccountName": deployed.named(""),
        "automountServiceAccountToken": False,
        "enableServiceLinks": Why(
            False, "Nobody needs an environment variable for each Service of the namespace."
        ),
        "imagePullSecrets": pull_secrets(deployed),
    }
