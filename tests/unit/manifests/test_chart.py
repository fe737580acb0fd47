"""The chart: what helm makes of it, and its values without helm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from .support import files_of, objects_of
from .test_kubernetes import SHAPES
from .tools import program, said

# Values that turn on what is left out by default, and change every kind of value.
CHANGED = {
    "name": "other",
    "namespace": "llm",
    "replicas": 5,
    "image": "registry.example/own/server@sha256:" + "a" * 64,
    "imagePullSecrets": [{"name": "registry"}],
    "resources": {"cpu": 12, "memory": "2000000000"},
    "nodeSelector": {"pool": "big"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "repository": {
        "digest": "b" * 64,
        "claim": "shared.volume",
        "storageClass": "nfs",
        "accessMode": "ReadWriteOnce",
        "size": "2Ti",
    },
    "startup": {"failureThreshold": 12345678},
    "drain": {"endpointsSeconds": 0, "exitTimeoutSeconds": 86400},
    "canary": {"prompt": "Say: {{ yes }} # no, it's fine"},
    "gateway": {"replicas": 3, "keySecret": "clients", "resources": {"memory": "3Gi"}},
    "network": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
        "monitoringNamespace": "watching",
    },
}
BUILDING = {"build": {"enabled": True, "tokenSecret": "hub", "inputsClaim": "given"}}


def write(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(made["kind"], made["metadata"]["name"]): made for made in objects}


def rendered(chart: Path, *options: str) -> dict[tuple[str, str], dict[str, Any]]:
    code, text = said(program("helm"), "template", "release", str(chart), *options)
    assert code == 0, text
    return by_name([made for made in yaml.safe_load_all(text) if made])


# Each helm takes a moment, so one shape stands for the others until the proofs run.
ONE_OF_THEM = [
    pytest.param(shape, marks=() if shape == "gpu" else pytest.mark.proof) for shape in SHAPES
]


@pytest.mark.parametrize("shape", ONE_OF_THEM)
def test_helm_makes_the_plain_manifests_of_the_default_values(
    shape: str, builds: dict[str, Path], tmp_path: Path
) -> None:
    options = SHAPES[shape]
    chart = write(files_of(builds[shape], "helm", *options), tmp_path)
    plain = by_name(objects_of(builds[shape], *options))
    assert rendered(chart) == plain
    assert len(plain) >= 11


@pytest.mark.proof
@pytest.mark.parametrize("shape", ["cpu", "from-the-hub", "gpu", "nodes"])
def test_helm_makes_the_plain_manifests_of_other_values(
    shape: str, builds: dict[str, Path], tmp_path: Path
) -> None:
    """The chart of the default values, with others, is what those others give at once."""
    changed = dict(CHANGED)
    if shape in ("gpu", "nodes"):
        changed |= {"gpu": {"product": "NVIDIA L40S", "runtimeClass": "nvidia"}}
    if shape == "from-the-hub":
        changed |= BUILDING
    chart = write(files_of(builds[shape], "helm"), tmp_path / "chart")
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(changed))
    overrides = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    plain = by_name(objects_of(builds[shape], *overrides))
    found = rendered(chart, "--values", str(values))
    assert found.keys() == plain.keys()
    for name, made in plain.items():
        assert found[name] == made, name


@pytest.mark.proof
def test_conditions_can_be_turned_off(builds: dict[str, Path], tmp_path: Path) -> None:
    chart = write(files_of(builds["from-the-hub"], "helm"), tmp_path)
    off = ("network.enabled=false", "repository.create=false", "build.enabled=false")
    plain = by_name(objects_of(builds["from-the-hub"], *off))
    assert rendered(chart, *(f"--set={word}" for word in off)) == plain
    kinds = {kind for kind, _ in plain}
    assert not kinds & {"NetworkPolicy", "PersistentVolumeClaim", "Job"}


@pytest.mark.parametrize("shape", ONE_OF_THEM)
def test_helm_lints_it(shape: str, builds: dict[str, Path], tmp_path: Path) -> None:
    chart = write(files_of(builds[shape], "helm"), tmp_path)
    code, text = said(program("helm"), "lint", "--strict", str(chart))
    assert code == 0, text
    assert not re.search(r"\[(WARNING|ERROR)\]", text), text


@pytest.mark.proof
@pytest.mark.parametrize(
    "wrong",
    [
        "replica=3",
        "gateway.replcas=3",
        "replicas=many",
        "image=",
        "repository.digest=latest",
        "gpu.product=NVIDIA-L40S",
        "startup.failureThreshold=null",
        "name=Not_A_Name",
    ],
)
def test_helm_refuses_wrong_values(wrong: str, builds: dict[str, Path], tmp_path: Path) -> None:
    chart = write(files_of(builds["cpu"], "helm"), tmp_path)
    code, text = said(program("helm"), "template", "r", str(chart), "--set", wrong)
    assert code != 0
    assert "schema" in text or "null" in text


@pytest.mark.parametrize("shape", SHAPES)
def test_values_keep_their_schema_and_are_all_used(shape: str, builds: dict[str, Path]) -> None:
    """Without helm: what it would look at first."""
    jsonschema = pytest.importorskip("jsonschema")
    files = files_of(builds[shape], "helm")
    values, schema = yaml.safe_load(files["values.yaml"]), json.loads(files["values.schema.json"])
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(values)
    for wrong in ({"replica": 2}, {"gateway": {**values["gateway"], "imagee": "x"}}):
        with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
            jsonschema.Draft7Validator(schema).validate(values | wrong)
    with pytest.raises(jsonschema.ValidationError, match="None is not of type"):
        jsonschema.Draft7Validator(schema).validate(values | {"image": None})
    templates = "".join(text for path, text in files.items() if path.startswith("templates/"))
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    known = set(_leaves(values))
    assert used <= known, "a template asks for a value that is not there"
    assert known <= used, "a value changes nothing"


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found
