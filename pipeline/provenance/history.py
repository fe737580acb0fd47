"""What is known of how an artifact came about, out of the manifests of its ancestors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.dependencies import required

OWN = "trtllm-pipeline"
"""The distribution that all of it was made by."""

_ABSENT = "absent"


@dataclass(frozen=True)
class Step:
    """One stage that an artifact descends from, or is made by.

    Attributes:
        stage: Its name.
        recipe: The part of the recipe that decided its bytes.
        tools: Versions of the packages that did, by distribution.
        others: What else decided them, such as the GPU.
        files: SHA-256 of what it wrote, by file; empty where nobody needs them.
        digest: Of all it wrote; None of a stage that is not done.
        origin: Where it took things from: ``hub`` and ``commit``.
        texts: SHA-256 of the texts it read, by what they are.
    """

    stage: str
    recipe: Mapping[str, Any]
    tools: Mapping[str, str]
    others: Mapping[str, Any]
    files: Mapping[str, str]
    digest: str | None
    origin: Mapping[str, str]
    texts: Mapping[str, str] = field(default_factory=dict)


def step_of(manifest: Mapping[str, Any]) -> Step:
    """Reads one stage's part from its artifact's manifest."""
    decided = manifest.get("material", {})
    material = decided.get("material", {})
    tools, others = packages(material.get("tools", {}))
    return Step(
        stage=str(manifest.get("stage")),
        recipe=decided.get("recipe", {}),
        tools=tools,
        others=others,
        files={name: entry["sha256"] for name, entry in manifest["files"].items()},
        digest=str(manifest["digest"]),
        # Never the folder of a local model, which is a path of this machine.
        origin={name: material[name] for name in ("hub", "commit") if material.get(name)},
        texts={name: its for name, its in material.items() if _is_text(name, its)},
    )


def _is_text(name: str, value: Any) -> bool:
    return name.endswith("_text") and isinstance(value, str)


def packages(tools: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Tells versions of distributions from what else a stage calls its tools."""
    known = required()
    found = {name: str(its) for name, its in tools.items() if name in known and its != _ABSENT}
    return found, {name: its for name, its in tools.items() if name not in known}


def package_url(name: str, version: str) -> str:
    """Writes a package URL (purl-spec) of a distribution of PyPI, or of this one, which is not."""
    if name == OWN:
        return f"pkg:generic/{name}@{version}"
    # The type pypi has names in lower case with dashes; of versions "+" is escaped.
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def model_url(origin: Mapping[str, str]) -> str | None:
    """Writes the package URL of a model of the Hub; None of one that lies in a folder."""
    if not origin.get("hub"):
        return None
    version = f"@{origin['commit']}" if origin.get("commit") else ""
    return f"pkg:huggingface/{origin['hub']}{version}"
