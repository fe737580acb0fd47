"""Random Llamas of any size, written piece by piece, so that no more than a piece is in memory.

Widths are those of small real models; ``8`` has every size of Llama-3.1-8B, its vocabulary, rope
and bfloat16. The others take the vocabulary of the demo's tokenizer, which all of them come with,
so that decoder layers are nearly all of the parameters. The weights are normal, scaled by their
fan-in, behind norms near 1 with a few loud channels, as calibration finds them in trained models;
logits are finite and differ. The same shape is the same bytes each time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.rank_file import Described, RankFile

TOKENIZER = Path(__file__).resolve().parents[2] / "examples" / "tiny_llama" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_IDS = 1024
# Elements that are drawn at a time, and bytes of a file.
PIECE = 1 << 22
SHARD_BYTES = 2 << 30
LLAMA_3_ROPE = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
}
# A channel in so many is so much louder behind a norm.
LOUD_EVERY, LOUD = 97, 6.0
# Small enough for a perplexity near that of guessing, which is what random weights can do.
HEAD_SCALE = 0.7


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama.

    Attributes:
        hidden: Features of the hidden states.
        inner: Features inside the MLP.
        layers: Decoder layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocabulary: Rows of the embedding, and of the head.
        dtype: Of the files, ``float16`` or ``bfloat16``.
        rope: What config.json says of positions.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = TOKENIZER_IDS
    dtype: str = "float16"
    rope: tuple[tuple[str, Any], ...] = (
        ("rope_theta", 10000.0),
        ("max_position_embeddings", 2048),
    )

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, in the model's order."""
        wide, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, wide)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (wide,)
            for name, rows in (("q", wide), ("k", kv), ("v", kv), ("o", wide)):
                yield f"{at}.self_attn.{name}_proj.weight", (rows, wide)
            yield f"{at}.post_attention_layernorm.weight", (wide,)
            yield f"{at}.mlp.gate_proj.weight", (self.inner, wide)
            yield f"{at}.mlp.up_proj.weight", (self.inner, wide)
            yield f"{at}.mlp.down_proj.weight", (wide, self.inner)
        yield "model.norm.weight", (wide,)
        yield "lm_head.weight", (self.vocabulary, wide)


# By billions of parameters.
SHAPES = {
    "0.01": Shape(384, 1024, 6, 6, 2),
    "0.1": Shape(768, 2048, 16, 12, 4),
    "0.5": Shape(1536, 4096, 20, 24, 8),
    "1": Shape(2048, 5632, 24, 32, 8),
    "3": Shape(3072, 8192, 30, 24, 8),
    "8": Shape(4096, 14336, 32, 32, 8, 128256, "bfloat16", tuple(LLAMA_3_ROPE.items())),
}


def write_model(shape: Shape, folder: Path) -> None:
    """Writes a model with its tokenizer.

    Args:
        shape: Its sizes.
        folder: Made if it is not there; ``config.json`` is written last, so a folder that has one
            is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = shards(shape)
    where: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        name = name if len(files) > 1 else "model.safetensors"
        described = {tensor: Described(shape.dtype, sizes) for tensor, sizes in tensors.items()}
        with RankFile(folder / name, described) as file:
            for tensor, sizes in tensors.items():
                at = 0
                for values in pieces(tensor, sizes, shape):
                    stored = as_stored(values, shape.dtype)
                    file.write(tensor, stored, at)
                    at += stored.nbytes
        where |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": where}
        write_json(folder / "model.safetensors.index.json", index)
    for companion in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / companion, folder / companion)
    write_json(folder / "config.json", config_of(shape))


def shards(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    """Tensors by file, in order."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, sizes in shape.tensors():
        size = 2 * math.prod(sizes)
        if files[-1] and held + size > SHARD_BYTES:
            files.append({})
            held = 0
        files[-1][name] = sizes
        held += size
    return files


def pieces(name: str, sizes: tuple[int, ...], shape: Shape) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor's values, in float32, :data:`PIECE` of them at a time.

    What they are follows from name and sizes alone.
    """
    source = np.random.Generator(np.random.SFC64(list(name.encode())))
    count = math.prod(sizes)
    if len(sizes) == 1:
        values = 1 + 0.05 * source.standard_normal(count, dtype=np.float32)
        if name != "model.norm.weight":
            values[source.integers(LOUD_EVERY) :: LOUD_EVERY] *= LOUD
        yield values
        return
    scale = scale_of(name, sizes[1], shape.layers)
    for start in range(0, count, PIECE):
        drawn = source.standard_normal(min(PIECE, count - start), dtype=np.float32)
        drawn *= scale
        yield drawn


def scale_of(name: str, fan_in: int, layers: int) -> float:
    """The standard deviation of a matrix."""
    if name.startswith("model.embed_tokens"):
        return 1.0
    if name.startswith("lm_head"):
        return HEAD_SCALE / math.sqrt(fan_in)
    # What is added to the residual is smaller in deep models, which keeps it bounded.
    added = name.endswith(("o_proj.weight", "down_proj.weight"))
    return 1 / math.sqrt(fan_in) / (math.sqrt(2 * layers) if added else 1)


def as_stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Values as the file has them: float16, or the bits of bfloat16, rounded to the nearest."""
    if dtype == "float16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def config_of(shape: Shape) -> dict[str, Any]:
    """The model's ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": shape.dtype,
        **dict(shape.rope),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
