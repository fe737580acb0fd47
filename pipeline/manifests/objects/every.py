"""All objects of a deployment, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.manifests.deployed import Deployed
from pipeline.manifests.objects import build, gateway, policies, server, volume
from pipeline.manifests.objects.common import Document


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields every object, those that are not wanted among them."""
    for part in (volume, build, server, gateway, policies):
        yield from part.documents(deployed)
