"""The Jinja environment of chat templates: what transformers' has, and limits.

The names, filters and tags are those of ``utils/chat_template_utils.py`` of transformers 4.57. A
template comes with a model or from a server, and neither is trusted: it runs in Jinja's immutable
sandbox, and what it may do is counted. The sandbox itself limits one ``range``; two of them, one in
the other, would run for hours.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from trtllm_client._template_growth import check_size, grown, guarded

try:
    from jinja2 import Template, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer
except ImportError as error:
    msg = (
        f"chat templates need jinja2 ({error}). Install it: pip install 'jinja2>=3.1', which is "
        "the extra [chat] of trtllm-client"
    )
    raise ImportError(msg, name="trtllm_client") from error

MAX_STEPS = 200_000
"""Rounds of loops and calls of macros, together."""

MAX_LENGTH = 2**24
"""Characters that are written, and characters or elements of one value."""

MAX_BITS = 2**16
"""Of a number."""

MAX_SECONDS = 60.0
"""Of a processor; looked at in each round of a loop. The longest conversations need one or two."""


class Refused(Exception):  # noqa: N818 -- named for what happened
    """The template itself refuses the messages (``raise_exception``)."""


class LimitExceeded(Exception):  # noqa: N818
    """The template does more than any conversation needs."""


class _Use:
    """What one rendering has done so far."""

    def __init__(self) -> None:
        self.steps = self.written = 0
        self.began = time.thread_time()


_use: ContextVar[_Use] = ContextVar("use")


def compile_template(source: str) -> Template:
    """Compiles a chat template.

    Args:
        source: Jinja source.

    Raises:
        jinja2.TemplateSyntaxError: It is no template.
    """
    return _Sandbox().from_string(source)


def render_template(template: Template, variables: dict[str, Any]) -> str:
    """Renders a compiled chat template.

    Args:
        template: Of :func:`compile_template`.
        variables: What it knows by name.

    Raises:
        Refused: The template refuses the messages.
        LimitExceeded: It does not come to an end, or writes too much.
        Exception: Anything that an expression can do wrong.
    """
    token = _use.set(_Use())
    try:
        return template.render(variables)
    finally:
        _use.reset(token)


class _Generation(Extension):
    """``{% generation %}``, which marks answers for training and changes no text."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # What is set in it ends with it, as it does for transformers.
        return nodes.Scope(body, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    # Not computed while the template is compiled either.
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        for name, function in self.filters.items():
            self.filters[name] = guarded(name, function, _check_length)
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now
        # Filler text, as much as it is asked for.
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def step(self) -> None:
        """Counts a round of a loop, or a call of a macro."""
        use = _use.get()
        use.steps += 1
        if use.steps > MAX_STEPS:
            raise LimitExceeded(f"It takes more than {MAX_STEPS:,} rounds of its loops")
        if time.thread_time() - use.began > MAX_SECONDS:
            raise LimitExceeded(f"It takes more than {MAX_SECONDS:.0f} seconds")

    def written(self, value: Any) -> str:
        """Counts what is written of a value, and returns its text."""
        use = _use.get()
        check_size(value, _check_length)
        text = str(value)
        use.written += len(text)
        if use.written > MAX_LENGTH:
            raise LimitExceeded(f"It writes more than {MAX_LENGTH:,} characters")
        return text

    def joined(self, *values: Any) -> str:
        """Joins texts, as ``~`` does."""
        check_size(values, _check_length)
        texts = [str(value) for value in values]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, function: Any, *arguments: Any, **named: Any) -> Any:
        """Calls a function where what it makes has a size that can be held."""
        # Jinja puts its own function in the place of str.format.
        method = getattr(function, "__wrapped__", function)
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(subject, str):
            if name == "join" and arguments:
                arguments = (list(arguments[0]), *arguments[1:])
            check_size(arguments, _check_length)
            grown(name, subject, (*arguments, *named.values()), _check_length)
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes ``+``, ``*``, ``**`` and ``%`` where the result has a size that can be held."""
        if operator == "+":
            if hasattr(left, "__len__") and hasattr(right, "__len__"):
                _check_length(len(left) + len(right))
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    if hasattr(value, "__len__"):
                        _check_length(len(value) * times)
                    elif isinstance(value, int):
                        _check_bits(value.bit_length() + times.bit_length())
        elif operator == "%":
            if isinstance(left, str):
                given = right if isinstance(right, tuple) else (right,)
                check_size(given, _check_length)
                grown("%", left, given, _check_length)
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)


class _Counting(NodeTransformer):
    """Puts the calls that count into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_call("written", node.lineno, _expression(part)) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.lineno, *node.nodes)

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.ExprStmt(_call("step", node.lineno), lineno=node.lineno)
        node.body.insert(0, step)
        return node


def _expression(part: nodes.Expr) -> nodes.Expr:
    # Text outside of expressions is no expression of its own.
    if isinstance(part, nodes.TemplateData):
        return nodes.Const(part.data, lineno=part.lineno)
    return part


def _call(method: str, line: int, *arguments: nodes.Expr) -> nodes.Call:
    method_of_ours = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(method_of_ours, list(arguments), [], None, None, lineno=line)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise LimitExceeded(f"It makes a value of more than {MAX_LENGTH:,} characters or elements")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitExceeded(f"It computes a number of more than {MAX_BITS:,} bits")


def _refuse(message: object) -> None:
    raise Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
