"""What a model's files say of the quantization that their weights are stored in already.

Five libraries write such folders. What they say stands in ``config.json`` (``quantization_config``)
or in a file of its own beside it; which tensors belong to it is told by
:mod:`pipeline.source.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import SourceError, UnsupportedError
from pipeline.formats import (
    ALGOS,
    FORMATS,
    FP8,
    INT8_WO,
    NF4,
    W4A16_AWQ,
    W8A8_SQ_PER_CHANNEL,
    Format,
    canonical_format,
)
from pipeline.models.config_json import ConfigValues
from pipeline.reading.json_text import read_json

Method = Literal["gptq", "awq", "compressed-tensors", "bitsandbytes", "modelopt"]
"""Who wrote the files, by the names of ``quantization_config.quant_method``."""
METHODS: tuple[Method, ...] = get_args(Method)
KEY = "quantization_config"
BESIDE = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files that older folders, and ModelOpt's, have instead of the key, and who writes them."""
_ORIGINAL = "Set model.source to the checkpoint that this one was made from"
_LABELS: dict[Method, str] = {
    "gptq": "GPTQ",
    "awq": "AutoAWQ",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "modelopt": "ModelOpt",
}


@dataclass(frozen=True)
class StoredQuantization:
    """How the weights of a model are quantized already.

    Attributes:
        method: Who wrote them.
        quant_algo: Of the checkpoint that they become, TensorRT-LLM's name where it has one.
        group: Input features that share a scale; None for a scale for each row or tensor.
        zero_points: Whether codes are counted from zero points of their own.
        ordered: Whether the groups take inputs out of order (act-order, ``desc_act``). config.json
            cannot be trusted with it, so it is False until the files have been looked at.
        v2: Whether the label says GPTQ's second layout, whose zero points are stored as they are.
        double: Whether bitsandbytes' block scales are quantized themselves.
    """

    method: Method
    quant_algo: str
    group: int | None = None
    zero_points: bool = False
    ordered: bool = False
    v2: bool = False
    double: bool = False

    @property
    def row(self) -> Format:
        """The row of the format that the checkpoint has."""
        named = canonical_format(self.method)
        row = FORMATS.get(named)  # type: ignore[call-overload]  # it may be no format's name
        if isinstance(row, Format) and row.quant_algo == self.quant_algo:
            return row
        return ALGOS[self.quant_algo]

    @property
    def group_size(self) -> int | None:
        """``group_size`` of the checkpoint, whose scales are repeated where a group has more."""
        sizes = self.row.group_sizes
        if not sizes:
            return None
        fits = [size for size in sizes if self.group is None or self.group % size == 0]
        return max(fits, default=None)

    def words(self) -> str:
        """Describes it: ``GPTQ, 4 bits, groups of 128, zero points``."""
        parts = [_LABELS[self.method], f"{self.row.weight_bits} bits"]
        if self.row.group_sizes:
            parts.append(f"groups of {self.group}" if self.group else "a scale for each row")
        if self.row.block:
            double = ", scales quantized too" if self.double else ""
            parts.append(f"blocks of {self.row.block}{double}")
        if self.zero_points:
            parts.append("zero points")
        if self.ordered:
            parts.append("inputs out of order")
        return ", ".join(parts)


def read_quantization(
    config: Mapping[str, Any], directory: Path | None, where: str
) -> StoredQuantization | None:
    """Reads what a model's files say; None where the weights are not quantized.

    Args:
        config: ``config.json``, parsed.
        directory: Its folder, for files beside it; None where config.json is all there is.
        where: Its path, for error messages.

    Raises:
        UnsupportedError: It is a quantization that cannot be converted, with the reason.
        SourceError: What it says is not complete, or a file beside it cannot be read.
    """
    section, source = config.get(KEY), where
    if not section and directory is not None:
        for name, method in BESIDE.items():
            content = _beside(directory / name)
            if content is not None:
                section = {**_flattened(content), "quant_method": method}
                source = str(directory / name)
                break
    if not section:
        return None
    named = section.get("quant_method") if isinstance(section, dict) else None
    if named == "modelopt" and directory is not None:
        # The groups are in this file alone.
        section = {**_flattened(_beside(directory / "hf_quant_config.json") or {}), **section}
    if not isinstance(section, dict) or named not in METHODS:
        raise UnsupportedError(
            f"the model is quantized already, by {named or 'a method it does not name'}",
            where=source,
            why="quantization_config says so, and what is read without quantizing it again is "
            f"{', '.join(METHODS)}",
            fix=_ORIGINAL,
        )
    return _READERS[named](ConfigValues(section, source, SourceError, f"{KEY}."), source)


def _beside(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} cannot be read", where=str(path), why=str(error)) from error
    if not isinstance(content, dict):
        raise SourceError(f"{path.name} is not a JSON object", where=str(path))
    return content


def _flattened(content: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt has everything in ``quantization``; AutoAWQ abbreviates its keys."""
    inner = content.get("quantization")
    content = {**content, **inner} if isinstance(inner, dict) else dict(content)
    for short, name in (("w_bit", "bits"), ("q_group_size", "group_size")):
        if short in content:
            content.setdefault(name, content[short])
    return content


def _refused(what: str, where: str, why: str, fix: str = _ORIGINAL) -> UnsupportedError:
    return UnsupportedError(what, where=where, why=why, fix=fix)


def _four_bits(values: ConfigValues, where: str, label: str) -> None:
    bits = values.positive_int("bits")
    if bits != ALGOS[W4A16_AWQ].weight_bits:
        raise _refused(
            f"the model's weights are {label} of {bits} bits",
            where,
            "The kernels of every target multiply codes of 4 bits; other widths could only be "
            "quantized again, which loses twice",
        )


def _group(values: ConfigValues, key: str = "group_size") -> int | None:
    """None for one scale per row, which is written as -1 or null."""
    size = values.values.get(key)
    return None if size in (-1, None) else values.positive_int(key)


def _gptq(values: ConfigValues, where: str) -> StoredQuantization:
    _four_bits(values, where, "GPTQ")
    layout = values.values.get("checkpoint_format") or "gptq"
    packed = values.values.get("pack_dtype") or "int32"
    if layout not in ("gptq", "gptq_v2") or packed != "int32":
        raise _refused(
            f"the GPTQ files are of the layout {layout!r}, packed in {packed}",
            where,
            "Read are gptq and gptq_v2, packed in int32; others are repacked for one kernel",
            "Save it again with checkpoint_format gptq. " + _ORIGINAL,
        )
    if values.values.get("dynamic"):
        raise _refused(
            "the GPTQ files have rules of their own for some modules (dynamic)",
            where,
            "A checkpoint has one width and one group size for all its quantized linears",
        )
    if values.values.get("lm_head"):
        raise _head(where)
    return StoredQuantization(
        "gptq",
        W4A16_AWQ,
        _group(values),
        zero_points=not values.values.get("sym", True),
        v2=layout == "gptq_v2",
    )


def _head(where: str) -> UnsupportedError:
    return _refused("lm_head is quantized", where, "The checkpoint keeps it in floating point")


def _awq(values: ConfigValues, where: str) -> StoredQuantization:
    _four_bits(values, where, "AutoAWQ")
    version = str(values.values.get("version") or "gemm").lower()
    if version != "gemm":
        raise _refused(
            f"the AutoAWQ files are of the version {version}",
            where,
            "Read is gemm; gemv and others pack their codes for one kernel",
            "Save it again with version GEMM. " + _ORIGINAL,
        )
    zero_points = values.flag("zero_point") if "zero_point" in values.values else True
    return StoredQuantization("awq", W4A16_AWQ, _group(values), zero_points=zero_points)


def _compressed(values: ConfigValues, where: str) -> StoredQuantization:
    groups = values.section("config_groups").values
    if len(groups) != 1:
        raise _refused(
            f"compressed-tensors has {len(groups)} groups of linears",
            where,
            "A checkpoint has one format for all its quantized linears",
        )
    for key, why in (
        ("kv_cache_scheme", "Scales of a KV cache are not taken over"),
        ("transform_config", "Rotations are part of the arithmetic, and no target computes them"),
    ):
        if values.values.get(key):
            raise _refused(f"compressed-tensors has a {key}", where, why)
    sparse = values.section("sparsity_config").values.get("format")
    if sparse not in (None, "dense"):
        raise _refused(
            f"compressed-tensors has weights that are {sparse}",
            where,
            "Only dense weights are read",
        )
    group = values.section("config_groups").section(next(iter(groups)))
    weights, inputs = group.section("weights"), group.section("input_activations").values
    if group.values.get("output_activations"):
        raise _refused("outputs of linears are quantized", where, "No target rounds outputs")
    kind, bits = weights.values.get("type"), weights.values.get("num_bits")
    strategy = weights.values.get("strategy") or "tensor"
    layout = values.values.get("format")
    if kind == "int" and bits == 4 and not inputs and layout == "pack-quantized":
        if strategy not in ("group", "channel"):
            raise _refused(
                f"weights have a scale for each {strategy}", where, "Read are group and channel"
            )
        return StoredQuantization(
            "compressed-tensors",
            W4A16_AWQ,
            _group(weights) if strategy == "group" else None,
            zero_points=weights.values.get("symmetric") is False,
        )
    if kind == "int" and bits == 8 and inputs and layout == "int-quantized":
        _static_activations(inputs, weights, where)
        return StoredQuantization("compressed-tensors", W8A8_SQ_PER_CHANNEL)
    activations = f" and activations of {inputs.get('num_bits')}" if inputs else ""
    raise _refused(
        f"compressed-tensors has {kind} weights of {bits} bits{activations} as {layout}",
        where,
        "Read are int weights of 4 bits as pack-quantized, and int weights and activations of 8 "
        "bits as int-quantized",
    )


def _static_activations(inputs: Mapping[str, Any], weights: ConfigValues, where: str) -> None:
    if inputs.get("dynamic") or inputs.get("strategy") != "tensor":
        raise _refused(
            "activations are quantized per token while the model runs",
            where,
            "The checkpoint has one static scale for each input, and the files have none to take "
            "over",
            "Quantize it again with a static scale per tensor (input_activations: strategy tensor, "
            "dynamic false). " + _ORIGINAL,
        )
    symmetric = (inputs.get("symmetric", True), weights.values.get("symmetric", True))
    if inputs.get("num_bits") != 8 or inputs.get("type") != "int" or not all(symmetric):
        raise _refused(
            "activations or weights of 8 bits are not symmetric integers",
            where,
            "The targets multiply symmetric INT8 by symmetric INT8",
        )
    if weights.values.get("strategy") not in ("channel", "tensor"):
        raise _refused(
            f"weights have a scale for each {weights.values.get('strategy')}",
            where,
            "INT8 weights have one for each row, or one for the tensor",
        )


def _bitsandbytes(values: ConfigValues, where: str) -> StoredQuantization:
    four = values.values.get("load_in_4bit") or values.values.get("_load_in_4bit")
    eight = values.values.get("load_in_8bit") or values.values.get("_load_in_8bit")
    if not four and not eight:
        raise _refused("bitsandbytes says neither 4 nor 8 bits", where, "load_in_4bit is not true")
    if not four:
        return StoredQuantization("bitsandbytes", INT8_WO)
    kind = values.values.get("bnb_4bit_quant_type") or "fp4"
    storage = values.values.get("bnb_4bit_quant_storage") or "uint8"
    if kind != "nf4" or storage != "uint8":
        raise _refused(
            f"bitsandbytes' weights are {kind} in {storage}",
            where,
            "Read is nf4 in uint8; no target has the levels of another kind",
        )
    double = bool(values.values.get("bnb_4bit_use_double_quant"))
    return StoredQuantization("bitsandbytes", NF4, double=double)


def _modelopt(values: ConfigValues, where: str) -> StoredQuantization:
    algo = values.values.get("quant_algo")
    known = (W4A16_AWQ, W8A8_SQ_PER_CHANNEL, FP8)
    if algo not in known:
        raise _refused(
            f"ModelOpt's unified checkpoint is {algo}", where, f"Read are {', '.join(known)}"
        )
    if values.values.get("kv_cache_quant_algo"):
        raise _refused(
            "ModelOpt's unified checkpoint has a quantized KV cache",
            where,
            "Scales of a KV cache are not taken over from it",
        )
    group = _group(values) if ALGOS[algo].group_sizes else None
    if ALGOS[algo].group_sizes and values.values.get("has_zero_point"):
        raise _refused("ModelOpt's weights have zero points", where, "Its layout of them is unread")
    return StoredQuantization("modelopt", algo, group)


_READERS: dict[str, Callable[[ConfigValues, str], StoredQuantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
}
