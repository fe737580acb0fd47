"""One LoRA adapter as Hugging Face PEFT saves it, and what keeps TensorRT-LLM from serving it.

Upstream's ``examples/hf_lora_convert.py`` reads rank and alpha of the whole adapter, leaves out
every tensor whose name it does not know, and looks at no other key; each of these would change the
text without a word, so each is refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models.facts import ModelFacts
from pipeline.reading.files import way_out
from pipeline.reading.json_text import read_json
from pipeline.recipe.tensorrt import LoraModule
from pipeline.source.safetensors_header import BrokenHeaderError, StoredTensor, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# hf_modules_to_trtllm_modules of examples/hf_lora_convert.py, those of this project's models.
MODULES: Mapping[str, LoraModule] = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "down_proj": "mlp_4h_to_h",
}
DTYPES = ("F32", "F16", "BF16")
_NAME = re.compile(r".*\.layers\.([0-9]+)\.(?:self_attn|mlp)\.([a-z_]+)\.lora_(A|B)\.weight")
# Keys that change what an adapter computes, and the values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "fan_in_fan_out": (False,),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
}


class AdapterError(ValueError):
    """An adapter that cannot be served; the text is the reason, without its full stop."""


@dataclass(frozen=True)
class Pair:
    """The two matrices of one linear: ``scale * B @ A`` is added to its weight.

    Attributes:
        module: The linear by TensorRT-LLM's name.
        source: The linear by Hugging Face's name.
        layer: Number of the decoder layer.
        a: ``[rank, in_features]``.
        b: ``[out_features, rank]``.
    """

    module: LoraModule
    source: str
    layer: int
    a: StoredTensor
    b: StoredTensor


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
        weights: Its file of tensors.
        rank: Of every pair.
        scale: What ``B @ A`` is multiplied by.
        pairs: In the order of layers, then of modules.
    """

    weights: Path
    rank: int
    scale: float
    pairs: tuple[Pair, ...]

    @property
    def modules(self) -> set[LoraModule]:
        """The linears that it changes in some layer."""
        return {pair.module for pair in self.pairs}


def read_adapter(folder: Path) -> Adapter:
    """Reads the configuration and the header of the tensors; no tensor is loaded.

    Args:
        folder: With :data:`CONFIG` and :data:`WEIGHTS`.

    Raises:
        AdapterError: A file is missing or damaged, or says what TensorRT-LLM does not compute.
    """
    for name in (CONFIG, WEIGHTS):
        if outside := way_out(folder / name, folder):
            raise AdapterError(f"{folder / name} is a link out of its folder, to {outside}")
    config = _config(folder / CONFIG)
    rank, scale = _scale(config)
    try:
        tensors = read_header(folder / WEIGHTS)
    except OSError as error:
        raise AdapterError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from error
    except BrokenHeaderError as error:
        raise AdapterError(f"{folder / WEIGHTS} is not complete: {error}") from error
    return Adapter(folder / WEIGHTS, rank, scale, _pairs(tensors, rank))


def misfits(adapter: Adapter, model: ModelFacts) -> Iterator[str]:
    """Tells where an adapter is not one of the model, in one sentence for each kind of linear."""
    shapes = {
        source.rpartition(".")[2]: (rows, linear.in_features)
        for linear in model.linears
        for source, rows in linear.source
    }
    seen = set()
    for pair in adapter.pairs:
        found, wanted = (pair.b.shape[0], pair.a.shape[1]), shapes.get(pair.source)
        if found != wanted and pair.source not in seen:
            seen.add(pair.source)
            theirs = f"{wanted[1]} to {wanted[0]} features" if wanted else "nothing of that name"
            yield f"its {pair.source} maps {found[1]} to {found[0]} features, the model's {theirs}"
    last = max(pair.layer for pair in adapter.pairs)
    if last >= model.num_hidden_layers:
        yield f"it has a layer {last}, and the model's are 0 to {model.num_hidden_layers - 1}"


def _config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is not the configuration of a LoRA adapter (peft_type LORA)")
    for key, neutral in _NEUTRAL.items():
        value = content.get(key)
        if value is not None and value not in neutral:
            raise AdapterError(f"{path} has {key} {value!r}, which TensorRT-LLM does not compute")
    return content


def _scale(config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and factor, by the rule of ``convert_hf_model`` in examples/hf_lora_convert.py."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{CONFIG} has r {rank!r}, which is not a rank")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError(f"{CONFIG} has lora_alpha {alpha!r}, which is not a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(tensors: Mapping[str, StoredTensor], rank: int) -> tuple[Pair, ...]:
    halves: dict[tuple[int, str], dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in MODULES:
            known = ", ".join(MODULES)
            raise AdapterError(f"it changes {name}; TensorRT-LLM's LoRA is for {known}")
        if tensor.dtype not in DTYPES:
            raise AdapterError(f"{name} is {tensor.dtype}, not one of {', '.join(DTYPES)}")
        place = halves.setdefault((int(match[1]), match[2]), {})
        if match[3] in place:
            raise AdapterError(f"{name} is there under two names")
        place[match[3]] = tensor
    if not halves:
        raise AdapterError("it holds no tensors")
    order = list(MODULES)
    keys = sorted(halves, key=lambda key: (key[0], order.index(key[1])))
    return tuple(_pair(layer, source, halves[layer, source], rank) for layer, source in keys)


def _pair(layer: int, source: str, half: Mapping[str, StoredTensor], rank: int) -> Pair:
    where = f"{source} of layer {layer}"
    if len(half) != 2:
        raise AdapterError(f"{where} has lora_{next(iter(half))} alone")
    a, b = half["A"], half["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise AdapterError(
            f"{where} has the shapes {list(a.shape)} and {list(b.shape)}, not [{rank}, in] and "
            f"[out, {rank}]"
        )
    return Pair(MODULES[source], source, layer, a, b)
