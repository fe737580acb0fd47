"""Quantized folders as other libraries write them, made from a layout that is written out here.

Nothing of ``pipeline`` makes them, so that what reads them is judged by something else. Values are
random codes and scales; each folder comes with the weights that they stand for, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCAB, LAYERS = 128, 256, 2, 1, 64, 64, 2
GROUP = 64
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
# Linears that read the same input, so that act-order sorts it in one way for them all.
SHARED = {"self_attn.k_proj": "self_attn.q_proj", "self_attn.v_proj": "self_attn.q_proj"}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float16",
}


@dataclass
class Made:
    """A folder, and what its linears stand for."""

    path: Path
    weights: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    config: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Writes it again, with whatever was changed."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.tensors.items()}
        save_file(arrays, self.path / "model.safetensors", {"format": "pt"})
        (self.path / "config.json").write_text(json.dumps(self.config))


Linear = Callable[[str, int, int, np.random.Generator], tuple[dict[str, np.ndarray], np.ndarray]]


def write(path: Path, quantization: dict[str, Any] | None, linear: Linear) -> Made:
    """A whole Llama, its linears as ``linear`` makes them, with a tokenizer of words."""
    random = np.random.default_rng(3)

    def plain(*shape: int) -> np.ndarray:
        return random.normal(scale=0.5, size=shape).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": plain(VOCAB, HIDDEN),
        "model.norm.weight": 1 + plain(HIDDEN) / 4,
        "lm_head.weight": plain(VOCAB, HIDDEN),
    }
    weights = {}
    for index in range(LAYERS):
        prefix = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + plain(HIDDEN) / 4
        for name, (rows, columns) in LINEARS.items():
            made, weight = linear(f"{prefix}{name}", rows, columns, random)
            tensors |= {f"{prefix}{name}.{end}": array for end, array in made.items()}
            weights[f"{prefix}{name}"] = weight
    config = {**CONFIG, **({"quantization_config": quantization} if quantization else {})}
    path.mkdir(parents=True, exist_ok=True)
    folder = Made(path, weights, tensors, config)
    folder.write()
    _tokenizer(path)
    return folder


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0} | {f"w{number}": number for number in range(1, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(path)


def words_of(codes: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Packs codes of 0 to 15 along the last axis: code i of eight into nibble ``order[i]``."""
    grouped = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    packed = np.zeros(grouped.shape[:-1], np.uint32)
    for place, nibble in enumerate(order):
        packed |= grouped[..., place] << (4 * nibble)
    return packed.view(np.int32)


def gptq(
    path: Path,
    *,
    sym: bool = True,
    v2: bool = False,
    act_order: bool = False,
    group: int = GROUP,
    labelled: str | None = None,
) -> Made:
    """As AutoGPTQ packs: eight inputs per word, zero points minus one in the first layout."""
    orders: dict[str, np.ndarray] = {}

    def linear(
        name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        size = columns if group == -1 else group
        groups = columns // size
        codes = random.integers(0, 16, (rows, columns))
        first = 0 if v2 else 1
        zeros = random.integers(first, first + 16, (rows, groups))
        if sym:
            zeros[:] = 8
        scales = random.uniform(0.004, 0.02, (rows, groups)).astype(np.float16)
        index = np.arange(columns) // size
        if act_order:
            index = _order(orders, name, random, index)
        weight = (codes - zeros[:, index]).astype(np.float32) * scales[:, index].astype(np.float32)
        return {
            "qweight": _down(codes),
            "qzeros": words_of(zeros.T - (0 if v2 else 1)),
            "scales": scales.T,
            "g_idx": index.astype(np.int32),
        }, weight

    label = labelled or ("gptq_v2" if v2 else "gptq")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": act_order}
    settings |= {"sym": sym, "checkpoint_format": label, "lm_head": False}
    return write(path, settings, linear)


def _down(codes: np.ndarray) -> np.ndarray:
    """[N, K] to int32 [K/8, N]: eight consecutive inputs in a word."""
    return words_of(codes).T


def awq(path: Path, *, zero_points: bool = True) -> Made:
    """As AutoAWQ's GEMM packs: eight outputs per word, output i in nibble (0 4 1 5 2 6 3 7)[i]."""
    order = (0, 4, 1, 5, 2, 6, 3, 7)

    def linear(
        _name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        groups = columns // GROUP
        codes = random.integers(0, 16, (rows, columns))
        zeros = (
            random.integers(0, 16, (rows, groups)) if zero_points else np.full((rows, groups), 8)
        )
        scales = random.uniform(0.004, 0.02, (rows, groups)).astype(np.float16)
        index = np.arange(columns) // GROUP
        weight = (codes - zeros[:, index]).astype(np.float32) * scales[:, index].astype(np.float32)
        return {
            "qweight": words_of(codes.T, order),
            "qzeros": words_of(zeros.T, order),
            "scales": scales.T,
        }, weight

    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return write(path, settings | {"zero_point": zero_points}, linear)


def compressed_int4(path: Path, *, symmetric: bool = True, channel: bool = False) -> Made:
    """W4A16 by compressed-tensors' own ``pack-quantized`` compressor, and what it decompresses."""
    import torch
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = {"strategy": "channel"} if channel else {"strategy": "group", "group_size": GROUP}
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "dynamic": False, **strategy}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))

    def linear(
        _name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        groups = 1 if channel else columns // GROUP
        state = {
            "weight": torch.from_numpy(random.normal(scale=0.03, size=(rows, columns))).half(),
            "weight_scale": torch.from_numpy(random.uniform(0.004, 0.02, (rows, groups))).half(),
        }
        if not symmetric:
            zeros = random.integers(-8, 8, (rows, groups)).astype(np.int8)
            state["weight_zero_point"] = torch.from_numpy(zeros)
        packed = PackedQuantizationCompressor.compress(state, scheme)
        # It multiplies in the dtype of the scales: in float32 nothing is rounded twice.
        exact = {**packed, "weight_scale": packed["weight_scale"].float()}
        weight = PackedQuantizationCompressor.decompress(exact, scheme)["weight"].numpy()
        return {key: tensor.numpy() for key, tensor in packed.items()}, weight

    return write(path, _compressed_config("pack-quantized", weights, None), linear)


def compressed_in_order(path: Path) -> Made:
    """Act-order as older releases of compressed-tensors wrote it, which the library reads no more.

    Codes stay in the order of the inputs; ``weight_g_idx`` says the group of each.
    """
    orders: dict[str, np.ndarray] = {}

    def linear(
        name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes = random.integers(-8, 8, (rows, columns))
        scales = random.uniform(0.004, 0.02, (rows, columns // GROUP)).astype(np.float16)
        index = _order(orders, name, random, np.arange(columns) // GROUP)
        return {
            "weight_packed": words_of(codes + 8),
            "weight_scale": scales,
            "weight_shape": np.array([rows, columns], np.int64),
            "weight_g_idx": index.astype(np.int32),
        }, codes.astype(np.float32) * scales[:, index].astype(np.float32)

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    weights |= {"group_size": GROUP, "actorder": "group", "dynamic": False}
    return write(path, _compressed_config("pack-quantized", weights, None), linear)


def _order(
    orders: dict[str, np.ndarray], name: str, random: np.random.Generator, index: np.ndarray
) -> np.ndarray:
    """An order of inputs, one for all linears that read the same."""
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    return orders.setdefault(f"{layer}.{SHARED.get(kind, kind)}", random.permutation(index))


def compressed_int8(path: Path, *, each_its_own: bool = False, **inputs: Any) -> Made:
    """W8A8 with static activations, by compressed-tensors' ``int-quantized`` compressor."""
    import torch
    from compressed_tensors.compressors import IntQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    static = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    static |= {"dynamic": False, **inputs}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))

    def linear(
        name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        weight = torch.from_numpy(random.normal(scale=0.05, size=(rows, columns))).half()
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        state = {"weight": weight, "weight_scale": scale}
        packed = IntQuantizationCompressor.compress(state, scheme)
        plain = IntQuantizationCompressor.decompress(dict(packed), scheme)["weight"].numpy()
        step = 0.02 + (0.001 * len(name) if each_its_own and "k_proj" in name else 0)
        found = {key: tensor.numpy() for key, tensor in packed.items()}
        return found | {"input_scale": np.array([step], np.float32)}, plain

    return write(path, _compressed_config("int-quantized", weights, static), linear)


def _compressed_config(
    layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def nf4(path: Path, *, double: bool = False) -> Made:
    """NF4 by bitsandbytes' own functions, and what they dequantize."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def linear(
        _name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        weight = torch.from_numpy(random.normal(scale=0.05, size=(rows, columns))).float()
        packed, state = quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type="nf4"
        )
        described = state.as_dict(packed=True)
        found = {f"weight.{end}": array.numpy() for end, array in described.items()}
        plain = dequantize_4bit(packed, state).numpy()
        return {"weight": packed.numpy(), **found}, plain

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    settings |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    settings |= {"bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "float32"}
    return write(path, settings, linear)


def llm_int8(path: Path) -> Made:
    """LLM.int8 by bitsandbytes' own functions, and what they dequantize."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    def linear(
        _name: str, rows: int, columns: int, random: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        weight = torch.from_numpy(random.normal(scale=0.05, size=(rows, columns))).half()
        codes, largest, _ = int8_vectorwise_quant(weight)
        plain = int8_vectorwise_dequant(codes, largest).float().numpy()
        found = {"weight": codes.numpy(), "SCB": largest.numpy()}
        return found | {"weight_format": np.array(0, np.uint8)}, plain

    return write(path, {"quant_method": "bitsandbytes", "load_in_8bit": True}, linear)
