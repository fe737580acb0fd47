"""Loads a checkpoint as TensorRT-LLM 1.2 does, as far as names and shapes go.

Written from the description of the checkpoint format alone and without the pipeline's own
validator, so that the two can be held against each other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Log = Callable[[str, str], None]

QUANTIZATION_DEFAULTS: dict[str, Any] = {
    "quant_algo": None,
    "kv_cache_quant_algo": None,
    "group_size": 128,
    "smoothquant_val": 0.5,
    "clamp_val": None,
    "use_meta_recipe": False,
    "has_zero_point": False,
    "pre_quant_scale": False,
    "exclude_modules": None,
    "mamba_ssm_cache_dtype": None,
}
DEFAULT_EXCLUDES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
ALGOS = (None, "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "FP8")
MAPPING_KEYS = {
    "world_size",
    "gpus_per_node",
    "cp_size",
    "tp_size",
    "pp_size",
    "moe_tp_size",
    "moe_ep_size",
    "moe_cluster_size",
    "attn_tp_size",
    "attn_cp_size",
    "cp_config",
    "enable_attention_dp",
    "enable_lm_head_tp_in_adp",
}
GENERIC_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "logits_dtype": "float32",
    "norm_epsilon": 1e-5,
    "position_embedding_type": "learned_absolute",
    "max_position_embeddings": None,
    "rotary_embedding_dim": None,
    "num_key_value_heads": None,
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
    "head_size": None,
    "qk_layernorm": False,
    "runtime_defaults": None,
}
REQUIRED = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads")
LLAMA_KEYS: dict[str, Any] = {
    "mlp_bias": False,
    "attn_bias": False,
    "rotary_base": 10000.0,
    "rotary_scaling": None,
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
    "moe": None,
    "remove_duplicated_kv_heads": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}
# What LLaMAConfig sets beside its arguments, and writes.
LLAMA_ATTRIBUTES: dict[str, Any] = {
    "fc_after_embed": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "layer_idx_offset": 0,
    "has_partial_lora_mask": False,
}
QWEN_KEYS: dict[str, Any] = {
    "mlp_bias": False,
    "attn_bias": True,
    "rotary_base": 10000.0,
    "rotary_scaling": None,
    "disable_weight_only_quant_plugin": False,
    "use_logn_attn": False,
    "moe": None,
    "num_labels": 1,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": ("LLaMAConfig", LLAMA_KEYS, LLAMA_ATTRIBUTES),
    "MistralForCausalLM": ("LLaMAConfig", LLAMA_KEYS, LLAMA_ATTRIBUTES),
    "Qwen2ForCausalLM": ("QWenConfig", QWEN_KEYS, {}),
    "Qwen3ForCausalLM": ("QWenConfig", QWEN_KEYS, {}),
}
ROPE_SCALINGS = ("none", "linear", "dynamic", "longrope", "llama3", "yarn", "mrope")


def read_config(directory: Path, log: Log) -> dict[str, Any]:
    """``config.json`` with every default filled in.

    Raises:
        TypeError: A key is unknown where keys are strict, or a required one is missing.
        ValueError: The mapping does not multiply, or rope is scaled in a way that it does not know.
    """
    given = json.loads((directory / "config.json").read_text())
    architecture = given.get("architecture")
    assert architecture in FAMILIES, f"Unsupported model architecture: {architecture}"
    family, own, attributes = FAMILIES[architecture]
    for key in REQUIRED:
        if key not in given:
            message = f"{family}.__init__() missing 1 required keyword-only argument: '{key}'"
            raise TypeError(message)
    quantization = _strict("QuantConfig", given.get("quantization") or {}, QUANTIZATION_DEFAULTS)
    mapping = dict(given.get("mapping") or {})
    mapping.pop("rank", None)
    _strict("Mapping", mapping, dict.fromkeys(MAPPING_KEYS))
    tp, pp, cp = (int(mapping.get(f"{name}_size") or 1) for name in ("tp", "pp", "cp"))
    world_size = int(mapping.get("world_size") or 1)
    if world_size != tp * pp * cp:
        message = (
            "world_size must equal to tp_size * pp_size * cp_size, "
            f"but got {world_size} != {tp} * {pp} * {cp}"
        )
        raise ValueError(message)
    config = {**GENERIC_DEFAULTS, **attributes, **own, **given}
    for key in given:
        if key not in {*GENERIC_DEFAULTS, *own, *REQUIRED, "vocab_size", "intermediate_size"} and (
            key not in ("mapping", "quantization")
        ):
            log("W", f"Implicitly setting {family}.{key} = {given[key]}")
    config["mapping"] = {
        "world_size": world_size,
        "gpus_per_node": 8,
        "cp_size": cp,
        "tp_size": tp,
        "pp_size": pp,
        "moe_tp_size": tp,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "attn_tp_size": tp,
        "attn_cp_size": cp,
        "cp_config": {},
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
        **{key: value for key, value in mapping.items() if key not in ("tp_size", "pp_size")},
    }
    config["quantization"] = quantization
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    config["head_size"] = (
        config["head_size"] or config["hidden_size"] // config["num_attention_heads"]
    )
    config.setdefault("intermediate_size", 4 * config["hidden_size"])
    config["rotary_embedding_dim"] = config["rotary_embedding_dim"] or config["head_size"]
    if family == "QWenConfig":
        for key in ("qwen_type", "seq_length"):
            if key not in given:
                message = f"'{family}' object has no attribute '{key}'"
                raise AttributeError(message)
    scaling = config["rotary_scaling"]
    if scaling is not None:
        # The attention layers ask for the old name of the key first.
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ROPE_SCALINGS:
            raise ValueError(f"Unsupported rotary scaling type: {kind}")
    return config


def _strict(name: str, given: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in known:
            message = f"{name}.__init__() got an unexpected keyword argument '{key}'"
            raise TypeError(message)
    return {**known, **given}


def read_header(path: Path) -> dict[str, tuple[str, Shape]]:
    """Dtype and shape of every tensor of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def load(directory: Path, config: dict[str, Any], rank: int, log: Log) -> None:
    """Loads one rank.

    Raises:
        AssertionError: There is no such file.
        RuntimeError: A tensor is missing or has another shape.
    """
    path = directory / f"rank{rank}.safetensors"
    assert path.is_file(), f"assert os.path.isfile(weights_path): {path}"
    found = read_header(path)
    # Exports for older loaders hold both; the loader merges them by max into the common scale.
    for name in [name for name in found if name.endswith("attention.k_cache_scaling_factor")]:
        values = name.replace("k_cache", "v_cache")
        assert values in found, f"{values} not found"
        del found[name], found[values]
        found.setdefault(name.replace("k_cache", "kv_cache"), ("F32", (1,)))
    wanted = parameters(config, rank)
    if "lm_head.weight" not in found and "transformer.vocab_embedding.weight" in found:
        wanted.pop("lm_head.weight", None)
    missing = wanted.keys() - found.keys()
    if missing:
        message = f"Required but not provided tensors:{missing}"
        raise RuntimeError(message)
    extra = found.keys() - wanted.keys()
    extra |= {name for name in found if _is_merged(config, name)}
    if extra:
        log("W", f"Provided but not required tensors: {extra}")
    for name, stored in wanted.items():
        dtype, given = found[name]
        # Only int8 is interleaved on loading; other bytes keep the shape of the file.
        foreign = _is_packed(config, name) and dtype != "I8"
        shape = (stored[1], stored[0] // 2) if foreign else stored
        # A scalar that only makes other scales is taken without dimensions too.
        scalar = shape == (1,) and name.endswith("activation_scaling_factor") and given == ()
        if given != shape and not scalar:
            message = (
                "Encounter error 'The value updated is not the same shape as the original. "
                f"Updated: {given}, original: {shape}' for parameter '{name}'"
            )
            raise RuntimeError(message)


def parameters(config: dict[str, Any], rank: int) -> dict[str, Shape]:
    """Names and shapes, as in the file, of a rank's parameters.

    Layers are numbered from 0 on every pipeline rank.
    """
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    pp_rank = rank // tp
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    inner, head = config["intermediate_size"], config["head_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    padded_vocab = -(-vocab // tp) * tp
    assert config["num_hidden_layers"] % pp == 0
    tensors: dict[str, Shape] = {}
    if pp_rank == 0:
        rows, columns = vocab, hidden
        if config["use_parallel_embedding"]:
            if config["embedding_sharding_dim"] == 0:
                rows = padded_vocab // tp
            else:
                columns = hidden // tp
        tensors["transformer.vocab_embedding.weight"] = (rows, columns)
    qkv = (heads + 2 * max(kv_heads, tp)) * head
    linears = (
        ("attention.qkv", qkv, hidden, True),
        ("attention.dense", hidden, heads * head, False),
        ("mlp.fc", inner, hidden, True),
        ("mlp.gate", inner, hidden, True),
        ("mlp.proj", hidden, inner, False),
    )
    for layer in range(config["num_hidden_layers"] // pp):
        prefix = f"transformer.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = (hidden,)
        tensors[f"{prefix}post_layernorm.weight"] = (hidden,)
        if config.get("qwen_type") in ("qwen3", "qwen3_moe"):
            tensors[f"{prefix}attention.q_layernorm.weight"] = (head,)
            tensors[f"{prefix}attention.k_layernorm.weight"] = (head,)
        for name, out_features, in_features, column in linears:
            out, split = out_features, "column" if column else "row"
            tensors.update(_linear(config, prefix + name, (out, in_features), split))
        if config["attn_bias"]:
            tensors[f"{prefix}attention.qkv.bias"] = (qkv // tp,)
        if config["quantization"]["kv_cache_quant_algo"]:
            tensors[f"{prefix}attention.kv_cache_scaling_factor"] = (1,)
    if pp_rank == pp - 1:
        tensors["transformer.ln_f.weight"] = (hidden,)
        tensors.update(_linear(config, "lm_head", (padded_vocab, hidden), "column"))
    return tensors


def _linear(
    config: dict[str, Any], name: str, features: tuple[int, int], split: str
) -> dict[str, Shape]:
    (rows, columns), tp = features, config["mapping"]["tp_size"]
    quantization = config["quantization"]
    algo = _algo(config, name)
    if algo in ("W4A16_AWQ", "W4A8_AWQ"):
        least = 64 if algo == "W4A16_AWQ" else 128
        if algo == "W4A8_AWQ" and quantization["group_size"] == 64:
            raise NotImplementedError("W4A8_AWQ with group_size = 64 is not implemented yet!")
        unit = max(least, quantization["group_size"]) * tp
        rows, columns = -(-rows // unit) * unit, -(-columns // unit) * unit
    if split == "column":
        rows //= tp
    else:
        columns //= tp
    if algo is None:
        return {f"{name}.weight": (rows, columns)}
    if algo == "FP8":
        return {
            f"{name}.weight": (rows, columns),
            f"{name}.weights_scaling_factor": (1,),
            f"{name}.activation_scaling_factor": (1,),
        }
    if algo == "W8A8_SQ_PER_CHANNEL":
        return {
            f"{name}.weight": (rows, columns),
            f"{name}.weights_scaling_factor": (rows,),
            f"{name}.activation_scaling_factor": (1,),
            f"{name}.prequant_scaling_factor": (columns,),
        }
    tensors = {
        f"{name}.weight": (rows // 2, columns),
        f"{name}.weights_scaling_factor": (rows, columns // quantization["group_size"]),
    }
    if quantization["pre_quant_scale"]:
        tensors[f"{name}.prequant_scaling_factor"] = (columns,)
    if quantization["has_zero_point"]:
        # The layer's own shape: preprocess_perlayer_weights turns the scales round, and not these.
        tensors[f"{name}.zero"] = (columns // quantization["group_size"], rows)
    if algo == "W4A8_AWQ":
        tensors[f"{name}.activation_scaling_factor"] = (1,)
        tensors[f"{name}.weights_scaling_factor_2"] = (1,)
    return tensors


def _algo(config: dict[str, Any], name: str) -> str | None:
    quantization = config["quantization"]
    algo = quantization["quant_algo"]
    algo = None if algo == "NO_QUANT" else algo
    if algo not in ALGOS:
        message = f"this double of trtllm-build does not know quant_algo {algo}"
        raise NotImplementedError(message)
    excludes = quantization["exclude_modules"]
    patterns = DEFAULT_EXCLUDES if excludes is None else excludes
    return None if any(fnmatch(name, pattern) for pattern in patterns) else algo


def _is_merged(config: dict[str, Any], name: str) -> bool:
    """Whether the loader has multiplied a scale into others and its layer has no place for it.

    Row-parallel layers have one, in case that their input is FP8.
    """
    module, _, kind = name.rpartition(".")
    column = module.endswith(("attention.qkv", "mlp.fc", "mlp.gate"))
    return column and kind == "activation_scaling_factor" and _algo(config, module) == "W4A8_AWQ"


def _is_packed(config: dict[str, Any], name: str) -> bool:
    module, _, kind = name.rpartition(".")
    if kind != "weight" or ".layers." not in name or "norm" in module:
        return False
    return _algo(config, module) in ("W4A16_AWQ", "W4A8_AWQ")
