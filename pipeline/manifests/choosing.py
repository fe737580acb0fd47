"""Reads what an operator chose: a values file, ``--set``, and the options for the usual keys."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from pipeline.errors import Mistake, UsageError
from pipeline.manifests.values import PATTERNS, Values
from pipeline.recipe.places import Place, place_of, places_in
from pipeline.recipe.section import Section, section_of
from pipeline.recipe.tree import every_key, named_fields
from pipeline.store.files import read_named

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_FILE = "the values file"


def read_values(path: Path | None, overrides: Sequence[str], options: Mapping[str, Any]) -> Values:
    """Reads and validates what was chosen.

    Args:
        path: A YAML file of values; None for none.
        overrides: Each ``--set``, as ``key.below=value``; values are YAML. They count more than
            the file.
        options: Values of the command's own options by dotted key, None where one was not given.
            They count most.

    Raises:
        UsageError: The file cannot be read or is not YAML, or a key or a value is wrong;
            ``mistakes`` has all that was found, each with its place and a tip.
    """
    places: dict[str, Place] = {}
    data: dict[str, Any] = {}
    if path is not None:
        data, places = _from_file(path)
    for index, override in enumerate(overrides):
        key, separator, text = override.partition("=")
        if not separator or not all(key.strip().split(".")):
            raise UsageError(
                "not an assignment",
                where=f"--set {override}",
                fix="Write --set key=value, for example --set gateway.replicas=3",
            )
        _put(data, key.strip(), _value(text, override), f"--set {override}")
        places[key.strip()] = Place.option(override, index)
    for key, value in options.items():
        if value is not None:
            _put(data, key, value, key)
            places[key] = Place(key, f"--{_option(key)}", (1 << 31, 0))
    try:
        return Values.model_validate(data)
    except ValidationError as error:
        mistakes = [_mistake(details, path, places) for details in error.errors(include_url=False)]
        raise UsageError.of(mistakes) from error


def _option(key: str) -> str:
    return {"repository.storageClass": "storage-class", "gpu.product": "gpu-product"}.get(
        key, key.replace(".", "-")
    )


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, Place]]:
    text = read_named(path, _FILE, "Name a YAML file of values")
    try:
        tree, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(
            f"{_FILE} is not valid YAML",
            where=where,
            why=str(getattr(error, "problem", None) or error),
            fix="Correct the line",
        ) from error
    if not isinstance(data, dict | None):
        raise UsageError(
            f"{_FILE} is not a mapping of keys", where=str(path), fix="Write key: value"
        )
    return data or {}, places_in(tree, path)


def _value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            "the value is not valid YAML",
            where=f"--set {override}",
            why=str(getattr(error, "problem", None) or error),
            fix="Close its brackets and quotes, and quote it for the shell",
        ) from error


def _put(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    *above, last = key.split(".")
    for part in above:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"{part} has a value of its own", where=where, fix="Set it whole, or leave it out"
            )
        data = inner
    data[last] = value


def _mistake(details: ErrorDetails, path: Path | None, places: Mapping[str, Place]) -> Mistake:
    key = _key(details["loc"])
    name = ".".join(map(str, key))
    place = place_of(name, places)
    where = place.column if place else str(path) if path else None
    if details["type"] == "extra_forbidden":
        return Mistake(f"there is no value {name}", where, name, None, _tip(key))
    said = details["msg"]
    value = reprlib.repr(details["input"])
    if details["type"] == "string_pattern_mismatch":
        said = f"{value} is not {PATTERNS[details['ctx']['pattern']]}"
    elif details["type"] in ("model_type", "dict_type"):
        said = f"{value} stands where keys of their own belong"
    elif details["type"] == "string_type":
        said, tip = f"{value} is not text", "Put it in quotes"
        return Mistake(f"{name} is wrong", where, name, said, tip)
    else:
        said = f"{value} is not allowed: {said[0].lower()}{said[1:]}"
    meaning = _meaning(key)
    return Mistake(f"{name} is wrong", where, name, said, meaning)


def _key(location: Sequence[int | str]) -> list[int | str]:
    """A location without the members of unions, which pydantic adds to it."""
    kept: list[int | str] = []
    section: type[Section] | None = Values
    for part in location:
        if section is None:
            kept += [part] if isinstance(part, int) else []
            continue
        kept.append(part)
        field = named_fields(section).get(str(part))
        section = section_of(field) if field else None
    return kept


def _around(key: Sequence[int | str]) -> type[Section] | None:
    section: type[Section] | None = Values
    for part in key[:-1]:
        field = named_fields(section).get(str(part)) if section else None
        section = section_of(field) if field else None
    return section


def _tip(key: Sequence[int | str]) -> str:
    """What was meant: the nearest key beside it, or one of the same name elsewhere."""
    section, name = _around(key), str(key[-1])
    beside = named_fields(section) if section else {}
    prefix = "".join(f"{part}." for part in key[:-1])
    squeezed = {_squeezed(known): known for known in beside}
    if close := difflib.get_close_matches(_squeezed(name), squeezed, n=1):
        return f"Did you mean {prefix}{squeezed[close[0]]}?"
    if elsewhere := list(_elsewhere(name)):
        return f"Did you mean {' or '.join(elsewhere)}?"
    return f"Known here: {', '.join(beside)}" if beside else "Leave it out"


def _elsewhere(name: str) -> Iterator[str]:
    for known in every_key(Values):
        if (
            difflib.SequenceMatcher(
                None, _squeezed(known.rpartition(".")[2]), _squeezed(name)
            ).ratio()
            > 0.8
        ):
            yield known


def _squeezed(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _meaning(key: Sequence[int | str]) -> str | None:
    from pipeline.manifests.values import documented

    names = [part for part in key if isinstance(part, str)]
    section = _around(names)
    meaning = documented(section).get(names[-1]) if section and names else None
    return f"{names[-1]}: {meaning}" if meaning else None
