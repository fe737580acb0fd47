"""The quantization formats: all that is known about one stands in its row.

A row says what a format is, not how it is computed. Recipe, presets, memory plans, pre-flight and
remedies read it; how weights are packed, multiplied and turned back is the work of the modules that
execute a format. The names are those that ``quantize.py`` of TensorRT-LLM takes as ``--qformat``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

FormatName = Literal[
    "float16",
    "bfloat16",
    "int8_sq",
    "int4_awq",
    "int4_gptq",
    "fp8",
    "w4a8_awq",
    "nf4",
    "int8_wo",
    "float32",
]
"""What ``quantize.format`` may be; every name has a row in :data:`FORMATS`."""
Dtype = Literal["float16", "bfloat16"]
"""What ``model.dtype`` may be: the precision beside quantized linears."""
Precision = Literal["float16", "bfloat16", "float32"]
"""What a whole model may be in."""
GroupSize = Literal[64, 128]
"""What ``quantize.group_size`` may be; which of them a format has is in its row."""
DEFAULT_GROUP_SIZE: GroupSize = 128
"""Taken where the recipe does not say; every format with groups has it."""
Searched = Literal["smoothquant_alpha", "group_size"]
"""Keys of ``quantize`` that ``quantize.search`` may choose the value of."""
KvCacheName = Literal["int8", "fp8"]
"""What ``quantize.kv_cache`` may be; each has a row in :data:`KV_CACHES`."""

Number = Literal["float", "int8", "int4", "fp8", "nf4"]
"""``float`` is whatever the model is in, 16 bits or float32; ``nf4`` one of 16 levels that are
quantiles of a normal distribution."""
_BITS: dict[Number, int] = {"float": 16, "int8": 8, "int4": 4, "fp8": 8, "nf4": 4}

NO_QUANT = "NO_QUANT"
"""TensorRT-LLM's ``quant_algo`` of linears in floating point; ``config.json`` may say null."""
W8A8_SQ_PER_CHANNEL = "W8A8_SQ_PER_CHANNEL"
W4A16_AWQ = "W4A16_AWQ"
W4A8_AWQ = "W4A8_AWQ"
FP8 = "FP8"
NF4, INT8_WO = "NF4", "INT8_WO"
"""Names of our own: TensorRT-LLM has none for these, and must not take a checkpoint of them for
one of its formats."""

INT8_KV_CACHE, FP8_KV_CACHE = "INT8", "FP8"
"""TensorRT-LLM's ``kv_cache_quant_algo``."""


@dataclass(frozen=True)
class Format:
    """One quantization format.

    Attributes:
        name: The recipe's ``quantize.format``.
        quant_algo: TensorRT-LLM's name in the checkpoint's ``config.json``. Formats that share it
            are the same to whoever reads a checkpoint.
        weights: The numbers that the weights of linears are stored in.
        activations: The numbers that the inputs of linears are multiplied in.
        aliases: Other spellings that a recipe may use; lower case.
        near: Names of something less exact, for which this format is what is probably meant.
        dtype: The precision of the whole model for a format that is nothing else; None for one
            that quantizes.
        preset: The attribute of ``modelopt.torch.quantization`` that it starts from.
        calibration: How scales and codes are found, which says how often and for what the
            calibration text is read; None reads none. ``hessian`` is our own rounding
            (:mod:`pipeline.quantize.gptq`), the others are ModelOpt's ``algorithm.method``.
        scales: What shares one scale of a weight: a group of input features, a row of the matrix
            or the whole tensor.
        group_sizes: The input features that may share one scale, ascending, of a format whose
            recipe chooses among them.
        block: The input features that share one scale where the format itself says how many.
        own: Whether this project rounds the weights itself, as they are: without a text, without
            pre-quant scales, and under a name that TensorRT-LLM does not have.
        multiple: The sides of a linear on each rank, and groups too, must be multiples of it.
        export: Raised when the export writes other bytes of this format for the same model.
        repeats_kv_heads: Whether its export gives copies of a KV head to several ranks.
        remedies: What to try first when a quality gate closes; see `remedy`.
        instead: Formats to take where the shape of a model rules this one out.
    """

    name: FormatName
    quant_algo: str
    weights: Number
    activations: Number
    aliases: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    dtype: Precision | None = None
    preset: str | None = None
    calibration: Literal["max", "smoothquant", "awq_lite", "hessian"] | None = None
    scales: Literal["group", "row", "tensor"] | None = None
    group_sizes: tuple[GroupSize, ...] = ()
    block: int | None = None
    own: bool = False
    multiple: int = 1
    export: int = 1
    repeats_kv_heads: bool = True
    remedies: tuple[str, ...] = ()
    instead: tuple[FormatName, ...] = ()

    @property
    def quantizes(self) -> bool:
        """Whether linears are stored in anything but floating point."""
        return self.quant_algo != NO_QUANT

    def remedy(self, without: Collection[str] = ()) -> str:
        """Says what to try first when a quality gate closes, without a full stop.

        Args:
            without: Those of `remedies` that the recipe has already, or the model rules out.
        """
        left = [text for text in self.remedies if text not in without]
        if not left:
            return "Compare model.dtype with the source's own dtype"
        return f"Try {' or '.join(left)}"

    @property
    def weight_bits(self) -> int:
        """Bits of one weight, without scales."""
        return self._bits(self.weights)

    @property
    def activation_bits(self) -> int:
        """Bits of one value that goes into a matrix multiplication."""
        return self._bits(self.activations)

    def _bits(self, number: Number) -> int:
        return 32 if number == "float" and self.dtype == "float32" else _BITS[number]

    @property
    def integer_weights(self) -> bool:
        """Whether weights are INT8 or INT4."""
        return self.weights in ("int8", "int4")

    @property
    def fp8_weights(self) -> bool:
        """Whether weights are FP8."""
        return self.weights == "fp8"

    @property
    def packed(self) -> bool:
        """Whether a byte of the checkpoint holds the weights of two rows."""
        return self.weight_bits == 4

    @property
    def needs_fp8(self) -> bool:
        """Whether its linears compute in FP8, which takes hardware that can."""
        return self.activations == "fp8"

    @property
    def divides_prequant(self) -> bool:
        """Whether TensorRT-LLM divides pre-quant scales by the activation scale on loading."""
        return self.scales == "group" and self.needs_fp8

    @property
    def smooths(self) -> bool:
        """Whether calibration finds pre-quant scales; those of the others are one, or none."""
        return self.calibration in ("smoothquant", "awq_lite")

    @property
    def rounds_by_hessian(self) -> bool:
        """Whether weights are rounded one after another, each making up for those before it."""
        return self.calibration == "hessian"

    @property
    def searched(self) -> Searched | None:
        """The key that ``quantize.search`` chooses the value of; None where nothing varies."""
        if self.calibration == "smoothquant":
            return "smoothquant_alpha"
        return "group_size" if len(self.group_sizes) > 1 else None

    def unit(self, group_size: int) -> int:
        """Returns what the sides of a linear on each rank must be multiples of."""
        return max(self.multiple, group_size) if self.group_sizes else self.multiple


FORMATS: dict[FormatName, Format] = {
    row.name: row
    for row in (
        Format(
            "float16",
            NO_QUANT,
            "float",
            "float",
            aliases=("fp16",),
            near=("half", "f16"),
            dtype="float16",
        ),
        Format("bfloat16", NO_QUANT, "float", "float", aliases=("bf16",), dtype="bfloat16"),
        Format(
            "int8_sq",
            W8A8_SQ_PER_CHANNEL,
            "int8",
            "int8",
            # ModelOpt renamed its formats in 0.46; both spellings are in use, one is stored.
            aliases=("int8_smoothquant", "w8a8_sq"),
            near=("int8", "w8a8", "sq", "smoothquant"),
            preset="INT8_SMOOTHQUANT_CFG",
            calibration="smoothquant",
            scales="row",
            # ModelOpt does not duplicate the per-channel scales.
            repeats_kv_heads=False,
            remedies=("quantize.search: {}", "format int4_awq"),
            instead=("int4_awq", "fp8"),
        ),
        Format(
            "int4_awq",
            W4A16_AWQ,
            "int4",
            "float",
            aliases=("awq", "w4a16_awq"),
            near=("w4a16",),
            preset="INT4_AWQ_CFG",
            calibration="awq_lite",
            scales="group",
            group_sizes=(64, 128),
            # TensorRT-LLM pads a layer that breaks it, and the export then no longer fits.
            multiple=64,
            remedies=("quantize.group_size: 64", "format int4_gptq", "format int8_sq"),
            instead=("int8_sq", "fp8"),
        ),
        Format(
            "int4_gptq",
            # Symmetric GPTQ is an AWQ checkpoint with pre-quant scales of one: same codes, same
            # kernels. W4A16_GPTQ of a rank file has weights interleaved for one GPU.
            W4A16_AWQ,
            "int4",
            "float",
            aliases=("gptq", "w4a16_gptq"),
            preset="INT4_AWQ_CFG",
            calibration="hessian",
            scales="group",
            group_sizes=(64, 128),
            multiple=64,
            remedies=("quantize.act_order: true", "quantize.group_size: 64", "format int8_sq"),
            instead=("int8_sq", "fp8"),
        ),
        Format(
            "fp8",
            FP8,
            "fp8",
            "fp8",
            near=("float8", "w8a8_fp8"),
            preset="FP8_DEFAULT_CFG",
            calibration="max",
            scales="tensor",
        ),
        Format(
            "w4a8_awq",
            W4A8_AWQ,
            "int4",
            "fp8",
            aliases=("w4a8_awq_beta",),
            near=("w4a8",),
            preset="W4A8_AWQ_BETA_CFG",
            calibration="awq_lite",
            scales="group",
            # Upstream's layer: "W4A8_AWQ with group_size = 64 is not implemented yet!"
            group_sizes=(128,),
            multiple=128,
            # 2: pre-quant scales stay finite when they are divided.
            export=2,
            remedies=("format fp8",),
            instead=("int8_sq", "fp8"),
        ),
        Format(
            "nf4",
            NF4,
            "nf4",
            "float",
            aliases=("bnb_nf4", "normal_float4"),
            near=("bitsandbytes", "bnb", "qlora"),
            scales="group",
            # The block of bitsandbytes, along the inputs.
            block=64,
            own=True,
            multiple=64,
            remedies=("format int8_wo", "format int4_awq"),
            instead=("int8_wo", "int8_sq"),
        ),
        Format(
            "int8_wo",
            INT8_WO,
            "int8",
            "float",
            aliases=("int8_weight_only",),
            near=("llm_int8", "weight_only", "w8a16"),
            scales="row",
            own=True,
        ),
        Format(
            "float32",
            NO_QUANT,
            "float",
            "float",
            aliases=("fp32",),
            near=("f32", "single"),
            dtype="float32",
        ),
    )
}

ALGOS: dict[str, Format] = {row.quant_algo: row for row in reversed(FORMATS.values())}
"""By ``quant_algo``, the first format that has it."""


@dataclass(frozen=True)
class Refused:
    """What looks like a format and is not taken.

    Attributes:
        names: Every spelling; lower case.
        reason: Why, as a sentence without its full stop.
    """

    names: tuple[str, ...]
    reason: str


REFUSED = (
    Refused(
        ("int4_wo", "int4"),
        f"ModelOpt labels its round-to-nearest INT4 {W4A16_AWQ}, without pre-quant scales",
    ),
    Refused(
        ("nvfp4",),
        "ModelOpt calibrates NVFP4 on CUDA only and no supported target here runs it",
    ),
)
_ALIASES = {alias: row.name for row in FORMATS.values() for alias in row.aliases}
_REASONS = {name: row.reason for row in REFUSED for name in row.names}


@dataclass(frozen=True)
class KvCache:
    """One precision of a quantized KV cache.

    Attributes:
        algo: TensorRT-LLM's ``kv_cache_quant_algo``.
        num_bits: What ModelOpt's quantizer calls it: bits of an integer, or of exponent and
            mantissa.
    """

    algo: str
    num_bits: int | tuple[int, int]


KV_CACHES: dict[KvCacheName, KvCache] = {
    "int8": KvCache(INT8_KV_CACHE, 8),
    "fp8": KvCache(FP8_KV_CACHE, (4, 3)),
}


def canonical_format(value: object) -> object:
    """Turns any spelling of a format into the stored one; leaves what is none as it is.

    Raises:
        ValueError: The format is one of :data:`REFUSED`.
    """
    if not isinstance(value, str):
        return value
    name = value.strip().lower()
    if name in _REASONS:
        msg = f"{name} is refused: {_REASONS[name]}; choose one of {', '.join(FORMATS)}"
        raise ValueError(msg)
    return _ALIASES.get(name, name)


def suggested_format(word: str) -> FormatName | None:
    """Returns the format that a word which is none probably means; None where there is no telling.

    Args:
        word: In capitals or with dashes too.
    """
    name = word.strip().lower().replace("-", "_").replace(" ", "_")
    meant: dict[str, FormatName] = {}
    for row in FORMATS.values():
        meant |= dict.fromkeys((row.name, *row.aliases, *row.near), row.name)
    close = [name] if name in meant else difflib.get_close_matches(name, meant, n=1, cutoff=0.5)
    return meant[close[0]] if close else None


def refused_algo(algo: str) -> str | None:
    """Says why a ``quant_algo`` that TensorRT-LLM has is not taken; None where nothing is known."""
    if algo.endswith("_PLUGIN"):
        return (
            "The smooth-quant plugin layers have other tensors (per_channel_scale, smoother, "
            f"scale_to_int) and drop Qwen3's q/k norms; {W8A8_SQ_PER_CHANNEL} is the same "
            "arithmetic"
        )
    if algo in ("W8A16", "W4A16"):
        return "TensorRT-LLM quantizes weight-only formats itself while it loads them"
    return None


def kv_cache_algo(name: KvCacheName | None) -> str | None:
    """Returns the ``kv_cache_quant_algo`` of a recipe's ``quantize.kv_cache``."""
    return None if name is None else KV_CACHES[name].algo


def either(rows: Iterable[Format]) -> str:
    """Lists formats as a remedy does, smallest weights first: ``int4_awq, int8_sq or float16``."""
    *others, last = (row.name for row in sorted(rows, key=lambda row: row.weight_bits))
    return f"{', '.join(others)} or {last}" if others else last
