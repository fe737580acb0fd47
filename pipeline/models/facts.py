"""The facts of one model, read from a Hugging Face ``config.json``.

Nothing here imports torch: ``plan`` and the pre-flight work from ``config.json`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError, UnsupportedError
from pipeline.models.architectures import (
    ARCHITECTURES,
    Architecture,
    Projection,
    Split,
    Width,
)
from pipeline.models.config_json import ConfigValues, read_config
from pipeline.models.config_keys import refuse_other_arithmetic
from pipeline.models.quantized import StoredQuantization, read_quantization

ORIGINAL_POSITIONS = "original_max_position_embeddings"
# The rope types whose frequencies TensorRT-LLM and our graph compute from config.json alone, and
# the keys that they compute them from.
ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        ORIGINAL_POSITIONS,
    ),
}


@dataclass(frozen=True)
class LinearShape:
    """One linear of a decoder layer, as the TensorRT-LLM checkpoint names and fuses it.

    Attributes:
        name: ``attention.qkv``, ``attention.dense``, ``mlp.fc``, ``mlp.gate`` or ``mlp.proj``.
        source: The linears of transformers' layer that it consists of, and their rows.
        out_features: Rows of the weight over all ranks.
        in_features: Columns of the weight over all ranks.
        split: What tensor parallelism cuts: ``column`` is out_features, ``row`` is in_features.
    """

    name: str
    source: tuple[tuple[str, int], ...]
    out_features: int
    in_features: int
    split: Split


@dataclass(frozen=True)
class ModelFacts:
    """What every stage and target computes a model from.

    Attributes:
        rotary_base: Rope theta.
        rotary_scaling: Hugging Face's ``rope_scaling`` with ``rope_type``; None for plain rope.
        sliding_window: Tokens each position attends to; None for full attention.
        dtype: What ``config.json`` says that the weights are, such as ``bfloat16``; None where it
            does not say.
        quantized: How the weights are quantized already; None where they are floating point.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    hidden_act: str
    rotary_base: float
    rotary_scaling: dict[str, Any] | None
    attention_bias: bool
    mlp_bias: bool
    qk_layernorm: bool
    tie_word_embeddings: bool
    sliding_window: int | None
    dtype: str | None = None
    quantized: StoredQuantization | None = None

    @property
    def family(self) -> Architecture:
        """The row of the architecture."""
        return ARCHITECTURES[self.architecture]

    def width(self, name: Width) -> int:
        """Returns one of the sizes that a layer's tensors are made of, not split on ranks."""
        return {
            "hidden": self.hidden_size,
            "inner": self.intermediate_size,
            "q": self.num_attention_heads * self.head_size,
            "kv": self.num_key_value_heads * self.head_size,
            "head": self.head_size,
        }[name]

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """The quantizable linears of a decoder layer."""
        return tuple(self._linear(projection) for projection in self.family.projections)

    def _linear(self, projection: Projection) -> LinearShape:
        rows = tuple((name, self.width(width)) for name, width in projection.sources)
        return LinearShape(
            projection.checkpoint,
            rows,
            sum(size for _, size in rows),
            self.width(projection.columns),
            projection.split,
        )

    @property
    def longest_sequence(self) -> int:
        """Positions the rotary embedding is meant for, as TensorRT-LLM derives ``max_seq_len``.

        ``max_position_embeddings`` of a llama3-scaled model already counts the scaling; that of a
        linearly scaled one does not, unless ``original_max_position_embeddings`` says what it was
        before.
        """
        scaling = self.rotary_scaling
        if scaling is None or scaling["rope_type"] != "linear":
            return self.max_position_embeddings
        unscaled = scaling.get(ORIGINAL_POSITIONS, self.max_position_embeddings)
        return int(int(unscaled) * float(scaling["factor"]))

    @classmethod
    def from_config(
        cls, config: dict[str, Any], where: str, directory: Path | None = None
    ) -> ModelFacts:
        """Reads a Hugging Face ``config.json``, of transformers 4 or 5.

        Args:
            config: The parsed file.
            where: Its path, for error messages.
            directory: Its folder, where another file may say how the weights are quantized.

        Raises:
            SourceError: A required key is missing, or a value is not what its key means.
            UnsupportedError: The architecture or one of its features is not supported.
        """
        architecture = _architecture(ConfigValues(config, where, SourceError), where)
        refuse_other_arithmetic(architecture, config, where)
        values = ConfigValues({**architecture.defaults, **config}, where, SourceError)
        quantized = read_quantization(config, directory, where)
        hidden = values.positive_int("hidden_size")
        heads = values.positive_int("num_attention_heads")
        base, scaling = _rope(values, where)
        facts = cls(
            architecture=architecture.name,
            hidden_size=hidden,
            intermediate_size=values.positive_int("intermediate_size"),
            num_hidden_layers=values.positive_int("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=values.optional_positive_int("num_key_value_heads") or heads,
            head_size=values.optional_positive_int("head_dim") or hidden // heads,
            vocab_size=values.positive_int("vocab_size"),
            max_position_embeddings=values.positive_int("max_position_embeddings"),
            norm_epsilon=values.positive_float("rms_norm_eps"),
            hidden_act=str(values.values["hidden_act"]),
            rotary_base=base,
            rotary_scaling=scaling,
            attention_bias=values.flag("attention_bias"),
            mlp_bias=values.flag("mlp_bias"),
            qk_layernorm=architecture.qk_layernorm,
            tie_word_embeddings=values.flag("tie_word_embeddings"),
            sliding_window=values.optional_positive_int("sliding_window")
            if architecture.windows == "all"
            else None,
            dtype=_dtype(config),
            quantized=quantized,
        )
        _refuse_unsupported_features(facts, architecture, where)
        if architecture.windows == "some":
            _refuse_sliding_layers(values, facts, where)
        return facts

    @classmethod
    def from_directory(cls, directory: Path) -> ModelFacts:
        """Reads ``directory/config.json``.

        Raises:
            SourceError: The file is missing or is not JSON; or see :meth:`from_config`.
            UnsupportedError: See :meth:`from_config`.
        """
        config = read_config(
            directory,
            SourceError,
            "A Hugging Face checkpoint is a directory with config.json and *.safetensors",
            "Point model.source at such a directory or at a Hub id",
        )
        return cls.from_config(config, str(directory / "config.json"), directory)


def _architecture(values: ConfigValues, where: str) -> Architecture:
    names = values.names("architectures") if values.values.get("architectures") else ["none"]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedError(
            f"architecture {names[0]} is not supported",
            where=where,
            fix=f"Supported architectures: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[names[0]]


def _rope(values: ConfigValues, where: str) -> tuple[float, dict[str, Any] | None]:
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
    name = "rope_parameters" if values.values.get("rope_parameters") else "rope_scaling"
    section = values.section(name)
    parameters = dict(section.values)
    in_section = parameters.pop("rope_theta", None) is not None
    base = (section if in_section else values).positive_float("rope_theta")
    kinds = [parameters.pop(key, None) for key in ("rope_type", "type")]
    kind = kinds[0] if kinds[1] is None else kinds[1]
    if None not in kinds and kinds[0] != kinds[1]:
        raise section.wrong("type", f"the same as rope_type, {kinds[0]!r}")
    partial = parameters.pop("partial_rotary_factor", values.values.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise UnsupportedError(
            f"partial_rotary_factor {partial} is not supported",
            where=where,
            why="Only whole heads are rotated here",
        )
    if kind is None and parameters:
        raise section.wrong("rope_type", f"one of {', '.join(ROPE_KEYS)}")
    kind = str(kind or "default")
    if kind not in ROPE_KEYS:
        raise UnsupportedError(
            f"rope scaling of type {kind} is not supported",
            where=where,
            why=f"Supported rope types: {', '.join(ROPE_KEYS)}",
            fix=_without_scaling(kind, name, section.values, values.values),
        )
    numbers = {key: section.positive_float(key) for key in ROPE_KEYS[kind]}
    if kind == "linear" and ORIGINAL_POSITIONS in parameters:
        section.positive_int(ORIGINAL_POSITIONS)
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise section.wrong("high_freq_factor", "larger than low_freq_factor")
    return base, None if kind == "default" else {"rope_type": kind, **parameters}


def _without_scaling(
    kind: str, name: str, section: Mapping[str, Any], config: Mapping[str, Any]
) -> str | None:
    """How a model may do without a scaling that is there for longer texts only."""
    if kind not in ("yarn", "dynamic"):
        return None
    # Both leave a text alone that is no longer than the model was trained on: dynamic scaling by
    # its formula, yarn where it was only added to config.json.
    positions = section.get(ORIGINAL_POSITIONS) or config.get("max_position_embeddings")
    condition = (
        ""
        if kind == "dynamic"
        else ", unless the model was trained with it (Qwen2.5 and Qwen3 were not)"
    )
    return (
        f"Remove {name} from config.json in a local copy of the model, and set "
        f"max_position_embeddings to {positions} there{condition}. Texts of up to {positions} "
        "tokens need no scaling; longer ones are then out of range and refused"
    )


def _dtype(config: Mapping[str, Any]) -> str | None:
    """``dtype`` of transformers 5, ``torch_dtype`` of 4; some files spell out the module."""
    named = config.get("dtype") or config.get("torch_dtype")
    return named.removeprefix("torch.") if isinstance(named, str) else None


def _refuse_sliding_layers(values: ConfigValues, facts: ModelFacts, where: str) -> None:
    """Refuses a window in Qwen's layers, which neither the graph nor the checkpoint has."""
    layers = facts.num_hidden_layers
    if values.values["layer_types"] is not None:
        types = values.names("layer_types")
        if len(types) != layers:
            raise values.wrong("layer_types", f"a list with one name for each of {layers} layers")
        sliding = sum(name != "full_attention" for name in types)
    elif values.flag("use_sliding_window") and values.optional_positive_int("sliding_window"):
        sliding = max(layers - values.index("max_window_layers"), 0)
    else:
        return
    if sliding:
        raise UnsupportedError(
            f"{sliding} of {layers} layers attend to a sliding window",
            where=where,
            why="A window in some layers is not part of the checkpoint, so every target would "
            "compute another model for longer texts",
            fix="If no sequence is to be longer than the window, set use_sliding_window to false "
            "and layer_types to null in the model's config.json",
        )


def _refuse_unsupported_features(facts: ModelFacts, architecture: Architecture, where: str) -> None:
    reasons = []
    if facts.hidden_act != "silu":
        reasons.append(f"hidden_act is {facts.hidden_act}, only silu is supported")
    if facts.mlp_bias:
        reasons.append("mlp_bias is true; biased MLP linears are not in the checkpoint contract")
    if facts.attention_bias and not architecture.attention_bias:
        reasons.append("attention_bias is true; biased o_proj is not in the checkpoint contract")
    if architecture.attention_bias and not facts.attention_bias:
        reasons.append("attention_bias is false, but the architecture always has these biases")
    if facts.num_attention_heads % facts.num_key_value_heads:
        reasons.append("num_attention_heads is not a multiple of num_key_value_heads")
    if facts.head_size % 2 or not facts.head_size:
        reasons.append(f"heads have {facts.head_size} features, which rope cannot rotate in pairs")
    if reasons:
        raise UnsupportedError(
            f"{facts.architecture} cannot be used",
            where=where,
            why="; ".join(reasons),
            fix="Use another model; editing config.json would change what this one computes",
        )
