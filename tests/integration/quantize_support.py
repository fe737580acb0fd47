"""Small random Hugging Face models, and the quantize stage run on them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.progress import Progress, Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages.base import StageContext
from pipeline.stages.quantize import STAGE
from pipeline.store.artifact import Artifact

ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3")
FORMATS = ("float16", "int8_sq", "int4_awq", "fp8", "w4a8_awq")
KV_CACHES = {"int8_sq": "int8", "fp8": "fp8"}
# Neither a multiple of 64, to which AWQ pads, nor of two ranks.
VOCAB = 501
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "Llama": {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE, "rms_norm_eps": 1e-5},
    "Mistral": {"rope_theta": 1e6, "sliding_window": 64},
    "Qwen2": {"rope_theta": 1e6, "tie_word_embeddings": True},
    "Qwen3": {"rope_theta": 1e6},
}


def write_source(architecture: str, directory: Path) -> Path:
    """A two-layer model with random weights, norms and biases, and a word tokenizer."""
    import torch
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**SIZES, **EXTRAS[architecture])
    torch.manual_seed(7)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif "proj" in name:
                # A few loud input channels, as real models have them.
                parameter.normal_(std=0.05)[:, ::37] *= 4
        # Dead heads and neurons exist in real models too.
        model.model.layers[0].self_attn.k_proj.weight[:5] = 0
        model.model.layers[1].mlp.gate_proj.weight[:3] = 0
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0} | {f"w{number}": number for number in range(1, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def calibration_words() -> str:
    """Forty paragraphs of 30 random words."""
    generator = random.Random(5)
    paragraphs = (
        " ".join(f"w{generator.randrange(1, VOCAB)}" for _ in range(30)) for _ in range(40)
    )
    return "\n\n".join(paragraphs)


def recipe(source: Path, **changes: Any) -> Recipe:
    """A recipe for a source made by :func:`write_source`.

    Args:
        changes: Keys of ``quantize``, and ``dtype``, ``samples``, ``tp`` and ``pp``.
    """
    text = source / "calibration.txt"
    if not text.exists():
        text.write_text(calibration_words())
    dtype, tp, pp = (changes.pop(key, value) for key, value in _DEFAULTS.items())
    unquantized = changes.get("format") in ("float16", "bfloat16", "float32")
    calibration = {
        "text": str(text),
        "samples": changes.pop("samples", 24),
        "sequence_length": 30,
        "batch_size": 12,
    }
    return Recipe.model_validate(
        {
            "name": "test",
            # An unquantized format is its own precision.
            "model": {"source": str(source)} | ({} if unquantized else {"dtype": dtype}),
            "quantize": {"calibration": calibration, "device": "cpu", **changes},
            "compile": {"tensor_parallel": tp, "pipeline_parallel": pp},
        }
    )


def matrix_recipe(source: Path, name: str, tp: int = 1, pp: int = 1) -> Recipe:
    """The recipe of one format in the matrix: some with a KV cache, one in groups of 64."""
    group_size = 64 if name == "int4_awq" else 128
    kv_cache = KV_CACHES.get(name)
    return recipe(source, format=name, group_size=group_size, kv_cache=kv_cache, tp=tp, pp=pp)


_DEFAULTS: dict[str, Any] = {"dtype": "float16", "tp": 1, "pp": 1}


def run_stage(
    recipe: Recipe, source: Path, output: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the quantize stage into ``output`` and returns its facts."""
    output.mkdir(parents=True)
    artifact = Artifact("source", "key", "digest", source, {})
    return STAGE.run(StageContext(recipe, {"source": artifact}, output, progress or Silent()))
