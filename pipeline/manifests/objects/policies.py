"""What may be disturbed, and who may connect to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.manifests import deployed as parts
from pipeline.manifests.deployed import BUILD, GATEWAY, GATEWAY_PART, SERVER, Deployed
from pipeline.manifests.objects.common import Document, metadata
from pipeline.manifests.tree import Why


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields a PodDisruptionBudget and a NetworkPolicy for each part."""
    yield Document("disruption", _budget(deployed, SERVER, "-server"))
    yield Document("disruption", _budget(deployed, GATEWAY_PART, "-gateway"))
    enabled = deployed.chosen("network.enabled")
    for policy in (_server(deployed), _gateway(deployed)):
        yield Document("network", policy, enabled.value, enabled.expression)


def dns() -> dict[str, Any]:
    """Returns the egress rule for the cluster's name service, wherever it runs."""
    return {
        "to": [{"namespaceSelector": {}}],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }


def build_policy(deployed: Deployed) -> dict[str, Any]:
    """Returns the NetworkPolicy of the Job: it fetches a model, and nobody talks to it."""
    return {
        **_head(deployed, "-build", BUILD),
        "spec": {
            "podSelector": {"matchLabels": deployed.labels(BUILD)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [
                dns(),
                Why(
                    {"ports": [{"protocol": "TCP", "port": 443}]},
                    "The Hub, whose addresses change.",
                ),
            ],
        },
    }


def _budget(deployed: Deployed, component: str, suffix: str) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployed, deployed.named(suffix), component),
        "spec": {
            "maxUnavailable": Why(
                1,
                "A drained node may take one at a time. It is the number of those that may be "
                "gone, so that a single replica does not hold up every drain for ever.",
            ),
            "selector": {"matchLabels": deployed.labels(component)},
        },
    }


def _head(deployed: Deployed, suffix: str, component: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployed, deployed.named(suffix), component),
    }


def _monitoring(deployed: Deployed) -> list[Any]:
    label = "kubernetes.io/metadata.name"
    chosen = deployed.chosen("network.monitoring_namespace")
    return [{"namespaceSelector": {"matchLabels": {label: chosen}}}]


def _tcp(*ports: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _server(deployed: Deployed) -> dict[str, Any]:
    ingress: list[Any] = [
        Why(
            {
                "from": [{"podSelector": {"matchLabels": deployed.labels(GATEWAY_PART)}}],
                "ports": _tcp(parts.GRPC, parts.METRICS),
            },
            "Gateways ask for tokens, and read how busy a server is. HTTP is for the kubelet's "
            "probes, which no policy keeps out: Triton's HTTP front bounds neither bodies nor the "
            "depth of their JSON.",
        ),
        {"from": _monitoring(deployed), "ports": _tcp(parts.METRICS)},
    ]
    egress: list[Any] = []
    selector: dict[str, Any] = {"matchLabels": deployed.labels(SERVER)}
    if deployed.group:
        both = [SERVER, "worker"]
        name, instance, component = deployed.labels(SERVER)
        labels = deployed.labels(SERVER)
        selector = {
            "matchLabels": {key: labels[key] for key in (name, instance)},
            "matchExpressions": [{"key": component, "operator": "In", "values": both}],
        }
        inner = [{"podSelector": selector}]
        ingress.append(
            Why({"from": inner}, "Ranks of one engine: MPI and NCCL choose ports as they like.")
        )
        egress = [{"to": inner}, dns()]
    return {
        **_head(deployed, "-server", SERVER),
        "spec": {
            "podSelector": selector,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress if deployed.group else Why([], "A server talks to nobody."),
        },
    }


def _gateway(deployed: Deployed) -> dict[str, Any]:
    return {
        **_head(deployed, "-gateway", GATEWAY_PART),
        "spec": {
            "podSelector": {"matchLabels": deployed.labels(GATEWAY_PART)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                Why(
                    {"from": deployed.chosen("network.clients"), "ports": _tcp(GATEWAY)},
                    "Who may ask. An Ingress of another namespace has to be named here.",
                ),
                {"from": _monitoring(deployed), "ports": _tcp(GATEWAY)},
            ],
            "egress": [
                {
                    "to": [{"podSelector": {"matchLabels": deployed.labels(SERVER)}}],
                    "ports": _tcp(parts.GRPC, parts.METRICS),
                },
                dns(),
            ],
        },
    }
