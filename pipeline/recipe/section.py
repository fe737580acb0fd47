"""What every part of the recipe is made of."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

_ATTRIBUTE = re.compile(r" {4}(\w+): (.+)")


def _whole_number(value: object) -> object:
    # Python's True equals 1 and 64.0 equals 64, which is all that Literal asks.
    if isinstance(value, bool | float):
        msg = f"{value} is not a whole number; write it without quotes, point or exponent"
        raise ValueError(msg)
    return value


def _file_name(value: str) -> str:
    if "\0" in value:
        msg = "no file name has a NUL character; remove it"
        raise ValueError(msg)
    return value


def _limit(value: object) -> object:
    # Said here, because of a union pydantic names each member and what is wrong with it.
    if value is None or value == "auto":
        return value
    if isinstance(value, str) and (share := percent(value)):
        msg = f"write {share}, not {value!r}: shares are numbers here"
        raise ValueError(msg)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{value!r} is not a limit: write a number, auto, or null for none"
        raise ValueError(msg)
    if not math.isfinite(value) or value < 0:
        msg = f"{value} is no limit: write a finite number from 0 on, auto, or null for none"
        raise ValueError(msg)
    return value


def _share_limit(value: object) -> object:
    value = _limit(value)
    if hint := over_one(value):
        msg = f"{value:g} is more than 1: {hint}"
        raise ValueError(msg)
    return value


def percent(text: str) -> str | None:
    """Returns the share that a text such as ``2 %`` stands for, ``0.02``; None for another text."""
    found = _PERCENT.fullmatch(text)
    return f"{float(found[1]) / 100:g}" if found else None


def over_one(value: object) -> str | None:
    """Says what to write for a share that is more than all; None for one that is not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 1:
        return None
    return f"write {value / 100:g} for {value:g} %" if value <= 100 else "1 is all of it"


_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%\s*")

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
# For a Literal of numbers.
Whole = BeforeValidator(_whole_number)
Auto = Literal["auto"]
"""A limit that is chosen by what is known of the model."""
Limit = Annotated[
    Annotated[float, Field(ge=0.0)] | Auto | None,
    BeforeValidator(_limit),
]
"""A number that must not be passed; None sets no limit."""
ShareLimit = Annotated[
    Annotated[float, Field(ge=0.0, le=1.0)] | Auto | None, BeforeValidator(_share_limit)
]
"""The same of a share, of which 1 is all."""


@dataclass(frozen=True)
class NamesFile:
    """Marks a text that is the path of a file or a folder."""


ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]+$"
"""Text without characters that end a line or move a terminal's cursor."""
FileName = Annotated[str, Field(min_length=1), AfterValidator(_file_name), NamesFile()]


@dataclass(frozen=True)
class Unit:
    """What a number of the recipe counts, for the documentation.

    Attributes:
        name: In words, such as ``tokens``.
    """

    name: str


@dataclass(frozen=True, init=False)
class ReadBy:
    """Names the compile targets that read a key or a section; without it every target does.

    Args:
        target: A target's name in the recipe.
        more: Names of other targets that read it too.

    Attributes:
        targets: All of them.
    """

    targets: tuple[str, ...]

    def __init__(self, target: str, *more: str) -> None:
        object.__setattr__(self, "targets", (target, *more))


class Section(BaseModel):
    """A part of the recipe: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        # A key with nothing below it is null in YAML; where a section has defaults they are meant.
        if not isinstance(values, dict):
            return values
        defaulted = {
            name for name, field in cls.model_fields.items() if isinstance(field.default, Section)
        }
        return {k: v for k, v in values.items() if v is not None or k not in defaulted}

    def read_by(self, target: str) -> dict[str, Any]:
        """Returns the keys that a target reads, as JSON values: all that are not others' own."""
        others = {
            name
            for name, field in type(self).model_fields.items()
            if any(
                isinstance(mark, ReadBy) and target not in mark.targets for mark in field.metadata
            )
        }
        return self.model_dump(mode="json", exclude=others)


def docstring(model: type[Section]) -> str:
    """Returns a model's docstring without its indentation."""
    return inspect.cleandoc(model.__doc__ or "")


def attributes(model: type[Section]) -> dict[str, str]:
    """Reads the ``Attributes`` section of a model's docstring, by field name."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring(model).partition("\nAttributes:\n")[2].splitlines():
        if match := _ATTRIBUTE.fullmatch(line):
            name, found[match[1]] = match[1], match[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return found


def section_of(field: FieldInfo) -> type[Section] | None:
    """Returns the model of the keys below a field; None for a field with a value of its own."""
    return None if get_origin(field.annotation) is list else _model_in(field)


def elements_of(field: FieldInfo) -> type[Section] | None:
    """Returns the model of the keys of each element of a list; None for any other field."""
    return _model_in(field) if get_origin(field.annotation) is list else None


def _model_in(field: FieldInfo) -> type[Section] | None:
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
