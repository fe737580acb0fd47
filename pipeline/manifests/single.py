"""One machine: what ``serve --print`` writes for the server, and the gateway beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.manifests.deployed import GATEWAY, GRPC, HTTP, METRICS, Deployed
from pipeline.manifests.measured import CLEAR_UP_S
from pipeline.manifests.objects.gateway import KEY, REPOSITORY
from pipeline.manifests.readme import images
from pipeline.manifests.tree import comment
from pipeline.service.printed import printed, program
from pipeline.service.systemd import unit_text
from pipeline.triton.compose import project_name

LOOPBACK = "127.0.0.1"
_ASK = (
    "import urllib.request as u; u.build_opener(u.ProxyHandler({}))"
    f".open('http://{LOOPBACK}:{GATEWAY}/health/ready', timeout=3)"
)


def compose(deployed: Deployed) -> Mapping[str, str]:
    """Writes a compose file of the server and the gateway, both on loopback."""
    said = printed("compose", deployed.build.repository, _options(deployed), ())
    content = yaml.safe_load(said["text"])
    server = content["services"]["triton"]
    server["image"] = deployed.values.image
    # A copy: what both have would be written as references otherwise.
    content["services"]["gateway"] = copy.deepcopy(_gateway(deployed, server))
    making = [f"docker build --file {file} --tag {image} ." for file, image in images(deployed)]
    head = "\n".join(
        [
            f"{deployed.name}: the server, and OpenAI's API at http://{LOOPBACK}:{GATEWAY}/v1.",
            "Images, made in a checkout of trtllm-pipeline:",
            *(f"  {line}" for line in making),
            "Start:  docker compose up --detach --wait",
            "Stop:   docker compose down",
            f"A key for clients: set gateway.keySecret to any name and write this again. {KEY}",
            "of whoever starts it is the key then.",
        ]
    )
    text = yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
    return {"compose.yaml": "\n".join(comment(head)) + f"\n{text}"}


def _gateway(deployed: Deployed, server: Mapping[str, Any]) -> dict[str, Any]:
    exit_s = _exit(deployed)
    (volume,) = server["volumes"]
    key = deployed.values.gateway.key_secret is not None
    return {
        "image": deployed.values.gateway.image,
        "command": [
            "gateway",
            f"--url=grpc://triton:{GRPC}?metrics={METRICS}",
            f"--tokenizer={REPOSITORY}",
            f"--model-name={deployed.name}",
            "--host=0.0.0.0",
            f"--port={GATEWAY}",
            f"--drain={exit_s}",
            *([f"--key-from={KEY}"] if key else []),
        ],
        # By name only: compose hands the key on from its own environment.
        "environment": {"HOME": "/tmp", **({KEY: None} if key else {})},  # noqa: S108
        # It waits for the server by itself, and outlives it: texts go on when that is back.
        "depends_on": {"triton": {"condition": "service_started"}},
        **{
            name: server[name]
            for name in ("init", "restart", "user", "cap_drop", "security_opt", "logging")
        },
        "stop_grace_period": f"{exit_s + CLEAR_UP_S}s",
        "read_only": True,
        "tmpfs": ["/tmp:mode=1777"],  # noqa: S108
        "ports": [f"{LOOPBACK}:{GATEWAY}:{GATEWAY}"],
        "volumes": [{**volume, "target": REPOSITORY}],
        "healthcheck": {
            **server["healthcheck"],
            "test": ["CMD", "python3", "-c", _ASK],
        },
    }


def systemd(deployed: Deployed) -> Mapping[str, str]:
    """Writes a unit for the server and one for the gateway, both on loopback."""
    repository = deployed.build.repository
    name, exit_s = project_name(repository), _exit(deployed)
    server = printed("systemd", repository, _options(deployed), ())
    key = [KEY] if deployed.values.gateway.key_secret else []
    command = [
        *program(),
        "gateway",
        f"--url=grpc://{LOOPBACK}:{GRPC}?metrics={METRICS}",
        f"--tokenizer={repository.resolve()}",
        f"--model-name={deployed.name}",
        f"--host={LOOPBACK}",
        f"--port={GATEWAY}",
        f"--drain={exit_s}",
        *(f"--key-from={variable}" for variable in key),
    ]
    gateway = unit_text(
        command,
        repository.resolve(),
        f"{name}-gateway",
        exit_timeout_s=exit_s,
        container=False,
        environment=key,
        what="OpenAI gateway",
        ready="it listens; the server may still be loading",
        behind=name,
    )
    return {f"{name}.service": server["text"], f"{name}-gateway.service": gateway}


def _exit(deployed: Deployed) -> int:
    seconds = deployed.values.drain.exit_timeout_seconds
    assert seconds is not None
    return seconds


def _options(deployed: Deployed) -> dict[str, Any]:
    """What ``serve`` takes: everything on loopback, at the usual ports."""
    return {
        "host": LOOPBACK,
        "grpc_port": GRPC,
        "http_port": HTTP,
        "metrics_port": METRICS,
        "http": False,
        "devices": None,
        "orchestrator": False,
        "mpirun": False,
        "exit_timeout_s": _exit(deployed),
    }
