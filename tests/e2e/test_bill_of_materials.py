"""What the demo's repository says of itself, judged by the schemas and by hand."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.provenance.sbom import FILE_NAME as SBOM
from pipeline.provenance.statement import FILE_NAME as STATEMENT
from pipeline.store.artifact import ENVELOPE, MANIFEST

from ..conftest import DEMO_MODEL, PROJECT

SCHEMAS = PROJECT / "tests" / "data" / "cyclonedx"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def bill(repository: Path) -> dict[str, Any]:
    return dict(json.loads((repository / SBOM).read_text()))


@pytest.fixture(scope="module")
def statement(repository: Path) -> dict[str, Any]:
    return dict(json.loads((repository / STATEMENT).read_text()))


def test_the_bill_keeps_to_the_schema(bill: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    main, *others = (
        json.loads((SCHEMAS / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.6", "spdx", "jsf-0.82")
    )
    found = [
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in (main, *others)
    ]
    registry = referencing.Registry().with_resources(found)
    validator = jsonschema.Draft7Validator(main, registry=registry)
    assert [error.message for error in validator.iter_errors(bill)] == []
    broken = bill | {"components": [{"name": "without a type"}]}
    assert [error.message for error in validator.iter_errors(broken)]
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(set(references)) == len(references)
    assert bill["dependencies"] == [{"ref": "repository", "dependsOn": references}]


def test_the_bill_has_every_file_the_models_files_and_the_packages(
    bill: dict[str, Any], repository: Path
) -> None:
    def hashes(parts: list[dict[str, Any]]) -> dict[str, str]:
        return {
            part["name"]: part["hashes"][0]["content"] for part in parts if part["type"] == "file"
        }

    present = digests(repository)
    for name in (SBOM, STATEMENT, MANIFEST):
        present.pop(name)
    assert hashes(bill["components"]) == present
    (model,) = [part for part in bill["components"] if part["type"] == "machine-learning-model"]
    source = digests(DEMO_MODEL)
    assert hashes(model["components"]).items() <= source.items()
    assert "model.safetensors" in hashes(model["components"])
    urls = {part.get("purl") for part in bill["components"]}
    for package in ("nvidia-modelopt", "openvino", "tokenizers", "transformers"):
        assert f"pkg:pypi/{package}@{importlib.metadata.version(package)}" in urls


def test_the_statement_has_every_file_and_tells_the_recipe_and_the_source(
    statement: dict[str, Any], repository: Path
) -> None:
    present = digests(repository)
    for name in (STATEMENT, MANIFEST):
        present.pop(name)
    assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == present
    assert not (repository / ENVELOPE).exists()
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["recipe"]["quantize"]["format"] == "int4_awq"
    told = {item["name"]: item.get("digest") for item in build["resolvedDependencies"]}
    weights = hashlib.sha256((DEMO_MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert told["source/model.safetensors"] == {"sha256": weights}
    assert "quantize/calibration_text" in told


def test_neither_tells_a_path_or_a_time(repository: Path) -> None:
    for name in (SBOM, STATEMENT):
        text = (repository / name).read_text()
        assert str(PROJECT) not in text
        assert "/home/" not in text
        assert "created" not in text
        assert "timestamp" not in text
