"""Options that several commands share, declared once as a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from pipeline.cli.options import refuse_impossible


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turns each parameter of a command that is a dataclass into one option per field.

    Typer reads options from a signature, so the one it is shown has the fields in place of the
    dataclass. Paths that no command can use are refused before the command begins.

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
        for value in values.values():
            for path in value if isinstance(value, list) else (value,):
                if isinstance(path, Path):
                    refuse_impossible(path)
        made = {
            name: group(**{field.name: values.pop(field.name) for field in _fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    shown = [parameter for name, parameter in parameters.items() if name not in groups]
    shown += [_parameter(group, field) for group in groups.values() for field in _fields(group)]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]
    vars(call)["__signature__"] = inspect.Signature(keyword_only)
    return call


def _fields(group: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(group)


def _parameter(group: Any, field: dataclasses.Field[Any]) -> inspect.Parameter:
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=get_type_hints(group, include_extras=True)[field.name],
    )
