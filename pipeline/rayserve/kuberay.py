"""A RayService for KubeRay, and who may reach its pods.

Fields are those of KubeRay's ``ray.io/v1`` (``ray-operator/apis/ray/v1`` of
https://github.com/ray-project/kuberay), all of which its releases from 1.1 on have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline._version import __version__
from pipeline.errors import UnsupportedError
from pipeline.manifests.deployed import Deployed
from pipeline.manifests.objects import build, volume
from pipeline.manifests.objects.common import (
    MEBIBYTE,
    Document,
    confined,
    metadata,
    powerless,
    pull_secrets,
    spread,
)
from pipeline.manifests.objects.gateway import KEY
from pipeline.manifests.objects.policies import dns
from pipeline.manifests.objects.server import TEMPORARY, affinity
from pipeline.manifests.tree import Raw, When, Why, Words, words

RAY = "2.60.0"
IMAGE = "trtllm-pipeline-ray"
COMPONENT = "ray"
HEAD = {"ray.io/node-type": "head"}
"""KubeRay's label of a head's pod."""
STORE_MIB = 100
"""Of Ray's object store, in which nothing of the application is; Ray takes a third of the memory
otherwise."""
RAY_MIB = 2048
"""For Ray's own processes on a node: raylet, agents, proxy."""
HEAD_CPU, HEAD_MIB = "1", 4096
GCS, DASHBOARD, CLIENT, METRICS, SERVE, AGENT = 6379, 8265, 10001, 8080, 8000, 52365
REPOSITORIES = "/repositories"
GRACE_SPARE_S = 30

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGT", 1)},
}


@dataclass(frozen=True)
class Place:
    """Where the repository is in a pod, and how it comes there.

    Attributes:
        repository: Its folder.
        mount: The volume's mount, without its name.
    """

    repository: str
    mount: dict[str, Any]


def place_of(deployed: Deployed) -> Place:
    """Says where pods find the repository.

    Where the server takes it from anywhere, the pods have the whole volume, so that another digest
    is an update of the application alone. NVIDIA's image has it at one place.
    """
    digest = deployed.values.repository.digest
    if deployed.contained.command is None:
        mount = {"mountPath": REPOSITORIES, "readOnly": True}
        return Place(f"{REPOSITORIES}/{digest}", mount)
    at = deployed.contained.mount
    return Place(at, {"mountPath": at, "subPath": str(digest), "readOnly": True})


def number(quantity: str | None) -> float:
    """Returns what a quantity of Kubernetes stands for: ``500m`` is 0.5, ``1Ki`` 1024."""
    found = _QUANTITY.fullmatch(quantity or "0")
    assert found, quantity
    return float(found[1]) * _FACTORS.get(found[2] or "", 1.0)


def documents(deployed: Deployed, config: str, longest_s: int) -> Iterator[Document]:
    """Yields the account, the volume, the Job that fills it, the service, and who may connect.

    Args:
        deployed: What is deployed.
        config: The config of Ray Serve, as YAML.
        longest_s: Seconds that a replica's pod gets to end what it has.

    Raises:
        UnsupportedError: The engine takes several nodes.
    """
    if deployed.group:
        raise UnsupportedError(
            f"an engine that takes {deployed.layout.pods} nodes cannot be a replica of Ray",
            why="A replica, with the server that it supervises, is on one node",
            fix="Take --kind kubernetes, which makes a LeaderWorkerSet, or set gpu.perNode",
        )
    yield from volume.documents(deployed)
    yield from build.documents(deployed)
    yield Document("rayservice", _service(deployed, config, longest_s))
    enabled = deployed.chosen("network.enabled")
    for policy in (_nodes(deployed), _head_to_api(deployed)):
        yield Document("network", policy, enabled.value, enabled.expression)


def _service(deployed: Deployed, config: str, longest_s: int) -> dict[str, Any]:
    values = deployed.values
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(deployed, deployed.named(""), COMPONENT),
        "spec": {
            "serveConfigV2": Why(
                Raw(config),
                "A change of this alone updates the application in place, replica by replica. Any "
                "other change makes KubeRay start a second cluster, which needs as much room as "
                "the first, and takes the traffic over once it answers.",
            ),
            "rayClusterConfig": {
                "rayVersion": Why(RAY, "What the image has."),
                "enableInTreeAutoscaling": Why(
                    True, "Nodes for the replicas that Ray Serve wants, and no more."
                ),
                "headGroupSpec": {
                    "rayStartParams": {
                        "dashboard-host": Why(
                            "0.0.0.0",  # noqa: S104  the operator is in another pod
                            "The operator deploys through it. Whoever reaches it runs code here, "
                            "so network.yaml lets nobody else in.",
                        ),
                        "num-cpus": Why("0", "No replica runs beside the cluster's memory."),
                        **_store(),
                    },
                    "template": _template(deployed, _head(deployed)),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "servers",
                        "replicas": values.replicas,
                        "minReplicas": values.replicas,
                        "maxReplicas": 2 * values.replicas,
                        "rayStartParams": {
                            "num-cpus": Why(
                                f"{math.ceil(_cpus(deployed))}",
                                "One replica and one gateway fit on a node.",
                            ),
                            **_store(),
                        },
                        "template": _template(deployed, _worker(deployed, longest_s)),
                    }
                ],
            },
        },
    }


def _store() -> dict[str, Any]:
    return {"object-store-memory": str(STORE_MIB * MEBIBYTE)}


def _cpus(deployed: Deployed) -> float:
    values = deployed.values
    return number(values.resources.cpu) + number(values.gateway.resources.cpu)


def _labels(deployed: Deployed) -> dict[str, Any]:
    """The labels of a pod but its name, which KubeRay gives and selects by."""
    labels = deployed.labels(COMPONENT)
    return {key: value for key, value in labels.items() if key != "app.kubernetes.io/name"}


def _template(deployed: Deployed, pod: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"labels": _labels(deployed)}, "spec": pod}


def _head(deployed: Deployed) -> dict[str, Any]:
    memory = f"{HEAD_MIB}Mi"
    ports = {"gcs-server": GCS, "dashboard": DASHBOARD, "client": CLIENT, "serve": SERVE}
    container = _container(
        deployed,
        "ray-head",
        ports,
        {"requests": {"cpu": HEAD_CPU, "memory": memory}, "limits": {"memory": memory}},
    )
    return _pod(deployed, container)


def _worker(deployed: Deployed, longest_s: int) -> dict[str, Any]:
    values, gpus = deployed.values, deployed.layout.gpus
    memory = number(values.resources.memory) + number(values.gateway.resources.memory)
    shown = f"{math.ceil(memory / MEBIBYTE) + RAY_MIB}Mi"
    cards = {"nvidia.com/gpu": gpus} if gpus else {}
    resources = {
        "requests": Why(
            {"cpu": str(math.ceil(_cpus(deployed))), "memory": shown, **cards},
            f"A server ({values.resources.cpu} processors, {values.resources.memory}) and a "
            f"gateway ({values.gateway.resources.cpu}, {values.gateway.resources.memory}), and "
            f"{RAY_MIB} MiB for Ray itself.",
        ),
        "limits": {"memory": shown, **cards},
    }
    container = _container(deployed, "ray-worker", {"serve": SERVE}, resources)
    product, runtime = deployed.chosen("gpu.product"), deployed.chosen("gpu.runtime_class")
    on_gpu = (
        {
            "runtimeClassName": When(runtime.value is not None, runtime.expression, runtime),
            "affinity": When(product.value is not None, product.expression, affinity(product)),
        }
        if gpus
        else {}
    )
    account = {
        "serviceAccountName": deployed.named(""),
        "automountServiceAccountToken": False,
    }
    grace = {
        "terminationGracePeriodSeconds": Why(
            longest_s + GRACE_SPARE_S,
            "Ray stops a replica whose node it removes only when its requests are done. A node "
            "that Kubernetes drains does not wait: its streams go on at another replica, and the "
            "connections of its gateway break.",
        )
    }
    return {**account, **grace, **on_gpu, **_pod(deployed, container)}


def _pod(deployed: Deployed, container: dict[str, Any]) -> dict[str, Any]:
    selector, tolerations = deployed.chosen("node_selector"), deployed.chosen("tolerations")
    shared = deployed.contained.shared_memory // MEBIBYTE + STORE_MIB
    return {
        "securityContext": confined(),
        "enableServiceLinks": False,
        "imagePullSecrets": pull_secrets(deployed),
        "nodeSelector": When(bool(selector.value), selector.expression, selector),
        "tolerations": When(bool(tolerations.value), tolerations.expression, tolerations),
        "topologySpreadConstraints": [
            {**rule, "labelSelector": {"matchLabels": _labels(deployed)}}
            for rule in spread(deployed, COMPONENT)
        ],
        "containers": [container],
        "volumes": [
            {
                "name": "repository",
                "persistentVolumeClaim": {"claimName": deployed.claim, "readOnly": True},
            },
            {
                "name": "shared-memory",
                "emptyDir": Why(
                    {"medium": "Memory", "sizeLimit": f"{shared}Mi"},
                    "For Triton's models and Ray's object store; it counts as memory of the "
                    "container.",
                ),
            },
            {"name": "temporary", "emptyDir": Why({"sizeLimit": "4Gi"}, "Ray's logs among it.")},
        ],
    }


def _container(
    deployed: Deployed, name: str, ports: dict[str, int], resources: dict[str, Any]
) -> dict[str, Any]:
    secret = deployed.chosen("gateway.key_secret")
    return {
        "name": name,
        "image": Why(
            image_of(deployed),
            "Made by docker/ray.Dockerfile; nobody publishes it. Name it by its digest.",
        ),
        "env": [
            {"name": "HOME", "value": TEMPORARY},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            Why(
                {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"},
                "HAProxy in front of the gateways rather than Ray's proxy in Python.",
            ),
            When(
                secret.value is not None,
                secret.expression,
                {
                    "name": KEY,
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": "api-key"}},
                },
            ),
        ],
        "ports": [{"name": label, "containerPort": port} for label, port in ports.items()],
        "resources": resources,
        "securityContext": powerless(),
        "volumeMounts": [
            {"name": "repository", **place_of(deployed).mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "temporary", "mountPath": TEMPORARY},
        ],
    }


def image_of(deployed: Deployed) -> str:
    """Names the image of the pods: what was chosen, or what ``docker/ray.Dockerfile`` makes."""
    contained, chosen = deployed.contained, deployed.values.image
    if chosen not in (contained.image, f"{contained.image}:{__version__}"):
        return str(chosen)
    return f"{IMAGE}{'-gpu' if deployed.layout.gpus else ''}:{__version__}"


def _policy(deployed: Deployed, name: Words, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployed, name, COMPONENT),
        "spec": spec,
    }


def _tcp(*ports: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _nodes(deployed: Deployed) -> dict[str, Any]:
    mine = [{"podSelector": {"matchLabels": _labels(deployed)}}]
    operator = [
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        }
    ]
    monitoring = {"kubernetes.io/metadata.name": deployed.chosen("network.monitoring_namespace")}
    return _policy(
        deployed,
        deployed.named("-ray"),
        {
            "podSelector": {"matchLabels": _labels(deployed)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                Why(
                    {"from": mine},
                    "Ray's nodes among each other, on ports of its choice. Nobody else: its ports "
                    f"{GCS}, {DASHBOARD} and {CLIENT} run anybody's code, and HAProxy's pages "
                    "listen beside them.",
                ),
                Why(
                    {"from": operator, "ports": _tcp(DASHBOARD, AGENT, SERVE)},
                    "KubeRay's operator, wherever it runs: it deploys, and asks proxies for "
                    "health.",
                ),
                Why(
                    {"from": deployed.chosen("network.clients"), "ports": _tcp(SERVE)},
                    "Who may ask. An Ingress of another namespace has to be named here.",
                ),
                {
                    "from": [{"namespaceSelector": {"matchLabels": monitoring}}],
                    "ports": _tcp(METRICS),
                },
            ],
            "egress": [{"to": mine}, dns()],
        },
    )


def _head_to_api(deployed: Deployed) -> dict[str, Any]:
    return _policy(
        deployed,
        deployed.named("-ray-head"),
        {
            "podSelector": {"matchLabels": {**_labels(deployed), **HEAD}},
            "policyTypes": ["Egress"],
            "egress": [
                Why(
                    {"ports": _tcp(443, 6443)},
                    "Ray's autoscaler, beside the head, asks the cluster's API for nodes.",
                )
            ],
        },
    )


def address(deployed: Deployed) -> str:
    """Returns the address that KubeRay gives the application inside the cluster."""
    return f"http://{words(deployed.chosen('name'), '-serve-svc').value}:{SERVE}/v1"
