"""What the pipeline knows about each model architecture, whatever its size.

A new architecture is a new row. A row holds what transformers' classes of that name read from
``config.json``, so that a key which decides the arithmetic and which nothing here computes is
refused by name (:mod:`pipeline.models.config_keys`), whether the file has it or leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Width = Literal["hidden", "inner", "q", "kv", "head"]
"""The sizes that the tensors of a layer are made of; ``q`` and ``kv`` are heads x head size."""
Split = Literal["column", "row"]

# Sizes have defaults in transformers too, those of one certain model; a file without them is not
# taken for that model.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# What ``ModelFacts`` makes use of, or refuses with a reason of its own, in every architecture.
UNDERSTOOD = frozenset(
    (
        *SIZES,
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "hidden_act",
        "rope_theta",
        "rope_scaling",
        "partial_rotary_factor",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        "quantization_config",
    )
)
# The keys of a sliding window, which is computed for some architectures only.
WINDOW_KEYS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "all": frozenset(("sliding_window",)),
    "some": frozenset(("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")),
}


@dataclass(frozen=True)
class Norm:
    """One RMS norm of a decoder layer.

    Attributes:
        checkpoint: Its name in TensorRT-LLM's layer.
        source: Its name in transformers' layer.
        over: The width that it normalizes.
    """

    checkpoint: str
    source: str
    over: Width


@dataclass(frozen=True)
class Projection:
    """One linear of a decoder layer, as TensorRT-LLM fuses it.

    Attributes:
        checkpoint: Its name in TensorRT-LLM's layer.
        sources: The linears of transformers' layer whose rows it holds in order, and their widths.
        columns: The width of its input.
        split: What tensor parallelism cuts: ``column`` is the rows of the weight, ``row`` its
            columns.
    """

    checkpoint: str
    sources: tuple[tuple[str, Width], ...]
    columns: Width
    split: Split


PRE_NORMS = (
    Norm("input_layernorm", "input_layernorm", "hidden"),
    Norm("post_layernorm", "post_attention_layernorm", "hidden"),
)
QK_NORMS = (
    Norm("attention.q_layernorm", "self_attn.q_norm", "head"),
    Norm("attention.k_layernorm", "self_attn.k_norm", "head"),
)
QKV = "attention.qkv"
# gate_proj, to which the activation is applied, is ``fc``; up_proj is ``gate``.
PROJECTIONS = (
    Projection(
        QKV,
        (("self_attn.q_proj", "q"), ("self_attn.k_proj", "kv"), ("self_attn.v_proj", "kv")),
        "hidden",
        "column",
    ),
    Projection("attention.dense", (("self_attn.o_proj", "hidden"),), "q", "row"),
    Projection("mlp.fc", (("mlp.gate_proj", "inner"),), "hidden", "column"),
    Projection("mlp.gate", (("mlp.up_proj", "inner"),), "hidden", "column"),
    Projection("mlp.proj", (("mlp.down_proj", "hidden"),), "inner", "row"),
)
SHARED_INPUTS = ((QKV,), ("attention.dense",), ("mlp.fc", "mlp.gate"), ("mlp.proj",))
"""The linears of a layer in the order in which they are computed; those of one line read the same
input."""


@dataclass(frozen=True)
class TensorRtLlm:
    """What TensorRT-LLM 1.2 fixes for an architecture.

    Attributes:
        model_class: Its class for the architecture, in ``MODEL_MAP`` of tensorrt_llm/models/
            __init__.py; None where it has none, and so builds no engine.
        switches: Keys of the checkpoint's ``config.json`` by which the class of the architecture
            chooses its arithmetic, and their values.
        constants: Keys that it needs and makes no use of.
        required: Keys that it has a default for which may not be the model's.
        reduce_fusion: Whether ``reduce_fusion`` is written for it.
        smoothquant_note: What is known of INT8 SmoothQuant's accuracy: what, why and what to do.
        fp8_kv_cache_note: The same of an FP8 KV cache.
        qk_norm_epsilon: The epsilon of the norms of queries and keys where it is not the model's:
            the default of ``Attention`` in ``tensorrt_llm/layers/attention.py``, to which
            ``models/qwen/model.py`` passes none.
    """

    model_class: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    reduce_fusion: bool = False
    smoothquant_note: tuple[str, str, str] | None = None
    fp8_kv_cache_note: tuple[str, str, str] | None = None
    qk_norm_epsilon: float | None = None


@dataclass(frozen=True)
class Gguf:
    """What llama.cpp makes of an architecture.

    Attributes:
        name: ``general.architecture`` of a GGUF file.
        in_pairs: Whether it rotates neighbouring rows of q and k, where Hugging Face rotates those
            half a head apart.
        seventy: What makes it call a model of 80 layers 70B, which its mixtures ask for:
            ``grouped`` is fewer heads of keys and values than of queries; None is nothing.
    """

    name: str
    in_pairs: bool
    seventy: Literal["grouped", "always"] | None = None


@dataclass(frozen=True)
class Architecture:
    """What one Hugging Face architecture fixes, whatever its size.

    Attributes:
        name: The entry of ``architectures`` in ``config.json``.
        model_type: Its ``model_type``, by which transformers chooses the classes.
        tokenizer_class: What AutoTokenizer takes where ``tokenizer_config.json`` names no class;
            empty where it takes none.
        reads: Every key that transformers' configuration and modeling classes of this type read
            beside the shared ones, and what it takes for one that ``config.json`` leaves out. Null
            has the same meaning as in the file: to be derived from other keys, or none.
        fixed: Those of them that nothing here computes, and the values with which the class
            computes a model that is supported.
        attention_bias: Whether q, k and v have biases; the one that is supported.
        windows: Which layers ``sliding_window`` applies to.
        norms: The norms of a layer.
        projections: The linears of a layer.
        decoder_type: What ModelOpt's export is to take it for. Its manual export knows no Qwen;
            Qwen2 and Qwen3 have Llama's module tree, biases and q/k norms are found by name.
        tensorrt_llm: What TensorRT-LLM fixes.
        gguf: What llama.cpp makes of it; None where no GGUF file is written.
    """

    name: str
    model_type: str
    tokenizer_class: str
    reads: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    attention_bias: bool = False
    windows: Literal["none", "all", "some"] = "none"
    norms: tuple[Norm, ...] = PRE_NORMS
    projections: tuple[Projection, ...] = PROJECTIONS
    decoder_type: str = "llama"
    tensorrt_llm: TensorRtLlm = TensorRtLlm()
    gguf: Gguf | None = None

    def __post_init__(self) -> None:
        """Refuses a row that claims a window of a class that does not know one."""
        unread = sorted(WINDOW_KEYS[self.windows] - self.reads.keys())
        if unread:
            raise ValueError(f"{self.name} reads no {', '.join(unread)}, which its windows need")

    @property
    def qk_layernorm(self) -> bool:
        """Whether each q and k head is normalized before the rotation."""
        return set(QK_NORMS) <= set(self.norms)

    @property
    def defaults(self) -> dict[str, Any]:
        """What a key stands for that ``config.json`` leaves out; the sizes have to be there."""
        # Of classes that do not name them: tied is what PretrainedConfig says then.
        unread: dict[str, Any] = {
            "attention_bias": self.attention_bias,
            "mlp_bias": False,
            "head_dim": None,
            "tie_word_embeddings": True,
        }
        return unread | {key: value for key, value in self.reads.items() if key not in SIZES}

    @property
    def understood(self) -> frozenset[str]:
        """The keys that decide the arithmetic here."""
        return UNDERSTOOD | WINDOW_KEYS[self.windows]


_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "head_dim": None,
}
_MISTRAL: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": 4096,
    "attention_dropout": 0.0,
}
_QWEN2: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "attention_dropout": 0.0,
    "pad_token_id": None,
}
_QWEN3: dict[str, Any] = _QWEN2 | {"head_dim": 128, "attention_bias": False}

# TensorRT-LLM's QWenConfig reads seq_length for its log-n attention, which Qwen2 and later do not
# use; 8192 is the default of Qwen's own configuration.
_QWEN_CONSTANTS = {"seq_length": 8192}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "LlamaForCausalLM",
            "llama",
            "LlamaTokenizer",
            _LLAMA,
            tensorrt_llm=TensorRtLlm(
                "LLaMAForCausalLM",
                reduce_fusion=True,
                smoothquant_note=(
                    "INT8 SmoothQuant of Llama needs a close look at the gate",
                    "ModelOpt's support matrix does not list it for Llama 3",
                    "Let quantize.search choose quantize.smoothquant_alpha",
                ),
            ),
            gguf=Gguf("llama", in_pairs=True, seventy="grouped"),
        ),
        Architecture(
            "MistralForCausalLM",
            "mistral",
            "LlamaTokenizer",
            _MISTRAL,
            windows="all",
            tensorrt_llm=TensorRtLlm("LLaMAForCausalLM"),
            gguf=Gguf("llama", in_pairs=True, seventy="grouped"),
        ),
        Architecture(
            "Qwen2ForCausalLM",
            "qwen2",
            "Qwen2Tokenizer",
            _QWEN2,
            # Not a key of Qwen2's: its q, k and v have biases whatever the file says.
            attention_bias=True,
            windows="some",
            tensorrt_llm=TensorRtLlm(
                "QWenForCausalLM",
                {"qwen_type": "qwen2"},
                _QWEN_CONSTANTS,
                ("attn_bias",),
                fp8_kv_cache_note=(
                    "an FP8 KV cache is reported to break Qwen2.5",
                    "In NVIDIA/TensorRT-LLM#4218 its keys were large; a layer has one scale",
                    "Set quantize.kv_cache to null, unless the gate and the engine's text are good",
                ),
            ),
            gguf=Gguf("qwen2", in_pairs=False, seventy="always"),
        ),
        Architecture(
            "Qwen3ForCausalLM",
            "qwen3",
            "Qwen2Tokenizer",
            _QWEN3,
            windows="some",
            norms=PRE_NORMS + QK_NORMS,
            tensorrt_llm=TensorRtLlm(
                "QWenForCausalLM",
                {"qwen_type": "qwen3"},
                _QWEN_CONSTANTS,
                ("attn_bias",),
                qk_norm_epsilon=1e-5,
            ),
            gguf=Gguf("qwen3", in_pairs=False),
        ),
    )
}
