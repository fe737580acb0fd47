"""Says in plain words what is wrong with the values of a recipe, each with its place and a tip."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import Mistake
from pipeline.formats import suggested_format
from pipeline.recipe.places import Place, place_of
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import ONE_LINE, Section, over_one, percent
from pipeline.recipe.tree import below, every_key, named_fields

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Options of TensorRT-LLM's quantize.py (examples/quantization) that have another name here.
OTHER_NAMES = {
    "awq_block_size": "quantize.group_size",
    "calib_dataset": "quantize.calibration.text",
    "calib_max_seq_length": "quantize.calibration.sequence_length",
    "calib_size": "quantize.calibration.samples",
    "kv_cache_dtype": "quantize.kv_cache",
    "model_dir": "model.source",
    "pp_size": "compile.pipeline_parallel",
    "qformat": "quantize.format",
    "tp_size": "compile.tensor_parallel",
}
# Several sections have a key of such a name; more of them than these are no tip.
MOST_TIPS = 3
NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Key = tuple[int | str, ...]


def mistakes_of(
    error: ValidationError, path: Path, places: Mapping[str, Place]
) -> list[tuple[Place, Mistake]]:
    """Turns everything that pydantic found into mistakes.

    A key that is missing because it was misspelt is told once, as the misspelt one.

    Args:
        error: What validation raised.
        path: The recipe's file.
        places: Where its keys were set.

    Returns:
        Each with its place, which sorts them.
    """
    grouped: dict[Key, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        grouped.setdefault(_key(details["loc"]), []).append(details)
    meant = {
        (*key[:-1], near)
        for key, (first, *_) in grouped.items()
        if first["type"] == "extra_forbidden" and (near := _near(key))
    }
    found = []
    for key, problems in grouped.items():
        if problems[0]["type"] == "missing" and key in meant:
            continue
        name = ".".join(map(str, key))
        place = place_of(name, places) or Place(str(path), str(path), (0, 0))
        what, why, fix = _words(key, name, problems)
        found.append((place, Mistake(what, place.column, name or None, why, fix)))
    return found


def _words(key: Key, name: str, problems: list[ErrorDetails]) -> tuple[str, str | None, str | None]:
    """What, why and fix of all that is wrong with one key."""
    first = problems[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {name}", None, _suggestion(key)
    if kind == "missing":
        section = ".".join(map(str, key[:-1]))
        where = f"below {section}" if section else "at the left margin"
        return f"missing key: {name}", None, f"Write {key[-1]} and its value {where}"
    what = f"{name or 'the recipe'} is wrong"
    if kind == "value_error":
        # The rule's own message names the remedy.
        return what, first["msg"].removeprefix("Value error, "), None
    fix = f"Set {name} to a value that is allowed" if name else "Correct the recipe"
    if kind == "model_type":
        why = "it must be a section with keys of its own"
        return what, why, f"Write the keys of {name} below it, indented"
    field = _field(key)
    if name and field is not None and isinstance(field.default, int | float | str):
        fix += f", such as its default, {_yaml(field.default)}"
    choices = list(_choices(field)) if field is not None else []
    if value is None:
        return what, "it is empty", f"Write a value, or leave {key[-1]} out"
    if choices and (kind in ("literal_error", "bool_type") or len(problems) > 1):
        meant = _meant(value, choices) or _choose(str(key[-1]), choices)
        return what, _not_a_choice(value, choices), meant
    if kind == "string_type":
        return what, f"{reprlib.repr(value)} is not text", f"Put the value of {name} in quotes"
    if kind == "string_pattern_mismatch" and context["pattern"] == NAME_PATTERN:
        why = "it has letters, digits, '.', '_' and '-', and begins with a letter or a digit"
        return what, f"{reprlib.repr(value)} is no such name: {why}", fix
    if kind == "string_pattern_mismatch" and context["pattern"] == ONE_LINE:
        return what, f"{reprlib.repr(value)} has a character that cannot be printed", fix
    return what, _plain(first), _number(kind, value, context) or fix


def _plain(details: ErrorDetails) -> str:
    """Pydantic's own message, about the value that it does not name."""
    text = details["msg"].replace("after validation, not", "and has")
    for kind, words in (("int", "a whole number"), ("float", "a number"), ("list", "a list")):
        if details["type"] in (f"{kind}_type", f"{kind}_from_float"):
            return f"{reprlib.repr(details['input'])} is not {words}"
    for beginning in ("Input should", "Value should"):
        if text.startswith(beginning):
            return f"{reprlib.repr(details['input'])} is not allowed: it should{text[12:]}"
    return text


def _number(kind: str, value: object, context: Mapping[str, Any]) -> str | None:
    """A remedy for a number that was written in another way."""
    if isinstance(value, str) and (share := percent(value)):
        return f"Write {share}: shares are numbers here"
    if kind == "less_than_equal" and context["le"] == 1 and (hint := over_one(value)):
        return hint[0].upper() + hint[1:]
    if isinstance(value, str) and _is_number(value):
        return f"Write {value.strip()} without quotes"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_a_choice(value: object, choices: list[object]) -> str:
    shown = [_yaml(choice) for choice in choices]
    if len(shown) == 1:
        return f"it must be {shown[0]}, not {value!r}"
    listed = f"{', '.join(shown[:-1])} or {shown[-1]}"
    if None in choices or True in choices:
        return f"{value!r} is not allowed: it is {listed}"
    return f"{value!r} is not one of {listed}"


def _meant(value: object, choices: list[object]) -> str | None:
    """The choice that a value stands for."""
    if not isinstance(value, str):
        return None
    names = [choice for choice in choices if isinstance(choice, str)]
    if value.strip() in {str(choice) for choice in choices if isinstance(choice, int)}:
        return f"Write {value.strip()} without quotes"
    known = suggested_format(value)
    lowered = value.strip().lower().replace("-", "_")
    close = [known] if known in names else difflib.get_close_matches(lowered, names, n=1)
    return f"Did you mean {close[0]}?" if close else None


def _choose(name: str, choices: list[object]) -> str:
    return f"Write {name}: {_yaml(choices[0])}" if len(choices) == 1 else "Choose one of these"


def _yaml(choice: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[choice] if choice is None or isinstance(choice, bool) else repr(choice)


def _choices(field: FieldInfo) -> Iterator[object]:
    """All values that a field takes; nothing where they are not a few."""
    found = list(_members(field.annotation))
    return iter(() if any(member is ... for member in found) else found)


def _members(annotation: object) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif annotation is bool:
        yield from (True, False)
    elif annotation is NoneType:
        yield None
    elif get_args(annotation) and get_origin(annotation) is not list:
        for inner in get_args(annotation):
            yield from _members(inner)
    else:
        yield ...


def _key(location: Key) -> Key:
    """A location without the members of a union, which pydantic adds to the key."""
    kept: list[int | str] = []
    section: type[Section] | None = Recipe
    for part in location:
        if isinstance(part, int):
            kept.append(part)
            continue
        if section is None:
            break
        kept.append(part)
        field = named_fields(section).get(part)
        section = below(field) if field else None
    return tuple(kept)


def _section_around(key: Key) -> type[Section] | None:
    """The section that has the last name of a key; None where it is in none."""
    section: type[Section] | None = Recipe
    for part in key[:-1]:
        if not isinstance(part, int):
            field = named_fields(section).get(part) if section else None
            section = below(field) if field else None
    return section


def _field(key: Key) -> FieldInfo | None:
    section = _section_around(key)
    return named_fields(section).get(str(key[-1])) if key and section else None


def _near(key: Key) -> str | None:
    """The key of the same section that a misspelt one is nearest to."""
    section = _section_around(key)
    close = difflib.get_close_matches(str(key[-1]), named_fields(section), n=1) if section else []
    return close[0] if close else None


def _word_of(name: str, key: str) -> bool:
    """Whether a name is, or nearly is, the first word of a key."""
    return bool(difflib.get_close_matches(name, [key.partition("_")[0]], cutoff=0.75))


def _suggestion(key: Key) -> str:
    name = str(key[-1])
    tree = list(every_key())
    elsewhere = [known for known in tree if known.rpartition(".")[2] == name]
    if name in OTHER_NAMES:
        elsewhere = [OTHER_NAMES[name]]
    if 0 < len(elsewhere) <= MOST_TIPS:
        return f"Did you mean {' or '.join(elsewhere)}?"
    if near := _near(key):
        return f"Did you mean {near}?"
    names: Iterable[str] = dict.fromkeys(known.rpartition(".")[2] for known in tree)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
        full = [known for known in tree if known.rpartition(".")[2] == close[0]]
        if len(full) <= MOST_TIPS:
            return f"Did you mean {' or '.join(full)}?"
    words = [known for known in tree if _word_of(name, known.rpartition(".")[2])]
    if 0 < len(words) <= MOST_TIPS:
        return f"Did you mean {' or '.join(words)}?"
    section = _section_around(key)
    return f"Known keys here: {', '.join(named_fields(section))}" if section else "Remove it"
