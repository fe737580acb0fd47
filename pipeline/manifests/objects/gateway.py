"""The gateways: a Deployment of their own in front of all servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.manifests import deployed as parts
from pipeline.manifests.deployed import GATEWAY, GATEWAY_PART, Deployed
from pipeline.manifests.measured import CLEAR_UP_S
from pipeline.manifests.objects.common import (
    Document,
    account,
    confined,
    metadata,
    powerless,
    resources,
    spread,
)
from pipeline.manifests.tree import Chosen, When, Why, words

KEY = "OPENAI_API_KEY"
REPOSITORY = "/models"


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields the gateways and the address that clients use."""
    yield Document("gateway", _deployment(deployed))
    yield Document("gateway", _service(deployed))


def _deployment(deployed: Deployed) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployed, deployed.named("-gateway"), GATEWAY_PART),
        "spec": {
            "replicas": Why(
                deployed.chosen("gateway.replicas"),
                "Gateways of their own rather than one beside each server: a gateway that sees "
                "all servers sends a prompt to where its beginning is cached and to the least "
                "busy one, and goes on with a text on another server when one is lost, which a "
                "gateway in the lost pod could not.",
            ),
            "selector": {"matchLabels": deployed.labels(GATEWAY_PART)},
            "revisionHistoryLimit": 5,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": deployed.labels(GATEWAY_PART),
                    "annotations": {
                        "trtllm-pipeline/repository": Why(
                            deployed.chosen("repository.digest"),
                            "Its tokenizer and chat template are those of the repository.",
                        )
                    },
                },
                "spec": _pod(deployed),
            },
        },
    }


def _pod(deployed: Deployed) -> dict[str, Any]:
    drain = deployed.chosen("drain.endpoints_seconds")
    leaving = deployed.chosen("drain.exit_timeout_seconds")
    grace = parts.grace_parts(drain.value, leaving.value)
    return {
        **account(deployed),
        "securityContext": confined(),
        "terminationGracePeriodSeconds": Why(
            Chosen(grace, f"add {drain.expression} {leaving.expression} {CLEAR_UP_S}"),
            "As long as a server's: it has the same requests in flight.",
        ),
        "topologySpreadConstraints": spread(deployed, GATEWAY_PART),
        "containers": [_container(deployed)],
        "volumes": [
            {
                "name": "repository",
                "persistentVolumeClaim": {"claimName": deployed.claim, "readOnly": True},
            },
            {"name": "temporary", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
    }


def _container(deployed: Deployed) -> dict[str, Any]:
    secret = deployed.chosen("gateway.key_secret")
    shown: list[Any] = [
        "gateway",
        Why(
            words(
                "--url=grpc://",
                deployed.named(f"-servers:{parts.GRPC}?metrics={parts.METRICS}"),
            ),
            "One name for all servers; it is asked again every ten seconds. Their metrics say how "
            "busy each is.",
        ),
        f"--tokenizer={REPOSITORY}",
        words("--model-name=", deployed.chosen("name")),
        "--host=0.0.0.0",
        f"--port={GATEWAY}",
        words("--drain=", deployed.chosen("drain.exit_timeout_seconds")),
        When(secret.value is not None, secret.expression, f"--key-from={KEY}"),
    ]
    return {
        "name": GATEWAY_PART,
        "image": Why(
            deployed.chosen("gateway.image"),
            "Made by docker/gateway.Dockerfile; nobody publishes it. Name it by its digest.",
        ),
        "args": shown,
        "env": [
            {"name": "HOME", "value": "/tmp"},  # noqa: S108  in the container
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            When(
                secret.value is not None,
                secret.expression,
                {
                    "name": KEY,
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": "api-key"}},
                },
            ),
        ],
        "ports": [{"name": "http", "containerPort": GATEWAY}],
        "startupProbe": Why(
            {
                "httpGet": {"path": "/health/live", "port": "http"},
                "periodSeconds": 2,
                "timeoutSeconds": 3,
                "failureThreshold": 60,
            },
            "It loads a tokenizer; two minutes are for a slow volume.",
        ),
        "livenessProbe": Why(
            {
                "httpGet": {"path": "/health/live", "port": "http"},
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            "Says nothing of the servers: restarting a gateway mends none of them.",
        ),
        "readinessProbe": Why(
            {
                "httpGet": {"path": "/health/ready", "port": "http"},
                "periodSeconds": 3,
                "timeoutSeconds": 3,
                "failureThreshold": 2,
            },
            "Ready where at least one server is.",
        ),
        "lifecycle": {
            "preStop": Why(
                {"sleep": {"seconds": deployed.chosen("drain.endpoints_seconds")}},
                "It answers as ever until proxies know that it leaves.",
            )
        },
        "resources": resources(
            deployed,
            "gateway.resources",
            0,
            "A start, not a measurement: watch its processors under your own load.",
        ),
        "securityContext": powerless(),
        "volumeMounts": [
            {
                "name": "repository",
                "mountPath": REPOSITORY,
                "subPath": deployed.chosen("repository.digest"),
                "readOnly": True,
            },
            {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _service(deployed: Deployed) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployed, deployed.named(""), GATEWAY_PART),
        "spec": {
            "type": Why(
                "ClusterIP", "Inside the cluster alone. TLS and the way in are your Ingress's."
            ),
            "selector": deployed.labels(GATEWAY_PART),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}],
        },
    }
