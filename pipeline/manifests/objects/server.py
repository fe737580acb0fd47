"""The servers: a Deployment, or a LeaderWorkerSet where one engine takes several nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from pipeline.manifests import deployed as parts
from pipeline.manifests.deployed import EXIT_TIMEOUT, GROUP_DOCKERFILE, SERVER, Deployed
from pipeline.manifests.measured import (
    CLEAR_UP_S,
    FEWEST_LOOKS,
    LOOK_EVERY_S,
    PATIENCE,
    SLOWEST_TOKEN_S,
    SPARE,
)
from pipeline.manifests.objects.common import (
    MEBIBYTE,
    READ_BY_ALL,
    RUN_BY_ALL,
    Document,
    account,
    confined,
    metadata,
    powerless,
    resources,
    spread,
)
from pipeline.manifests.tree import Chosen, Raw, When, Why, words

SCRIPTS = "/scripts"
CANARY, GROUP = "canary.py", "group.sh"
GROUP_KEYS = "/etc/group-ssh"
TEMPORARY = "/tmp"  # noqa: S108  in the container
PROGRESS_SPARE_S = 600
"""Seconds beyond loading for finding a node and fetching an image of many gigabytes."""


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields the scripts, the servers, and the name that leads to each of them."""
    yield Document("server", _scripts(deployed))
    yield Document("server", _group(deployed) if deployed.group else _deployment(deployed))
    yield Document("server", _service(deployed))


def script(name: str) -> str:
    """Returns the text of a script that runs in the server's container."""
    return (files("pipeline.manifests") / "scripts" / name).read_text(encoding="utf-8")


def _names(deployed: Deployed) -> list[str]:
    return [CANARY, *([GROUP] if deployed.group else [])]


def _scripts(deployed: Deployed) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(deployed, deployed.named("-scripts"), SERVER),
        "data": {name: Raw(script(name)) for name in _names(deployed)},
    }


def _deployment(deployed: Deployed) -> dict[str, Any]:
    looks = deployed.chosen("startup.failure_threshold")
    spare = "set of GPUs" if deployed.layout.gpus else "server's processors and memory"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployed, deployed.named("-server"), SERVER),
        "spec": {
            "replicas": Why(
                deployed.chosen("replicas"),
                "Servers; a request that one of them loses is resumed on another. Leave it out "
                "where an autoscaler decides.",
            ),
            "selector": {"matchLabels": deployed.labels(SERVER)},
            "revisionHistoryLimit": Why(
                5, "How far kubectl rollout undo goes back; the volume has the repositories."
            ),
            "progressDeadlineSeconds": Why(
                Chosen(
                    looks.value * LOOK_EVERY_S + PROGRESS_SPARE_S,
                    f"add (mul {looks.expression} {LOOK_EVERY_S}) {PROGRESS_SPARE_S}",
                ),
                "A rollout that is only loading has not failed: all looks of the startup probe, "
                f"and {PROGRESS_SPARE_S} s for finding a node and fetching the image.",
            ),
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": Why(
                    {"maxSurge": 1, "maxUnavailable": 0},
                    "A new server is ready before an old one leaves. It needs one spare "
                    f"{spare} in the cluster. Where there is none, swap the two numbers: then one "
                    "server less answers during an update.",
                ),
            },
            "template": _template(deployed, _pod(deployed)),
        },
    }


def _group(deployed: Deployed) -> dict[str, Any]:
    layout = deployed.layout
    ranks = layout.tensor_parallel * layout.pipeline_parallel
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(deployed, deployed.named("-server"), SERVER),
        "spec": {
            "replicas": Why(deployed.chosen("replicas"), "Servers, each a group of pods."),
            "startupPolicy": Why(
                "LeaderCreated", "The first pod waits for the others, so all must be made at once."
            ),
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": Why(
                    {"maxUnavailable": 0, "maxSurge": 1},
                    "A new group is ready before an old one leaves; it needs the nodes for one "
                    "group more.",
                ),
            },
            "leaderWorkerTemplate": {
                "size": Why(
                    layout.pods,
                    f"{ranks} ranks (tensor parallel {layout.tensor_parallel} x pipeline parallel "
                    f"{layout.pipeline_parallel}) on {layout.pods} nodes, {layout.gpus} on each.",
                ),
                "restartPolicy": Why(
                    "RecreateGroupOnPodRestart",
                    "Ranks that lost one of them wait for it for ever, so all begin anew.",
                ),
                "leaderTemplate": _template(deployed, _pod(deployed)),
                "workerTemplate": _template(deployed, _pod(deployed, leads=False), "worker"),
            },
        },
    }


def _template(deployed: Deployed, pod: dict[str, Any], component: str = SERVER) -> dict[str, Any]:
    told = "".join(script(name) for name in _names(deployed))
    return {
        "metadata": {
            "labels": deployed.labels(component),
            "annotations": {
                "trtllm-pipeline/repository": Why(
                    deployed.chosen("repository.digest"),
                    "What is served. Another digest here and below is a rolling update.",
                ),
                "trtllm-pipeline/scripts": Why(
                    hashlib.sha256(told.encode()).hexdigest()[:16],
                    "Pods do not notice a changed ConfigMap; they do notice this.",
                ),
            },
        },
        "spec": pod,
    }


def _pod(deployed: Deployed, *, leads: bool = True) -> dict[str, Any]:
    gpus = deployed.layout.gpus
    product, runtime = deployed.chosen("gpu.product"), deployed.chosen("gpu.runtime_class")
    selector, tolerations = deployed.chosen("node_selector"), deployed.chosen("tolerations")
    drain = deployed.chosen("drain.endpoints_seconds")
    leaving = deployed.chosen("drain.exit_timeout_seconds")
    grace = parts.grace_parts(drain.value, leaving.value)
    on_gpu = (
        {
            "runtimeClassName": When(runtime.value is not None, runtime.expression, runtime),
            "affinity": When(product.value is not None, product.expression, affinity(product)),
        }
        if gpus
        else {}
    )
    return {
        **account(deployed),
        "securityContext": confined(),
        "shareProcessNamespace": Why(
            True,
            "The kernel spares process 1 every signal that it has no handler for, and "
            "tritonserver has none until all is loaded: a pod deleted while it loads would be "
            "killed only at the end of its time. So the pause container is process 1, which also "
            "takes in orphans.",
        ),
        "terminationGracePeriodSeconds": Why(
            Chosen(grace, f"add {drain.expression} {leaving.expression} {CLEAR_UP_S}"),
            f"{drain.value} s until it is out of the traffic + {leaving.value} s for requests in "
            f"flight + {CLEAR_UP_S} s to unload.",
        ),
        **on_gpu,
        "nodeSelector": When(bool(selector.value), selector.expression, selector),
        "tolerations": When(bool(tolerations.value), tolerations.expression, tolerations),
        "topologySpreadConstraints": spread(deployed, SERVER),
        "containers": [_container(deployed, leads=leads)],
        "volumes": [
            {
                "name": "repository",
                "persistentVolumeClaim": Why(
                    {"claimName": deployed.claim, "readOnly": True},
                    "Nobody who serves may write. A digest that is not there yet is not made "
                    "either: the pod waits until the Job has put it there.",
                ),
            },
            {
                "name": "shared-memory",
                "emptyDir": Why(
                    {
                        "medium": "Memory",
                        "sizeLimit": f"{deployed.contained.shared_memory // MEBIBYTE}Mi",
                    },
                    "Triton and its Python models exchange tensors there, of which containers have "
                    "64 MB otherwise. It counts as memory of the container.",
                ),
            },
            {"name": "temporary", "emptyDir": {"sizeLimit": "1Gi"}},
            {
                "name": "scripts",
                "configMap": {
                    "name": deployed.named("-scripts"),
                    "defaultMode": RUN_BY_ALL if deployed.group else READ_BY_ALL,
                },
            },
            *(
                [
                    {
                        "name": "group-ssh",
                        "secret": Why(
                            {"secretName": deployed.named("-ssh"), "defaultMode": 0o400},
                            "Made once by hand (README.md): id_ed25519 and authorized_keys.",
                        ),
                    }
                ]
                if deployed.group
                else []
            ),
        ],
    }


def affinity(product: Chosen) -> Why:
    """Returns the affinity to nodes with one model of GPU."""
    return Why(
        {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": "nvidia.com/gpu.product",
                                    "operator": "In",
                                    "values": [product],
                                }
                            ]
                        }
                    ]
                }
            }
        },
        "An engine runs on the model of GPU that it was built on, and on no other.",
    )


def _container(deployed: Deployed, *, leads: bool) -> dict[str, Any]:
    contained, layout = deployed.contained, deployed.layout
    image = deployed.chosen("image")
    file = GROUP_DOCKERFILE if deployed.group else contained.dockerfile
    if file:
        shown: Any = Why(image, f"Made by {file}; nobody publishes it. Name it by its digest.")
    else:
        shown = Why(
            image, "The one image that can read the engine: an engine runs with its own TensorRT."
        )
    running: dict[str, Any] = {}
    if deployed.group:
        assert contained.spread
        # Whoever does not lead waits to be told what to run.
        told = [str(layout.gpus), *contained.spread] if leads else []
        running["command"] = [f"{SCRIPTS}/{GROUP}", *told]
    else:
        if contained.command:
            running["command"] = list(contained.command)
        if contained.arguments:
            running["args"] = list(contained.arguments)
    container = {
        "name": SERVER,
        "image": shown,
        **running,
        "env": [
            {"name": "HOME", "value": TEMPORARY},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            Why(
                {
                    "name": EXIT_TIMEOUT,
                    "value": words(deployed.chosen("drain.exit_timeout_seconds")),
                },
                _exit_reason(deployed),
            ),
        ],
    }
    if leads:
        container["ports"] = [
            {"name": name, "containerPort": port}
            for name, port in (
                ("grpc", parts.GRPC),
                ("http", parts.HTTP),
                ("metrics", parts.METRICS),
            )
        ]
        container |= _probes(deployed)
        container["lifecycle"] = {"preStop": _pre_stop(deployed)}
    container["resources"] = resources(
        deployed, "resources", layout.gpus, _resource_reason(deployed)
    )
    container["securityContext"] = powerless()
    container["volumeMounts"] = [
        {
            "name": "repository",
            "mountPath": contained.mount,
            "subPath": Why(
                deployed.chosen("repository.digest"),
                "The folder of the volume that is called by this digest"
                + (
                    ", every file of which is compared with it at each start."
                    if contained.checks
                    else "."
                ),
            ),
            "readOnly": True,
        },
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "temporary", "mountPath": TEMPORARY},
        {"name": "scripts", "mountPath": SCRIPTS, "readOnly": True},
        *(
            [{"name": "group-ssh", "mountPath": GROUP_KEYS, "readOnly": True}]
            if deployed.group
            else []
        ),
    ]
    return container


def _exit_reason(deployed: Deployed) -> str:
    speed = deployed.measured
    if speed.token_s is None:
        token = f"{SLOWEST_TOKEN_S:g} s from token to token, which was not measured: bench tells it"
    else:
        token = (
            f"{speed.token_s * 1000:.3g} ms from token to token at {speed.at} streams (measured, "
            "95th percentile)"
        )
        if speed.full_batch > speed.at:
            token += f" x {speed.full_batch}/{speed.at} for a full batch"
    meaning = (
        "Seconds for requests in flight"
        if deployed.contained.finishes
        else "Seconds for requests in flight, which preStop waits"
    )
    return (
        f"{meaning}: {speed.longest_answer:,} tokens of the longest answer x {token} x {SPARE:g}, "
        f"rounded up to {speed.exit_timeout_s} s."
    )


def _probes(deployed: Deployed) -> dict[str, Any]:
    speed = deployed.measured
    loaded = (
        "was not measured"
        if speed.load_s is None
        else f"took {speed.load_s:.1f} s where it was measured"
    )
    looks = deployed.chosen("startup.failure_threshold")
    return {
        "startupProbe": Why(
            {
                "exec": {
                    "command": ["python3", f"{SCRIPTS}/{CANARY}", deployed.chosen("canary.prompt")]
                },
                "periodSeconds": LOOK_EVERY_S,
                "timeoutSeconds": 20,
                "failureThreshold": Why(
                    looks,
                    f"Loading {loaded}: {PATIENCE} x that / {LOOK_EVERY_S} s, and {FEWEST_LOOKS} "
                    "at least. Too few is a loop of restarts for ever.",
                ),
            },
            "The canary: a server counts as started once it has given a token for a prompt, so "
            "an engine that loads and cannot answer gets no traffic, and stops a rollout before an "
            "old server leaves. It is asked here and not as readiness: there it would stand in the "
            "queue of a busy server every few seconds, and take out exactly the servers that have "
            "most to do. Triton opens no port before all is loaded.",
        ),
        "livenessProbe": Why(
            {
                "httpGet": {"path": "/v2/health/live", "port": "http"},
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            "A restart loads everything again, so it is patient"
            + (
                "; serve restarts a Triton that died or hangs by itself."
                if deployed.contained.checks
                else "."
            ),
        ),
        "readinessProbe": Why(
            {
                "httpGet": {"path": "/v2/health/ready", "port": "http"},
                "periodSeconds": 3,
                "timeoutSeconds": 3,
                "failureThreshold": 2,
            },
            "A server that is not ready leaves the gateways' list within 6 s.",
        ),
    }


def _pre_stop(deployed: Deployed) -> Why:
    drain = deployed.chosen("drain.endpoints_seconds")
    leaving = deployed.chosen("drain.exit_timeout_seconds")
    if deployed.contained.finishes:
        return Why(
            {"sleep": {"seconds": drain}},
            "It answers as ever while gateways learn that it leaves, who ask its name every ten "
            "seconds; only then comes "
            "SIGTERM, after which it takes no new request and ends those it has. Kubernetes 1.30 "
            "and later.",
        )
    both = Chosen(drain.value + leaving.value, f"add {drain.expression} {leaving.expression}")
    return Why(
        {"sleep": {"seconds": both}},
        "mpirun answers SIGTERM by killing its ranks, requests and all. So the wait is here: until "
        "gateways know that it leaves, and then for all that it still has. Kubernetes 1.30 and "
        "later.",
    )


def _resource_reason(deployed: Deployed) -> str:
    speed, layout = deployed.measured, deployed.layout
    if layout.gpus:
        return (
            f"A GPU for each of its ranks, {layout.gpus} in all. Processors and memory were not "
            "measured: 4 of them and 16 GiB for each GPU, and the engine's file, which is read "
            "through memory."
        )
    if speed.memory is None:
        return "Not measured: bench tells the memory of a server."
    return (
        f"Measured with {speed.cpus} processors: {speed.tokens_per_second:,.0f} tokens/s at "
        f"{speed.at} streams, in {speed.memory / MEBIBYTE:,.0f} MiB. Memory: half of that more, "
        f"and {deployed.contained.shared_memory // MEBIBYTE:,} MiB for /dev/shm, which counts as "
        "such."
    )


def _service(deployed: Deployed) -> dict[str, Any]:
    selector = deployed.labels(SERVER)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployed, deployed.named("-servers"), SERVER),
        "spec": {
            "clusterIP": Why(
                "None",
                "Headless: its name leads to every server that is ready. A gRPC client keeps one "
                "connection, so behind one address all of its requests would go to one server.",
            ),
            "selector": selector,
            "ports": [
                {
                    "name": "grpc",
                    "port": parts.GRPC,
                    "targetPort": "grpc",
                    "appProtocol": "kubernetes.io/h2c",
                },
                {"name": "metrics", "port": parts.METRICS, "targetPort": "metrics"},
            ],
        },
    }
