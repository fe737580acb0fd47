"""What transformers' classes read from ``config.json``, taken from its sources.

Nothing of the pipeline is asked: a key counts as read when a class names it in its signature, takes
it from its keyword arguments, or when code asks a configuration for it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(transformers.__file__).parent
# How a text is generated is said by requests here, and no class computes logits with it.
GENERATION = "generation"


def class_reads(model_type: str) -> dict[str, Any]:
    """Every key that a configuration class and its modeling file read, and its default."""
    config_class = CONFIG_MAPPING[model_type]
    defaults = _defaults(PretrainedConfig.__init__)
    signature = _defaults(config_class.__init__)
    source = Path(inspect.getfile(config_class))
    modeling = source.with_name(source.name.replace("configuration_", "modeling_"))
    taken = _keyword_arguments(_init(source, config_class.__name__))
    found = {*taken, *config_class.attribute_map, *(_asked(modeling) - _own_names())}
    return signature | {key: defaults.get(key) for key in sorted(found - signature.keys())}


@cache
def shared_reads(model_type: str) -> frozenset[str]:
    """Every key that the base class, and the shared modules that a modeling file uses, read."""
    source = Path(inspect.getfile(CONFIG_MAPPING[model_type]))
    modeling = source.with_name(source.name.replace("configuration_", "modeling_"))
    found = {
        *_defaults(PretrainedConfig.__init__),
        *PretrainedConfig._get_global_generation_defaults(),
        *_keyword_arguments(_init(ROOT / "configuration_utils.py", "PretrainedConfig")),
    }
    for path in _shared_modules(modeling):
        found |= _asked(path) - _own_names()
    return frozenset(found)


def _defaults(function: Any) -> dict[str, Any]:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind not in variadic}


def _own_names() -> set[str]:
    """Methods and properties of every configuration, which no file can hold."""
    return set(dir(PretrainedConfig))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _init(path: Path, name: str) -> ast.FunctionDef:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return next(
                part
                for part in node.body
                if isinstance(part, ast.FunctionDef) and part.name == "__init__"
            )
    raise LookupError(f"{path} has no class {name}")


def _keyword_arguments(function: ast.FunctionDef) -> set[str]:
    """``kwargs.pop("key")`` and ``kwargs.get("key")``."""
    return {
        node.args[0].value
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pop", "get")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "kwargs"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and not node.args[0].value.startswith("_")
    }


@cache
def _asked(path: Path) -> frozenset[str]:
    """``config.key``, and ``getattr`` and ``hasattr`` of a config with a literal key."""
    return frozenset(key for key in _asked_names(path) if not key.startswith("_"))


def _asked_names(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and _is_config(node.value):
            if isinstance(node.ctx, ast.Load):
                yield node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr")
            and _is_config(node.args[0])
            and isinstance(node.args[1], ast.Constant)
        ):
            yield str(node.args[1].value)


def _is_config(node: ast.expr) -> bool:
    names = ("config", "decoder_config", "effective_config", "text_config")
    if isinstance(node, ast.Attribute):
        return node.attr == "config"
    return isinstance(node, ast.Name) and node.id in names


def _shared_modules(modeling: Path) -> Iterator[Path]:
    """The modules of transformers itself that a modeling file imports from."""
    for node in ast.walk(_tree(modeling)):
        if isinstance(node, ast.ImportFrom) and node.level == 3 and node.module:
            path = ROOT / f"{node.module.replace('.', '/')}.py"
            if path.is_file() and not node.module.startswith(GENERATION):
                yield path
