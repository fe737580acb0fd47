"""What an operator does with the files, step by step."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import Any

from pipeline.manifests.deployed import GATEWAY_DOCKERFILE, GROUP_DOCKERFILE, Deployed, grace_parts
from pipeline.tables import memory_size


def readme(deployed: Deployed, *, helm: bool) -> str:
    """Writes the page that goes with a chart, or with plain manifests."""
    # Nobody else who starts the command line needs it.
    from jinja2 import Environment, StrictUndefined

    source = (files("pipeline.manifests") / "readme.md.j2").read_text(encoding="utf-8")
    environment = Environment(  # noqa: S701  it is no HTML
        undefined=StrictUndefined, keep_trailing_newline=True, lstrip_blocks=False
    )
    return environment.from_string(source).render(_context(deployed, helm=helm))


def _context(deployed: Deployed, *, helm: bool) -> dict[str, Any]:
    values, speed = deployed.values, deployed.measured
    assert values.drain.exit_timeout_seconds is not None
    namespace = f"--namespace {deployed.namespace} " if deployed.namespace else ""
    told = "its speed was not measured"
    if speed.tokens_per_second:
        told = (
            f"{speed.tokens_per_second:,.0f} tokens/s at {speed.at} streams where it was measured"
        )
    # By the client, apply would keep a copy of each object in an annotation, which has 256 KiB.
    apply = f"kubectl apply --server-side {namespace}--filename ."
    if helm:
        apply = f"helm upgrade --install {deployed.name} . {namespace}".rstrip()
    return {
        "helm": helm,
        "name": deployed.name,
        "values": values,
        "layout": deployed.layout,
        "group": deployed.group,
        "digest": values.repository.digest,
        "size": memory_size(deployed.build.bytes).strip(),
        "speed": told,
        "grace": grace_parts(values.drain.endpoints_seconds, values.drain.exit_timeout_seconds),
        "namespace": namespace,
        "workload": f"{'leaderworkerset' if deployed.group else 'deployment'}/"
        f"{deployed.name}-server",
        # kubectl rollout knows Kubernetes' own kinds alone.
        "wait": f"kubectl wait {namespace}--for=condition=Available"
        if deployed.group
        else f"kubectl rollout status {namespace}".rstrip(),
        "apply": apply,
        "images": images(deployed),
        "recipe_known": deployed.inputs.recipe is not None,
        "missing": [(here, there) for there, here in deployed.inputs.missing.values()],
        "source": shlex.quote(str(deployed.build.repository)),
    }


def images(deployed: Deployed) -> list[tuple[str, str | None]]:
    """Lists each Dockerfile that is needed and its arguments, with the name of its image."""
    values, contained = deployed.values, deployed.contained
    found = [(GATEWAY_DOCKERFILE, values.gateway.image)]
    if contained.dockerfile:
        found.append((contained.dockerfile, values.image))
    stock = f" --build-arg TRITON_IMAGE={contained.image}" if contained.gpus else ""
    if deployed.group:
        found.append((GROUP_DOCKERFILE + stock, values.image))
    if values.build.enabled:
        found.append((contained.builder + stock, values.build.image))
    return found
