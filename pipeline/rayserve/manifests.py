"""Writes the kind ``ray``: the config of Ray Serve, and a RayService for KubeRay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from pipeline.manifests.deployed import Deployed
from pipeline.manifests.objects.gateway import KEY
from pipeline.manifests.tree import comment, manifest
from pipeline.rayserve import kuberay
from pipeline.rayserve.config import EVERYWHERE, serve_config
from pipeline.rayserve.deployments import gateway_options, replica_options
from pipeline.rayserve.options import Options
from pipeline.rayserve.sizing import Size, size_of

CONFIG = "serve.yaml"
KUBERNETES = "kubernetes"


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes a config for a cluster of one's own, and the objects for one of KubeRay's.

    Args:
        deployed: What is deployed.

    Raises:
        RepositoryError: The engine does not say its sizes.
        UnsupportedError: No known image can read the engine, or it takes several nodes.
    """
    size = replace(size_of(deployed.build), gpus=deployed.layout.gpus)
    longest = _longest(deployed, size)
    here = deployed.build.repository.resolve()
    config = serve_config(_options(deployed, size, str(here)), size, name=deployed.name)
    head = [
        f"Serves {here} on a Ray cluster: serve run {CONFIG}",
        "The repository has to be at that place on every node. Another one there is an update.",
        *_told(deployed, size),
    ]
    inside = _options(deployed, size, kuberay.place_of(deployed).repository)
    told = serve_config(inside, size, name=deployed.name, host=EVERYWHERE)
    found: dict[str, list[str]] = {}
    for document in kuberay.documents(deployed, _text(told), longest):
        if document.holds:
            found.setdefault(f"{KUBERNETES}/{document.path}.yaml", []).append(
                manifest(document.tree)
            )
    lines = [
        f"{deployed.name}: written by trtllm-pipeline manifests, for a cluster with KubeRay.",
        f"Clients find it at {kuberay.address(deployed)}",
    ]
    said = "".join(f"{line}\n" for text in lines for line in comment(text))
    return {
        CONFIG: "".join(f"{line}\n" for text in head for line in comment(_shown(text)))
        + _text(config),
        **{path: said + "---\n".join(texts) for path, texts in found.items()},
    }


def lines(deployed: Deployed) -> list[str]:
    """Returns what a terminal is told of scaling and stopping.

    Args:
        deployed: What is deployed.

    Raises:
        RepositoryError: The engine does not say its sizes.
        UnsupportedError: No known image can read the engine.
    """
    size = size_of(deployed.build)
    options = _options(deployed, size, str(deployed.build.repository))
    replicas, gateway = replica_options(options, size), gateway_options(options, size)
    bounds = f"{options.min_replicas} to {options.max_replicas} replicas"
    busy = f"{size.target:g} of {size.sequences} requests each"
    key = "graceful_shutdown_timeout_s"
    known = "measured" if deployed.measured.token_s is not None else "not measured"
    return [
        f"scaling: {bounds}, another one at {busy}",
        f"stop:    {replicas[key]} s for what a replica has, {gateway[key]} s for a gateway",
        f"longest: {_longest(deployed, size)} s for one stream ({known})",
    ]


def _options(deployed: Deployed, size: Size, repository: str) -> Options:
    values = deployed.values
    longest = _longest(deployed, size)
    return Options(
        repository=repository,
        model=deployed.name,
        min_replicas=values.replicas,
        max_replicas=2 * values.replicas,
        gateways=values.gateway.replicas,
        replica_cpus=kuberay.number(values.resources.cpu),
        gateway_cpus=kuberay.number(values.gateway.resources.cpu),
        longest_stream_s=None if longest == size.longest_s else longest,
        key_from=KEY if values.gateway.key_secret else None,
    )


def _longest(deployed: Deployed, size: Size) -> int:
    """What the operator allows the longest stream, or what was measured."""
    chosen = deployed.values.drain.exit_timeout_seconds
    if chosen is None or chosen == deployed.measured.exit_timeout_s:
        return size.longest_s
    return chosen


def _told(deployed: Deployed, size: Size) -> Sequence[str]:
    if deployed.measured.token_s is not None:
        return ()
    return [f"How long a stream lasts was not measured: {size.longest_s} s are allowed."]


def _shown(text: str) -> str:
    # A path may hold a line break, which would end the comment.
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True)
