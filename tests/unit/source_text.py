"""What the text of a module says by itself: its identifiers, and which strings explain it."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def words_of(node: ast.AST) -> Iterator[str]:
    """Every identifier that a node of the syntax tree holds by itself."""
    for name, value in ast.iter_fields(node):
        values = value if isinstance(value, list) else [value]
        if not (isinstance(node, ast.Constant) and name in ("value", "kind")):
            yield from (word for word in values if isinstance(word, str))


def docstrings_of(tree: ast.Module) -> set[int]:
    """Strings that stand alone as a statement: docstrings, also those of constants."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
