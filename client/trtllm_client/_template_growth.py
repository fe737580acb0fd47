"""What a call in a chat template would make longer than a value may be, found beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import chain
from typing import Any

_SIZED = ("batch", "round", "slice", "tojson")
_PADDED = ("ljust", "rjust", "center", "zfill", "expandtabs", "indent", "wordwrap")
# Filters that write no text; templates ask for the length of all messages for each of them.
_OF_VALUES = (
    *("abs", "attr", "count", "d", "default", "dictsort", "first", "float", "int"),
    *("items", "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr"),
    *("reverse", "select", "selectattr", "sort", "sum", "unique"),
)
_SPEC = re.compile(r"%[^a-zA-Z%]*|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_FROM_ARGUMENTS = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")

Check = Callable[[int], None]


def guarded(name: str, function: Callable[..., Any], check: Check) -> Callable[..., Any]:
    """Wraps a filter of Jinja so that the text it would write is measured first.

    Args:
        name: Of the filter.
        function: The filter.
        check: Refuses a length.
    """

    if name in _OF_VALUES:
        return function

    @wraps(function)
    def measured(*arguments: Any, **named: Any) -> Any:
        # Filters that ask for it have Jinja's environment or context in front.
        given = arguments[1:] if hasattr(function, "jinja_pass_arg") else arguments
        if name == "join" and given:
            given = (list(given[0]), *given[1:])
            arguments = (*arguments[: len(arguments) - len(given)], *given)
        check_size(given, check)
        separator = [*given[1:2], *(v for k, v in named.items() if k == "d")]
        if name == "join":
            grown("join", (separator or [""])[0], (given[0],), check)
        elif given:
            grown(name, given[0], (*given[1:], *named.values()), check)
        return function(*arguments, **named)

    return measured


def grown(name: str, subject: Any, arguments: tuple[Any, ...], check: Check) -> None:
    """Checks the length of what a method or a filter would return.

    Args:
        name: Of the method or the filter.
        subject: What it belongs to.
        arguments: What it is given.
        check: Refuses a length.
    """
    numbers = [value for value in arguments if isinstance(value, int)]
    if name in _SIZED:
        check(max(map(abs, numbers), default=0))
    elif name in _PADDED:
        text = str(subject)
        lines = 1 + text.count("\t" if name == "expandtabs" else "\n")
        check(len(text) + lines * max(numbers, default=0))
    elif name == "replace" and len(arguments) > 1:
        text, old, new = str(subject), str(arguments[0]), str(arguments[1])
        check(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple):
        items = arguments[0]
        check(len(str(subject)) * len(items) + sum(len(str(item)) for item in items))
    elif name in ("format", "format_map", "%"):
        form = str(subject)
        widths = (
            int(digits[:9]) for spec in _SPEC.findall(form) for digits in re.findall(r"\d+", spec)
        )
        check(sum(widths) + (max(numbers, default=0) if _FROM_ARGUMENTS.search(form) else 0))


def check_size(value: Any, check: Check) -> None:
    """Checks how long the text of a value would be, which may hold one list many times.

    Args:
        value: What is to be written.
        check: Refuses a length.
    """
    size = 0
    waiting = [value] if isinstance(value, list | tuple | Mapping) else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            waiting += chain(node.keys(), node.values())
        elif isinstance(node, list | tuple):
            waiting += node
        size += len(node) if isinstance(node, str) else 1
        check(size + len(waiting))
