"""``--set``: changes to what a recipe's file says, before it is validated."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from pipeline.errors import Mistake, UsageError
from pipeline.formats import FORMATS, canonical_format
from pipeline.recipe.places import Place
from pipeline.recipe.tree import field_at

FORMAT_KEY, DTYPE_KEY = "quantize.format", "model.dtype"


def apply_overrides(
    data: dict[str, Any],
    overrides: Sequence[str],
    places: dict[str, Place],
    parse: Callable[[str], Any],
) -> tuple[list[tuple[Place, Mistake]], list[str]]:
    """Changes the data of a recipe, and where its keys are from, as ``--set`` says.

    An empty value takes a key out, so that its default counts. A format that is a precision takes
    the file's ``model.dtype`` out where the two contradict.

    Args:
        data: The file's, changed in place.
        overrides: ``a.b=value``, in their order; values are YAML.
        places: Where keys were set, changed in place.
        parse: Reads a value; raises yaml.YAMLError.

    Returns:
        What is wrong with them, and notices for the user.
    """
    mistakes = []
    for index, override in enumerate(overrides):
        place = Place.option(override, index)
        try:
            key = _apply(data, override, parse)
        except UsageError as error:
            mistake = Mistake(error.what, error.where, None, error.why, error.fix)
            mistakes.append((place, mistake))
            continue
        for stale in [name for name in places if name.startswith(f"{key}.")]:
            del places[stale]
        places[key] = place
    return mistakes, list(_give_way(data, places))


def _apply(data: dict[str, Any], override: str, parse: Callable[[str], Any]) -> str:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(
            "not an assignment",
            where=f"--set {override}",
            fix="Write --set section.key=value, for example --set compile.max_batch_size=8",
        )
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise UsageError(
            "the value is not valid YAML",
            where=f"--set {override}",
            why=problem(error),
            fix="Close its brackets and quotes, and quote it for the shell",
        ) from error
    # A key that does not exist stays, so that it is told as any other that does not.
    unset = not text.strip() and field_at(parts) is not None
    target = data
    for part in parts[:-1]:
        child = target.get(part)
        if child is None and unset:
            return ".".join(parts)
        if not isinstance(child, dict | None):
            raise UsageError(
                f"{part} is not a section",
                where=f"--set {override}",
                why=f"The recipe says {part}: {reprlib.repr(child)}",
                fix="Name the key with the sections that enclose it, such as compile.max_seq_len",
            )
        # A copy, because a YAML alias makes one object of two sections.
        section = dict(child or {})
        target[part] = section
        target = section
    if unset:
        target.pop(parts[-1], None)
    else:
        target[parts[-1]] = value
    return ".".join(parts)


def problem(error: yaml.YAMLError) -> str:
    """Says what is wrong with YAML, without the place and the lines around it."""
    return str(getattr(error, "problem", None) or error)


def _give_way(data: dict[str, Any], places: dict[str, Place]) -> Sequence[str]:
    """Takes the file's dtype out where a format of the command line is another one."""
    model, quantize = data.get("model"), data.get("quantize")
    if not isinstance(model, dict) or not isinstance(quantize, dict):
        return ()
    asked = places.get(FORMAT_KEY) or places.get("quantize")
    said = places.get(DTYPE_KEY) or places.get("model")
    if not (asked and asked.override and said and not said.override):
        return ()
    try:
        name = canonical_format(quantize.get("format"))
    except ValueError:
        return ()  # validation says so
    dtype = next((row.dtype for row in FORMATS.values() if row.name == name), None)
    if dtype is None or model.get("dtype") in (None, dtype):
        return ()
    data["model"] = {key: value for key, value in model.items() if key != "dtype"}
    places[DTYPE_KEY] = asked
    return (f"{asked.line} wins over {DTYPE_KEY}: {model['dtype']} of {said.line}",)
