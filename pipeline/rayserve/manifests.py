"""Writes the kind ``ray``: the config of Ray Serve, and a RayService for KubeRay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.manifests.deployed import Deployed
from pipeline.rayserve.config import serve_config
from pipeline.rayserve.options import Options
from pipeline.rayserve.sizing import size_of

CONFIG = "serve.yaml"


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes the files of the kind ``ray``, by their names.

    Args:
        deployed: What is deployed.

    Raises:
        RepositoryError: The engine does not say its sizes.
        UnsupportedError: No known image can read the engine.
    """
    build = deployed.build
    size = size_of(build)
    replicas = deployed.values.replicas
    options = Options(
        repository=str(build.repository.resolve()),
        model=deployed.name,
        min_replicas=replicas,
        max_replicas=2 * replicas,
    )
    head = [
        f"Serves {build.repository.resolve()} on a Ray cluster: serve run {CONFIG}",
        "The repository has to be at that place on every node. Another one there is an update.",
    ]
    if not size.measured:
        head.append(
            f"Nothing says how long a stream lasts: {size.longest_s} s are allowed for the longest."
        )
    config = serve_config(options, size, build, name=deployed.name)
    return {CONFIG: _text(config, head)}


def _text(document: Mapping[str, Any], head: Sequence[str]) -> str:
    text = yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True)
    # A path may hold a line break, which would end the comment.
    shown = ("".join(c if c.isprintable() else "?" for c in line) for line in head)
    return "".join(f"# {line}\n" for line in shown) + text
