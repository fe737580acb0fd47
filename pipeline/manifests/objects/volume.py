"""Who the pods are, and the volume that they read."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.manifests.deployed import SERVER, Deployed
from pipeline.manifests.objects.common import Document, metadata
from pipeline.manifests.tree import When, Why
from pipeline.tables import memory_size


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields the account and the claim."""
    yield Document(
        "account",
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(deployed, deployed.named(""), SERVER),
            "automountServiceAccountToken": Why(
                False, "Nothing here talks to the cluster's API, so nothing has a token for it."
            ),
        },
    )
    taken = memory_size(deployed.build.bytes).strip()
    create = deployed.chosen("repository.create")
    storage = deployed.chosen("repository.storage_class")
    yield Document(
        "volume",
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata(
                deployed,
                deployed.claim,
                SERVER,
                annotations={
                    "helm.sh/resource-policy": Why(
                        "keep", "Removing the service must not remove what was built."
                    )
                },
            ),
            "spec": {
                "accessModes": [
                    Why(
                        deployed.chosen("repository.access_mode"),
                        "The Job writes, servers of all nodes read.",
                    )
                ],
                "storageClassName": When(storage.value is not None, storage.expression, storage),
                "resources": {
                    "requests": {
                        "storage": Why(
                            deployed.chosen("repository.size"),
                            f"This repository has {taken}. Room for four: the one before, to go "
                            "back to it, and one that is being written among them.",
                        )
                    }
                },
            },
        },
        create.value,
        create.expression,
    )
