"""Whether an engine with its KV cache fits into this machine's memory.

OpenVINO reserves the whole cache when it opens an engine and refuses more than the machine has. A
container may have less than its machine, which OpenVINO does not look at: there the kernel ends the
process once the cache fills up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.tables import memory_size
from pipeline.targets.base import Room
from pipeline.targets.openvino.options import kv_cache_precision

TOKENS_PER_BLOCK = 32
SHORT_STEP_TOKENS = 256
"""Tokens of a step at most, as the front of the engine has it (model_repo)."""
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.0}


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes of this machine's memory, in bytes.

    Attributes:
        weights: As they are stored; in memory they take at least that.
        kv_bytes_per_token: Keys and values of one token in all layers.
        kv_bytes_per_sequence: The KV cache of one sequence of ``max_seq_len``.
        kv_tokens: Tokens that the whole KV cache has room for.
        kv_cache: The whole KV cache, which OpenVINO reserves when it opens the engine.
        sequences: Sequences of ``max_seq_len`` that it holds together.
        machine: What this machine has; None where the system does not say.
    """

    weights: int
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int
    kv_tokens: int
    kv_cache: int
    sequences: int
    machine: int | None

    @property
    def left(self) -> int | None:
        """What remains for everything else; negative when the engine does not fit."""
        return None if self.machine is None else self.machine - self.weights - self.kv_cache


def plan_memory(recipe: Recipe, facts: ModelFacts) -> MemoryPlan:
    """Plans the memory of an engine on this machine."""
    per_token, tokens = (
        kv_bytes_per_token(facts, kv_cache_precision(recipe)),
        kv_cache_tokens(recipe),
    )
    longest = in_blocks(recipe.compile.max_seq_len)
    return MemoryPlan(
        weights=weight_bytes(facts, recipe),
        kv_bytes_per_token=per_token,
        kv_bytes_per_sequence=longest * per_token,
        kv_tokens=tokens,
        kv_cache=tokens * per_token,
        sequences=tokens // longest,
        machine=machine_memory(),
    )


def room(recipe: Recipe, facts: ModelFacts) -> Room | None:
    """Counts the sequences that fit beside the weights into half of this machine's memory.

    The other half is for what OpenVINO computes with, and for the source model, which evaluation
    holds beside the checkpoint; the cache is reserved whole when the server starts.

    Returns:
        The room; None where the system does not say what memory there is.
    """
    plan = plan_memory(recipe, facts)
    if plan.machine is None:
        return None
    free = max(plan.machine // 2 - plan.weights, 0)
    size = " ".join(memory_size(plan.machine).split())
    return Room(free // plan.kv_bytes_per_sequence, f"half of this machine's {size}")


def kv_bytes_per_token(facts: ModelFacts, precision: str) -> int:
    """Computes the bytes of one token's keys and values in all layers.

    They are exactly what OpenVINO reserves, as the largest cache that it grants shows. The 8-bit
    cache has a float32 scale and zero point for each token's values of a head, and for each of a
    head's key features per block.

    Args:
        facts: Gives layers, heads and head size.
        precision: The cache's element type, such as ``f32`` or ``u8``.
    """
    size = facts.head_size
    per_head = 2 * size * _KV_BYTES[precision]
    if precision == "u8":
        per_head += 8 + 8 * size / TOKENS_PER_BLOCK
    return round(facts.num_hidden_layers * facts.num_key_value_heads * per_head)


def kv_cache_tokens(recipe: Recipe) -> int:
    """Computes for how many tokens the cache has room, as the engine's front sizes it.

    It is a whole number of blocks.
    """
    asked = recipe.serve.max_tokens_in_paged_kv_cache
    if asked is not None:
        return asked // TOKENS_PER_BLOCK * TOKENS_PER_BLOCK
    return recipe.compile.max_batch_size * in_blocks(recipe.compile.max_seq_len)


def in_blocks(tokens: int) -> int:
    """Returns how many tokens the blocks have room for that a sequence of ``tokens`` takes."""
    return -(-tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


def step_tokens(recipe: Recipe) -> int:
    """Returns the tokens of a step, as the engine's front sets them."""
    build = recipe.compile
    chunked = recipe.serve.enable_chunked_context
    most = min(SHORT_STEP_TOKENS, build.max_num_tokens) if chunked else build.max_seq_len
    return max(most, build.max_batch_size)


def weight_bytes(facts: ModelFacts, recipe: Recipe) -> int:
    """Computes the bytes of the weights as they are stored; in memory they take at least that."""
    linears = sum(linear.out_features * linear.in_features for linear in facts.linears)
    tables = 2 * facts.vocab_size * facts.hidden_size
    row = FORMATS[recipe.quantize.format]
    # What no format rounds is in the precision of the model.
    value = row.weight_bits // 8 if row.dtype else 2
    return round(facts.num_hidden_layers * linears * row.weight_bits / 8 + value * tables)


def machine_memory(root: Path = Path("/")) -> int | None:
    """Reads how many bytes this process can ever have; None where the system does not say.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return min(_limits(root), default=None)


def _limits(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Every group around this one has its limit too; in a container they may be out of sight.
        group = base / path.strip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(base):
                yield from (int(text) for text in _lines(place / name) if text.isdecimal())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
