"""An in-toto statement about a repository, with the predicate SLSA Provenance v1.

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.provenance.history import OWN, Step, model_url, package_url
from pipeline.store.artifact import ENVELOPE, MANIFEST

FILE_NAME = "provenance.intoto.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:trtllm-pipeline:repository:v1"
BUILDER = "urn:trtllm-pipeline:run"

APART = frozenset({FILE_NAME, ENVELOPE, MANIFEST})
"""Files of a repository that no statement can list: itself, its signature, and the manifest, which
has the time and lists the statement."""


def statement(
    steps: Sequence[Step],
    files: Mapping[str, str],
    *,
    version: str,
    image: str | None = None,
) -> dict[str, Any]:
    """States what a repository was made of, by what and how.

    It has no time in it: two runs that make the same repository state the same.

    Args:
        steps: All that it descends from, and its own, in order.
        files: SHA-256 of its files, by name.
        version: Of this package.
        image: The container that the engine was built in.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": {step.stage: step.recipe for step in steps}},
                "internalParameters": {
                    "artifacts": {step.stage: step.digest for step in steps if step.digest},
                    "machine": {step.stage: step.others for step in steps if step.others},
                },
                "resolvedDependencies": list(_dependencies(steps, version, image)),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {OWN: version}}},
        },
    }


def _dependencies(
    steps: Sequence[Step], version: str, image: str | None
) -> Iterator[dict[str, Any]]:
    for step in steps:
        if step.stage != "source":
            continue
        url = model_url(step.origin)
        for name, digest in sorted(step.files.items()):
            yield {
                "name": f"source/{name}",
                **({"uri": url} if url else {}),
                "digest": {"sha256": digest},
            }
    for step in steps:
        for name, digest in sorted(step.texts.items()):
            yield {"name": f"{step.stage}/{name}", "digest": {"sha256": digest}}
    tools = {name: its for step in steps for name, its in step.tools.items()} | {OWN: version}
    for name, its in sorted(tools.items()):
        yield {"name": name, "uri": package_url(name, its)}
    if image:
        yield {"name": "container", "uri": f"docker://{image}"}
