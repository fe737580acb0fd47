"""Plain manifests: for ``kubectl apply``, and for people who read them first."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.manifests.deployed import Deployed
from pipeline.manifests.objects.every import documents
from pipeline.manifests.readme import readme
from pipeline.manifests.tree import comment, manifest


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes a file for each part, and how to use them."""
    found: dict[str, list[str]] = {}
    for document in documents(deployed):
        if document.holds:
            found.setdefault(f"{document.path}.yaml", []).append(manifest(document.tree))
    head = "\n".join(comment(f"{deployed.name}: written by trtllm-pipeline manifests."))
    files = {path: f"{head}\n" + "---\n".join(texts) for path, texts in found.items()}
    return {**files, "README.md": readme(deployed, helm=False)}
