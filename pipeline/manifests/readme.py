"""What an operator does with the files, step by step."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import Any

from pipeline.manifests.deployed import Deployed, grace_parts
from pipeline.tables import memory_size

GATEWAY_DOCKERFILE = "docker/gateway.Dockerfile"
GROUP_DOCKERFILE = "docker/multinode.Dockerfile"


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
    apply = f"kubectl apply {namespace}--filename ."
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
        "apply": apply,
        "images": _images(deployed),
        "recipe_known": deployed.inputs.recipe is not None,
        "missing": [(here, there) for there, here in deployed.inputs.missing.values()],
        "source": shlex.quote(str(deployed.build.repository)),
    }


def _images(deployed: Deployed) -> list[tuple[str, str | None]]:
    """Each Dockerfile that is needed, and the name of the image that it makes."""
    values, contained = deployed.values, deployed.contained
    found = [(GATEWAY_DOCKERFILE, values.gateway.image)]
    if contained.dockerfile:
        found.append((contained.dockerfile, values.image))
    if deployed.group:
        found.append((GROUP_DOCKERFILE, values.image))
    if values.build.enabled:
        found.append((contained.builder, values.build.image))
    return found
