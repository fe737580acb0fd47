"""The same objects as a Helm chart, with the operator's values in values.yaml."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline._version import __version__
from pipeline.manifests.deployed import Deployed
from pipeline.manifests.objects.common import Document
from pipeline.manifests.objects.every import documents
from pipeline.manifests.readme import readme
from pipeline.manifests.tree import comment, manifest, scalar, template
from pipeline.manifests.values import Values, documented
from pipeline.recipe.section import Section, section_of
from pipeline.recipe.tree import named_fields

OLDEST_KUBERNETES = ">=1.30.0-0"
"""The first with preStop's sleep on by itself."""

_FIXED = {"gpu": "perNode"}
"""What decides which objects there are, so that a chart's values cannot change it any more."""


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes the chart: its templates, values.yaml, values.schema.json and how to use it."""
    found: dict[str, list[str]] = {}
    for document in documents(deployed):
        found.setdefault(f"templates/{document.path}.yaml", []).append(_template(document))
    return {
        "Chart.yaml": manifest(_about(deployed)),
        "values.yaml": "\n".join(_values(deployed)) + "\n",
        "values.schema.json": json.dumps(schema(deployed), indent=2) + "\n",
        **{path: "---\n".join(texts) for path, texts in found.items()},
        "templates/NOTES.txt": _notes(deployed),
        "README.md": readme(deployed, helm=True),
    }


def values_of(deployed: Deployed) -> dict[str, Any]:
    """Returns the chart's values, as values.yaml has them."""
    dumped = deployed.values.model_dump(mode="json", by_alias=True)
    return _without(dumped, _left_out(deployed))


def schema(deployed: Deployed) -> dict[str, Any]:
    """Returns the JSON schema of the chart's values: no other key, no null for what has a value."""
    whole = Values.model_json_schema(by_alias=True)
    made = _inlined(whole, whole.get("$defs", {}))
    made.pop("$defs", None)
    for left in _left_out(deployed):
        inner = made
        *above, last = left.split(".")
        for part in above:
            inner = inner["properties"][part]
        inner["properties"].pop(last, None)
    _strict(made, values_of(deployed), Values)
    # Helm hands it to a chart that is a part of another one.
    made["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **made}


def _left_out(deployed: Deployed) -> list[str]:
    # Rules and autoscalers are kinds of their own and no part of the chart.
    keys = ["autoscaling", "monitoring"]
    if deployed.layout.gpus:
        keys += [f"{section}.{key}" for section, key in _FIXED.items()]
    else:
        keys.append("gpu")
    if deployed.inputs.recipe is None:
        keys.append("build")
    return keys


def _without(values: dict[str, Any], left: list[str]) -> dict[str, Any]:
    made = copy.deepcopy(values)
    for key in left:
        inner = made
        *above, last = key.split(".")
        for part in above:
            inner = inner[part]
        inner.pop(last, None)
    return made


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references, titles and defaults."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    made = {}
    for key, value in node.items():
        if key == "properties":
            made[key] = {name: _inlined(inner, definitions) for name, inner in value.items()}
        elif key not in ("title", "default", "description", "$defs"):
            made[key] = _inlined(value, definitions)
    return made


def _strict(node: dict[str, Any], values: Mapping[str, Any], section: type[Section]) -> None:
    """Forbids null where the chart has a value, and says what each key means."""
    meanings = documented(section)
    node["required"] = sorted(key for key, value in values.items() if value is not None)
    for name, given in list(node["properties"].items()):
        value, inner = values.get(name), section_of(named_fields(section)[name])
        options = [option for option in given.get("anyOf", []) if option != {"type": "null"}]
        described = options[0] if options and value is not None else given
        node["properties"][name] = {"description": meanings[name], **described}
        if inner is not None:
            _strict(node["properties"][name], value or {}, inner)


def _about(deployed: Deployed) -> dict[str, Any]:
    return {
        "apiVersion": "v2",
        "name": deployed.name,
        "description": "Triton servers of one repository, and OpenAI gateways in front of them.",
        "type": "application",
        "version": __version__,
        "appVersion": str(deployed.values.repository.digest)[:12],
        "kubeVersion": OLDEST_KUBERNETES,
    }


def _values(deployed: Deployed) -> Iterator[str]:
    yield from comment(
        f"Values of {deployed.name}, filled in from its build. Other names are refused "
        "(values.schema.json)."
    )
    yield from _keys(Values, values_of(deployed), 0)


def _keys(section: type[Section], values: Mapping[str, Any], indent: int) -> Iterator[str]:
    meanings, space = documented(section), " " * indent
    for name, value in values.items():
        inner = section_of(named_fields(section)[name])
        if not indent:
            yield ""
        yield from comment(meanings[name], indent)
        if inner is not None:
            yield f"{space}{name}:"
            yield from _keys(inner, value, indent + 2)
        elif isinstance(value, dict | list):
            yield f"{space}{name}: {json.dumps(value)}"
        else:
            yield f"{space}{name}: {scalar(value)}"


def _template(document: Document) -> str:
    text = template(document.tree)
    if document.expression is None:
        return text
    return f"{{{{- if {document.expression} }}}}\n{text}{{{{- end }}}}\n"


def _notes(deployed: Deployed) -> str:
    return (
        "Servers load, and answer a canary prompt, before they get traffic:\n"
        "  kubectl rollout status --namespace {{ .Release.Namespace }} "
        f"{'leaderworkerset' if deployed.group else 'deployment'}/{{{{ .Values.name }}}}-server\n"
        "OpenAI's API:\n"
        "  kubectl port-forward --namespace {{ .Release.Namespace }} "
        "service/{{ .Values.name }} 8080:80\n"
        "  curl http://127.0.0.1:8080/v1/models\n"
        "{{- if not .Values.build.enabled }}\n"
        "There is no build Job: README.md says how a repository gets into the volume.\n"
        "{{- end }}\n"
        if deployed.inputs.recipe is not None
        else "README.md says how the repository gets into the volume.\n"
    )
