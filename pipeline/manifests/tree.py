"""Objects as trees, and the two texts that a tree is written as: a manifest, and a Helm template.

A tree is made of dicts, lists and scalars, as YAML has them, and of the markers below. What is
written as a manifest and what ``helm template`` makes of the other text with the chart's own values
are the same object.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

WIDTH = 100
_OPENS = re.compile(r"\{\{")


@dataclass(frozen=True)
class Chosen:
    """A value that the operator may choose: in a chart it stays an expression.

    Attributes:
        value: What was chosen.
        expression: Helm's, such as ``.Values.replicas``.
    """

    value: Any
    expression: str


@dataclass(frozen=True)
class Words:
    """A text with chosen parts, which have neither quotes nor backslashes.

    Attributes:
        parts: Texts and :class:`Chosen`.
    """

    parts: tuple[str | Chosen, ...]

    @property
    def value(self) -> str:
        """The text with what was chosen."""
        return "".join(str(p.value) if isinstance(p, Chosen) else p for p in self.parts)

    @property
    def template(self) -> str:
        """The text with expressions."""
        return "".join(
            f"{{{{ {p.expression} }}}}" if isinstance(p, Chosen) else escaped(p) for p in self.parts
        )


@dataclass(frozen=True)
class Why:
    """A value of a dict, or an element of a list, with the reason for it.

    Attributes:
        value: A tree.
        reason: A comment above it; lines are broken where they are too long, and where it has
            line breaks of its own.
    """

    value: Any
    reason: str


@dataclass(frozen=True)
class When:
    """A value of a dict, or an element of a list, that is there under a condition alone.

    Attributes:
        holds: Whether it is there.
        expression: Helm's condition.
        value: A tree, which may be a :class:`Why`.
    """

    holds: bool
    expression: str
    value: Any


@dataclass(frozen=True)
class Raw:
    """A text of several lines, such as a script.

    Attributes:
        text: The text; it ends with a line break.
    """

    text: str


def words(*parts: str | Chosen | Words) -> Words:
    """Joins texts and chosen values to one text."""
    flat: list[str | Chosen] = []
    for part in parts:
        flat += part.parts if isinstance(part, Words) else [part]
    return Words(tuple(flat))


def escaped(text: str) -> str:
    """Writes a text so that Helm leaves it as it is."""
    return _OPENS.sub('{{ "{{" }}', text)


def plain(tree: Any) -> Any:
    """Returns the object that a tree stands for, without markers."""
    if isinstance(tree, When):
        return plain(tree.value)
    if isinstance(tree, Why | Chosen):
        return plain(tree.value)
    if isinstance(tree, Words):
        return tree.value
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items() if _there(value)}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree if _there(value)]
    return tree


def _there(value: Any) -> bool:
    return value.holds if isinstance(value, When) else True


def manifest(tree: Mapping[str, Any]) -> str:
    """Writes a tree as a YAML document with comments."""
    return "\n".join(_Writer(chart=False).mapping(tree, 0)) + "\n"


def template(tree: Mapping[str, Any]) -> str:
    """Writes a tree as a template of a Helm chart."""
    return "\n".join(_Writer(chart=True).mapping(tree, 0)) + "\n"


def comment(reason: str, indent: int = 0) -> Iterator[str]:
    """Yields the lines of a comment."""
    lead = " " * indent + "# "
    for line in reason.split("\n"):
        yield from textwrap.wrap(
            line,
            WIDTH,
            initial_indent=lead,
            subsequent_indent=lead,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [lead.rstrip()]


def scalar(value: Any) -> str:
    """Writes a scalar so that YAML reads it as it is; text is quoted where it has to be."""
    if not isinstance(value, str):
        return json.dumps(value)
    if value and value.isprintable() and len(value) < WIDTH and _reads_as(value):
        return value
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def _reads_as(text: str) -> bool:
    # Only as a key's value and in a list; there a plain text may not hold ": " or " #" either,
    # which reading it back in such a place shows.
    try:
        return bool(yaml.safe_load(f"- {text}\n") == [text]) and bool(
            yaml.safe_load(f"k: {text}\n") == {"k": text}
        )
    except yaml.YAMLError:
        return False


class _Writer:
    def __init__(self, *, chart: bool) -> None:
        self.chart = chart

    def mapping(self, tree: Mapping[str, Any], indent: int) -> Iterator[str]:
        for key, value in tree.items():
            yield from self.entry(f"{scalar(key)}:", value, indent, step=2)

    def sequence(self, tree: Sequence[Any], indent: int) -> Iterator[str]:
        for value in tree:
            yield from self.entry("-", value, indent, step=2)

    def entry(self, lead: str, value: Any, indent: int, step: int) -> Iterator[str]:
        """The lines of one key and its value, or of one element of a list."""
        space = " " * indent
        if isinstance(value, When):
            if self.chart:
                yield f"{space}{{{{- if {value.expression} }}}}"
                yield from self.entry(lead, value.value, indent, step)
                yield f"{space}{{{{- end }}}}"
            elif value.holds:
                yield from self.entry(lead, value.value, indent, step)
            return
        if isinstance(value, Why):
            reasons = comment(value.reason, indent)
            yield from map(escaped, reasons) if self.chart else reasons
            yield from self.entry(lead, value.value, indent, step)
            return
        if isinstance(value, Raw):
            yield f"{space}{lead} |"
            for line in value.text.rstrip("\n").split("\n"):
                shown = escaped(line) if self.chart else line
                yield f"{space}{' ' * step}{shown}" if line else ""
            return
        if isinstance(value, Chosen) and self.chart:
            yield from self._expression(lead, value, space, indent + step)
            return
        if isinstance(value, Words) and self.chart:
            yield f'{space}{lead} "{value.template}"'
            return
        value = value.value if isinstance(value, Chosen | Words) else value
        if isinstance(value, Mapping) and value:
            inner = list(self.mapping(value, indent + step))
            yield from self._below(lead, inner, indent)
        elif isinstance(value, list | tuple) and value:
            inner = list(self.sequence(value, indent + step))
            yield from self._below(lead, inner, indent)
        else:
            empty = "{}" if isinstance(value, Mapping) else "[]"
            text = empty if isinstance(value, Mapping | list | tuple) else scalar(value)
            yield f"{space}{lead} {escaped(text) if self.chart else text}"

    def _below(self, lead: str, inner: list[str], indent: int) -> Iterator[str]:
        """What is under a key; the first line of an element stands beside its dash."""
        space = " " * indent
        first = inner[0].strip() if inner else ""
        if lead == "-" and not first.startswith(("#", "{{")):
            yield f"{space}- {first}"
            yield from inner[1:]
        elif lead == "-":
            yield f"{space}-"
            yield from inner
        else:
            yield f"{space}{lead}"
            yield from inner

    @staticmethod
    def _expression(lead: str, chosen: Chosen, space: str, indent: int) -> Iterator[str]:
        value, expression = chosen.value, chosen.expression
        if isinstance(value, Mapping | list | tuple):
            yield f"{space}{lead}"
            yield f"{' ' * indent}{{{{- toYaml {expression} | nindent {indent} }}}}"
        else:
            ending = " | quote" if isinstance(value, str) else ""
            yield f"{space}{lead} {{{{ {_printed(chosen)}{ending} }}}}"


def _printed(chosen: Chosen) -> str:
    """The expression of a scalar. Helm reads numbers as floats, and writes large ones as 1e+06."""
    whole = isinstance(chosen.value, int) and not isinstance(chosen.value, bool)
    return f"{chosen.expression} | int64" if whole else chosen.expression
