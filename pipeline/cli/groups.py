"""Options that several commands share, declared once as a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turns each parameter of a command that is a dataclass into one option per field.

    A field that is a dataclass itself stands for the options of its own fields.

    Typer reads options from a signature, so the one it is shown has the fields in place of the
    dataclass.

    Args:
        command: The function; annotate the dataclass fields like Typer parameters.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = {name: _made(group, values) for name, group in groups.items()}
        command(**values, **made)

    shown = [parameter for name, parameter in parameters.items() if name not in groups]
    shown += [parameter for group in groups.values() for parameter in _parameters(group)]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]
    vars(call)["__signature__"] = inspect.Signature(keyword_only)
    return call


def _fields(group: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each field."""
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield field.name, hints[field.name], field.default


def _made(group: Any, values: dict[str, Any]) -> Any:
    """Takes the fields of a dataclass out of the values of options."""
    return group(
        **{
            name: _made(kind, values) if dataclasses.is_dataclass(kind) else values.pop(name)
            for name, kind, _ in _fields(group)
        }
    )


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    for name, kind, default in _fields(group):
        if dataclasses.is_dataclass(kind):
            yield from _parameters(kind)
        else:
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
