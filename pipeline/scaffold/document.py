"""A recipe as a commented YAML file, made of the models that read it.

What each key means is the first sentence of its documentation, so that the file cannot say anything
else than ``docs/recipe.md``; behind it stands why the value was chosen.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.recipe.docs import Key, recipe_keys
from pipeline.scaffold.choices import Choices

WIDTH = 100
SHOWN = frozenset(
    (
        *("schema", "name", "model.source", "model.revision", "model.dtype"),
        *("quantize.format", "quantize.group_size", "quantize.smoothquant_alpha"),
        "quantize.stored",
        *("quantize.calibration.text", "quantize.calibration.samples"),
        *("quantize.calibration.sequence_length", "quantize.calibration.batch_size"),
        *("evaluate.text", "evaluate.tokens", "evaluate.sequence_length"),
        *("compile.target", "compile.gpu", "compile.max_batch_size", "compile.max_input_len"),
        *("compile.max_seq_len", "compile.max_num_tokens", "compile.tensor_parallel"),
        *("serve.max_queue_size", "serve.kv_cache_free_gpu_mem_fraction", "serve.decoupled"),
        *("bench.concurrency", "bench.requests", "bench.rounds", "bench.output_tokens"),
        *("cost.price_per_hour", "cost.currency", "cost.utilization"),
    )
)
"""What a first recipe shows, beside every gate; all other keys have their defaults."""
GATES = "evaluate.gates"


def recipe_text(choices: Choices, left_out: frozenset[str], head: Sequence[str]) -> str:
    """Writes the file.

    Args:
        choices: Values and reasons; other keys that are shown have their defaults.
        left_out: Keys, and sections with all that is below, that say nothing in this recipe.
        head: Lines to begin with, without ``# ``.
    """
    keys = [key for key in recipe_keys() if _is_shown(key, choices.values, left_out)]
    sections = {key.name.rpartition(".")[0] for key in keys if not key.section}
    sections |= {name.rpartition(".")[0] for name in sections}
    lines = [f"# {line}".rstrip() for line in head]
    for key in keys:
        depth = key.name.count(".")
        indent = "  " * depth
        name = key.name.rpartition(".")[2]
        if key.section:
            if key.name in sections:
                lines += ["", *_comment(first_sentence(key), "")] if depth == 0 else []
                lines.append(f"{indent}{name}:")
            continue
        if depth:
            lines += _comment(f"{first_sentence(key)} {_reason(key, choices)}", indent)
        value = choices.values.get(key.name, key.default)
        lines.append(f"{indent}{name}: {yaml_value(value)}")
    return "\n".join(lines) + "\n"


def first_sentence(key: Key) -> str:
    """Returns what a key means, as far as its first full stop."""
    text = key.meaning.replace("``", "`")
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def yaml_value(value: Any) -> str:
    """Writes a value in one line, quoted where YAML needs it."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _is_shown(key: Key, values: Mapping[str, Any], left_out: frozenset[str]) -> bool:
    if any(key.name == name or key.name.startswith(f"{name}.") for name in left_out):
        return False
    if key.targets and values["compile.target"] not in key.targets:
        return False
    return bool(key.section) or key.name in SHOWN or key.name.startswith(f"{GATES}.")


def _reason(key: Key, choices: Choices) -> str:
    reason = choices.reasons.get(key.name)
    return f"Here: {reason}." if reason else ""


def _comment(text: str, indent: str) -> Iterator[str]:
    head = f"{indent}# "
    yield from textwrap.wrap(
        text.strip(),
        WIDTH,
        initial_indent=head,
        subsequent_indent=head,
        break_long_words=False,
        break_on_hyphens=False,
    )
