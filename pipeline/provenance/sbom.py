"""A software bill of materials in CycloneDX 1.6 JSON (https://cyclonedx.org/docs/1.6/json/)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.provenance.history import OWN, Step, model_url, package_url

FILE_NAME = "sbom.cdx.json"
_ROOT, _MODEL = "repository", "model"
_LONGEST_LICENSE = 64


def bill_of_materials(
    steps: Sequence[Step],
    files: Mapping[str, str],
    *,
    version: str,
    model: str,
    image: str | None = None,
) -> dict[str, Any]:
    """Lists what a repository holds and what it was made with.

    It has no time and no random number in it, so that the same repository has the same bill.

    Args:
        steps: All that it descends from, and its own.
        files: SHA-256 of its files, by name.
        version: Of this package.
        model: The architecture of the model.
        image: The container that the engine was built in.
    """
    source = next((step for step in steps if step.stage == "source"), None)
    tools = {name: its for step in steps for name, its in step.tools.items()} | {OWN: version}
    parts = [
        *(_model(source, model) if source else ()),
        *(_package(name, its) for name, its in sorted(tools.items())),
        *([_container(image)] if image else ()),
        *(_file(f"file:{name}", name, digest) for name, digest in sorted(files.items())),
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": _ROOT, "name": "Triton repository"}
        },
        "components": parts,
        "dependencies": [
            {"ref": _ROOT, "dependsOn": [part["bom-ref"] for part in parts]},
        ],
    }


def _model(source: Step, name: str) -> Iterable[dict[str, Any]]:
    url = model_url(source.origin)
    yield {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": source.origin.get("hub", name),
        **({"version": source.origin["commit"]} if source.origin.get("commit") else {}),
        **({"purl": url} if url else {}),
        "properties": [{"name": "architecture", "value": name}],
        "components": [
            _file(f"{_MODEL}:{file}", file, digest) for file, digest in sorted(source.files.items())
        ],
    }


def _package(name: str, version: str) -> dict[str, Any]:
    url = package_url(name, version)
    licenses = _licenses(name)
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        **({"licenses": licenses} if licenses else {}),
        "purl": url,
    }


def _licenses(name: str) -> list[dict[str, Any]]:
    """What the package itself says; nothing is guessed from its files."""
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if "License-Expression" in told:
        return [{"expression": told["License-Expression"]}]
    text = told["License"].strip() if "License" in told else ""
    # Some packages put the whole text there.
    if not text or "\n" in text or len(text) > _LONGEST_LICENSE or text == "UNKNOWN":
        return []
    return [{"license": {"name": text}}]


def _container(image: str) -> dict[str, Any]:
    name, _, tag = image.rpartition(":")
    return {"type": "container", "bom-ref": f"image:{image}", "name": name, "version": tag}


def _file(reference: str, name: str, digest: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": reference,
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
