"""The recipe's documentation, made of its models: a JSON schema and a page of all keys.

What a key means is in the ``Attributes`` section of its model's docstring; its unit and the targets
that read it are :class:`~pipeline.recipe.section.Unit` and
:class:`~pipeline.recipe.section.ReadBy` beside its type. ``docs/recipe.md`` and
``docs/recipe.schema.json`` are written by ``make docs``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import (
    ReadBy,
    Section,
    Unit,
    attributes,
    docstring,
    elements_of,
    section_of,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "A recipe of trtllm-pipeline"

# What docstrings call by Python's names and YAML by others.
_YAML_NAMES = {"None": "null", "True": "true", "False": "false"}
# Keys that a page beside this one tells more of, by its place.
_MORE = {
    "evaluate.tasks": "tasks.md",
    "serve.guided_decoding": "features.md#guided-decoding-on-the-demo-model",
    "serve.kv_cache_host_memory": "features.md#kv-cache-on-the-host",
    "serve.cuda_graphs": "features.md#cuda-graphs",
    "serve.lora_adapters": "features.md#lora-adapters",
    "serve.draft_repository": "features.md#draft-target-speculation",
    "compile.tensorrt.draft": "features.md#draft-target-speculation",
    "compile.tensorrt.lookahead": "features.md#lookahead-decoding",
    "compile.tensorrt.lora": "features.md#lora-adapters",
}
_PAGE_HEAD = """\
# The recipe

Every key of a recipe, written by `make docs` from the models that read it. An editor gets the same
from [recipe.schema.json](recipe.schema.json), which the first line of the files in
[configs/](../configs) names. `trtllm-pipeline schema` prints the schema, and with `--markdown` this
page.

Unknown keys are refused, and so are values of another type: `"64"` is not a number. All mistakes of
a recipe are told at once, each with its line and column.

Relative paths begin at the folder of the recipe. `~`, `$NAME` and `${NAME}` are expanded; `$$` is a
dollar. In this version a file that is not there but in the current directory is taken, with a
notice.

Any key can be overridden on the command line by its dotted name, such as
`--set compile.max_seq_len=256`. Relative paths of `--set` begin in the current directory. An empty
value gives a key its default back (`--set model.dtype=`); an empty text is written
`--set 'KEY=""'`, and null is `--set KEY=null`. A `--set quantize.format` that is a precision, such
as `float16`, wins over the `model.dtype` of the file.

Rules between keys, such as `max_input_len` within `max_seq_len`, are checked when the recipe is
read, and what depends on the model as well by `trtllm-pipeline plan`. What the keys of features
do on either target, such as guided decoding and LoRA adapters, is in [features.md](features.md).
"""
_TABLE_HEAD = """\
| key | type | default | unit | meaning | read by |
|---|---|---|---|---|---|
"""

# A table's cell has no room for more; the schema lists all of them.
MOST_CHOICES = 20

Mark = TypeVar("Mark", Unit, ReadBy)


@dataclass(frozen=True)
class Key:
    """One key of the recipe.

    Attributes:
        name: Dotted, as ``--set`` takes it.
        parent: The model that has it.
        section: The model of the keys below it; None where it has a value of its own.
        elements: The model of the keys of each element, where its value is a list of such.
        meaning: What it does, in sentences; empty where the model's docstring leaves it out.
        schema: Its JSON schema.
        required: Whether it must be given where its section is.
        default: The value that it has where it is left out; None where it is required or a section.
        unit: What the number counts; empty where it counts nothing.
        targets: The targets that read it; empty where every target does.
    """

    name: str
    parent: type[Section]
    section: type[Section] | None
    elements: type[Section] | None
    meaning: str
    schema: Mapping[str, Any]
    required: bool
    default: Any
    unit: str
    targets: tuple[str, ...]

    @property
    def description(self) -> str:
        """Meaning, unit and targets as plain text."""
        unit = f"Unit: {self.unit}." if self.unit else ""
        readers = ""
        if self.targets:
            kind = "target" if len(self.targets) == 1 else "targets"
            readers = f"Read by the {' and '.join(self.targets)} {kind} only."
        return " ".join(text for text in (self.meaning, unit, readers) if text).replace("``", "`")


def recipe_keys() -> list[Key]:
    """Lists every key in the order of the models; a section comes before its keys."""
    return list(_keys(Recipe, "", (), _plain_schema()))


def element_keys() -> list[Key]:
    """Lists the keys of the elements of lists, which no dotted name reaches."""
    schema = _plain_schema()
    return [
        below
        for key in recipe_keys()
        if key.elements
        for below in _keys(key.elements, f"{key.name}[]", key.targets, schema)
    ]


def recipe_schema() -> dict[str, Any]:
    """Builds the JSON schema of a recipe, with a description of every key.

    It refuses unknown keys, wrong types and values out of range. Rules between keys are left to
    :func:`pipeline.recipe.file.load_recipe`.
    """
    schema = _plain_schema()
    keys = [*recipe_keys(), *element_keys()]
    for _, model in _sections(keys):
        definition = _definition(schema, model)
        definition["description"] = summary(model).replace("``", "`")
        del definition["title"]
    for key in keys:
        shown = _definition(schema, key.parent)["properties"][key.name.rpartition(".")[2]]
        shown.pop("title", None)
        shown["description"] = key.description
        if key.section and "$ref" in shown and not key.required:
            # A key with nothing below it is null in YAML, and means the section's defaults.
            shown["anyOf"] = [{"$ref": shown.pop("$ref")}, {"type": "null"}]
            del shown["default"]
    return {"$schema": DIALECT, "title": TITLE, **schema}


def schema_text() -> str:
    """Writes the schema as ``docs/recipe.schema.json`` has it."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def page_text() -> str:
    """Writes ``docs/recipe.md``: a table of the keys of each section."""
    keys = [*recipe_keys(), *element_keys()]
    parts = [_PAGE_HEAD]
    for name, model in _sections(keys):
        heading = f"## {name}\n\n{_markdown(summary(model))}\n\n" if name else ""
        rows = (_row(key) for key in keys if key.parent is model)
        parts.append(heading + _TABLE_HEAD + "".join(rows))
    return "\n".join(parts)


def summary(model: type[Section]) -> str:
    """Takes what a model's docstring says before its attributes, as one paragraph."""
    return _in_yaml(" ".join(docstring(model).partition("\nAttributes:\n")[0].split()))


def _keys(
    model: type[Section], place: str, targets: tuple[str, ...], schema: Mapping[str, Any]
) -> Iterator[Key]:
    meanings, properties = attributes(model), _definition(schema, model)["properties"]
    for field_name, field in model.model_fields.items():
        shown = field.alias or field_name
        section, required = section_of(field), field.is_required()
        own, unit = _mark(field, ReadBy), _mark(field, Unit)
        key = Key(
            name=f"{place}.{shown}" if place else shown,
            parent=model,
            section=section,
            elements=elements_of(field),
            meaning=_in_yaml(meanings.get(field_name, "")),
            schema=properties[shown],
            required=required,
            default=None if required or section else field.default,
            unit=unit.name if unit else "",
            targets=own.targets if own else targets,
        )
        yield key
        if section:
            yield from _keys(section, key.name, key.targets, schema)


def _sections(keys: Iterable[Key]) -> Iterator[tuple[str, type[Section]]]:
    yield "", Recipe
    for key in keys:
        if model := key.section or key.elements:
            yield key.name, model


def _row(key: Key) -> str:
    name = f"`{key.name.rpartition('.')[2]}`"
    if key.section:
        kind, default = f"[section](#{key.name.replace('.', '')})", "absent"
        if not _takes_null(key.schema):
            default = "its own defaults"
    elif key.elements:
        kind, default = f"list of [sections](#{key.name.replace('.', '')})", "`[]`"
    else:
        kind, default = _type_words(key.schema), f"`{json.dumps(key.default)}`"
    meaning = _markdown(key.meaning)
    if key.name in _MORE:
        meaning += f" [More]({_MORE[key.name]})."
    cells = (
        name,
        kind,
        "required" if key.required else default,
        key.unit,
        meaning,
        ", ".join(key.targets) or "every target",
    )
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _type_words(schema: Mapping[str, Any]) -> str:
    """Says in words which values a JSON schema takes."""
    if "anyOf" in schema:
        return " or ".join(_type_words(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        if len(choices) > MOST_CHOICES:
            return f"name, such as `{choices[0]}`"
        return ", ".join(f"`{choice}`" for choice in choices)
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list, each a {_type_words(schema['items'])}"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _range_words(schema)
        case "null":
            return "`null`"
        case kind:
            return {"string": "text"}[kind]


def _range_words(schema: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in schema:
        low = f" above {schema['exclusiveMinimum']:g}"
        return f"{low}, at most {schema['maximum']:g}" if "maximum" in schema else low
    if "maximum" in schema:
        return f" from {schema['minimum']:g} to {schema['maximum']:g}"
    return f" of at least {schema['minimum']:g}" if "minimum" in schema else ""


def _takes_null(schema: Mapping[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


def _plain_schema() -> dict[str, Any]:
    return Recipe.model_json_schema(by_alias=True)


def _definition(schema: Mapping[str, Any], model: type[Section]) -> Any:
    return schema if model is Recipe else schema["$defs"][model.__name__]


def _mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def _in_yaml(text: str) -> str:
    names = "|".join(_YAML_NAMES)
    return re.sub(rf"\b({names})\b", lambda match: f"``{_YAML_NAMES[match[1]]}``", text)


def _markdown(text: str) -> str:
    return text.replace("``", "`")
