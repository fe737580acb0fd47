"""The ``quantization`` section of ``config.json``: which module is in which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pipeline.errors import CheckpointError, UnsupportedError
from pipeline.formats import ALGOS, KV_CACHES, NO_QUANT, Format, refused_algo

# The fields of TensorRT-LLM 1.2's QuantConfig; its constructor raises on any other key.
QUANTIZATION_KEYS = frozenset(
    (
        "quant_algo",
        "kv_cache_quant_algo",
        "group_size",
        "smoothquant_val",
        "clamp_val",
        "use_meta_recipe",
        "has_zero_point",
        "pre_quant_scale",
        "exclude_modules",
        "mamba_ssm_cache_dtype",
    )
)
INPUT_ORDER = "input_order"
"""A key of our own, true where the columns of weights are in another order than their inputs.
TensorRT-LLM has no kernel for that, and its constructor raises on the key, as it should."""
# What QuantConfig leaves unquantized when exclude_modules is null.
DEFAULT_EXCLUDES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)


@dataclass(frozen=True)
class Quantization:
    """The ``quantization`` section.

    Attributes:
        algo: ``quant_algo``; ``NO_QUANT`` where the file says null.
        kv_cache_algo: ``INT8``, ``FP8`` or None.
        group_size: Input features per INT4 scale; None for formats without groups.
        exclude_modules: fnmatch patterns of modules that stay in floating point.
        zero_points: ``has_zero_point``: whether INT4 linears have a tensor ``zero``.
        input_order: Whether INT4 linears have a tensor ``input_order``.
    """

    algo: str
    kv_cache_algo: str | None
    group_size: int | None
    exclude_modules: tuple[str, ...]
    zero_points: bool = False
    input_order: bool = False

    @classmethod
    def from_dict(cls, section: Mapping[str, Any], where: str) -> Quantization:
        """Reads the section as TensorRT-LLM 1.2 does.

        Raises:
            CheckpointError: A key is unknown, or the format lacks a key without which TensorRT-LLM
                would load it silently wrong.
            UnsupportedError: The format is not one of ours.
        """
        unknown = sorted(set(section) - QUANTIZATION_KEYS - {INPUT_ORDER})
        if unknown:
            raise CheckpointError(
                f"unknown quantization key {', '.join(unknown)}",
                where=where,
                why="TensorRT-LLM's QuantConfig refuses keys it does not know",
                fix=f"Known keys: {', '.join(sorted(QUANTIZATION_KEYS))}",
            )
        excludes = section.get("exclude_modules")
        if excludes is not None and not (
            isinstance(excludes, list) and all(isinstance(name, str) for name in excludes)
        ):
            raise CheckpointError(
                f"quantization.exclude_modules is {excludes!r}, not a list of patterns", where=where
            )
        algo = section.get("quant_algo") or NO_QUANT
        row = ALGOS.get(str(algo))
        if row is None:
            raise UnsupportedError(
                f"quant_algo {algo} is not supported",
                where=where,
                why=refused_algo(str(algo)),
                fix=f"Supported: {', '.join(ALGOS)}",
            )
        kv_cache_algo = section.get("kv_cache_quant_algo")
        known = [cache.algo for cache in KV_CACHES.values()]
        if kv_cache_algo is not None and kv_cache_algo not in known:
            raise UnsupportedError(
                f"kv_cache_quant_algo {kv_cache_algo} is not supported",
                where=where,
                fix=f"Supported: null, {', '.join(known)}",
            )
        if row.group_sizes:
            _check_groups(section, row, where)
        size = section.get("group_size")
        if row.block and size != row.block:
            raise CheckpointError(
                f"group_size is {size!r}, and {algo} has blocks of {row.block}",
                where=where,
                fix="Export the checkpoint again with trtllm-pipeline run",
            )
        return cls(
            algo=algo,
            kv_cache_algo=kv_cache_algo,
            group_size=int(section["group_size"]) if row.scales == "group" else None,
            exclude_modules=DEFAULT_EXCLUDES if excludes is None else tuple(excludes),
            zero_points=bool(row.group_sizes) and section["has_zero_point"],
            input_order=bool(row.group_sizes) and section.get(INPUT_ORDER) is True,
        )

    def algo_of(self, module: str) -> str:
        """Returns the format of one module: ``NO_QUANT`` where it is excluded, else ``algo``.

        Args:
            module: Its name as in the checkpoint, without ``.weight``.
        """
        if any(fnmatchcase(module, pattern) for pattern in self.exclude_modules):
            return NO_QUANT
        return self.algo


def _check_groups(section: Mapping[str, Any], row: Format, where: str) -> None:
    problems = []
    if section.get("group_size") not in row.group_sizes:
        sizes = " or ".join(map(str, row.group_sizes))
        problems.append(f"group_size is {section.get('group_size')!r}, not {sizes}")
    zero_points = section.get("has_zero_point")
    if zero_points is not False and not (zero_points is True and not row.needs_fp8):
        problems.append(f"has_zero_point is {zero_points!r}")
    if section.get("pre_quant_scale") is not True:
        problems.append("pre_quant_scale is not true, so the pre-quant scales would be ignored")
    if problems:
        raise CheckpointError(
            f"quantization is not complete for {row.quant_algo}",
            where=where,
            why="; ".join(problems),
        )
