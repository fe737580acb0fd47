"""Writes a TensorRT-LLM checkpoint from a model that ModelOpt calibrated.

Tensors come from ModelOpt; ``config.json`` does not: ModelOpt leaves out ``qwen_type``,
``attn_bias`` and ``seq_length``, takes whatever rope keys it finds and keeps the last rank's
number, so the file is written from the source's facts instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint.config import POSITIONS
from pipeline.checkpoint.loading import largest_loadable
from pipeline.checkpoint.validate import rank_path
from pipeline.dependencies import install, require
from pipeline.errors import StageError, cause
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import vocabulary_rows
from pipeline.quantize.formats import checkpoint_dtype, quantization_section
from pipeline.quantize.writing import (
    EMBEDDING,
    HEAD,
    Tensors,
    not_written,
    write_config,
    written,
)
from pipeline.recipe.schema import Recipe
from pipeline.source.exhausted import explained_memory
from pipeline.store.files import fsync


def export(model: Any, facts: ModelFacts, recipe: Recipe, output: Path) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        model: A calibrated model, or a plain one for float16 and bfloat16.
        facts: The source's facts.
        recipe: ``model.dtype``, ``quantize`` and the parallelism of ``compile`` count.
        output: An existing directory.

    Raises:
        StageError: ModelOpt failed, or labels its export as another format than the recipe's.
    """
    torch = require("torch", "quantize")
    safetensors = require("safetensors", "quantize")
    save_file = require("safetensors.torch", "quantize").save_file
    tp_size, pp_size = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
    try:
        with written(output), _explained(recipe), torch.inference_mode():
            for rank, weights in _exported(model, facts, recipe, pp_size):
                tensors = _unpad_vocabulary(weights, rank % tp_size, model, tp_size)
                save_file(tensors, rank_path(output, rank))
                fsync(rank_path(output, rank))
    except safetensors.SafetensorError as error:
        raise not_written(output, error) from error
    write_config(output, modelopt_config_json(facts, recipe))


def layer_tensors(model: Any, facts: ModelFacts, recipe: Recipe) -> list[Tensors]:
    """Returns what the ranks get of a layer that was calibrated as a model of its own.

    Args:
        model: Of :func:`pipeline.layers.one_layer.one_layer`, calibrated.
        facts: The whole model's.
        recipe: As for :func:`export`.

    Returns:
        For each tensor-parallel rank, by names behind the layer's.

    Raises:
        StageError: As for :func:`export`.
    """
    from pipeline.layers.arrays import as_array

    torch = require("torch", "quantize")
    first = "transformer.layers.0."
    with _explained(recipe), torch.inference_mode():
        return [
            {
                name.removeprefix(first): as_array(tensor)
                for name, tensor in weights.items()
                if name.startswith(first)
            }
            for _, weights in _exported(model, facts, recipe, 1)
        ]


def _exported(
    model: Any, facts: ModelFacts, recipe: Recipe, pp_size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each rank's number and tensors, by ModelOpt's export."""
    torch = require("torch", "quantize")
    modelopt = require("modelopt.torch.export.model_config_export", "quantize")
    dtype = getattr(torch, checkpoint_dtype(recipe))
    ranks = modelopt.torch_to_tensorrt_llm_checkpoint(
        model, facts.family.decoder_type, dtype, recipe.compile.tensor_parallel, pp_size
    )
    for exported, weights, _ in ranks:
        _check_label(exported["quantization"], recipe)
        yield exported["rank"], _bound_prequant(weights, recipe)


@contextlib.contextmanager
def _explained(recipe: Recipe) -> Iterator[None]:
    try:
        with explained_memory("memory ran out during the export", "Use a machine with more memory"):
            yield
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise StageError(
            f"ModelOpt could not export {recipe.quantize.format}",
            why=cause(error),
        ) from error


def modelopt_config_json(facts: ModelFacts, recipe: Recipe) -> dict[str, Any]:
    """Builds ``config.json`` of a checkpoint whose tensors come from ModelOpt."""
    return checkpoint_config(facts, recipe, require("modelopt", "quantize").__version__)


def checkpoint_config(facts: ModelFacts, recipe: Recipe, producer_version: str) -> dict[str, Any]:
    """Builds ``config.json`` as TensorRT-LLM 1.2's LLaMAConfig and QWenConfig read it.

    ``logits_dtype`` is TensorRT-LLM's default, float32, which Triton's ``logits_datatype`` expects;
    ModelOpt would write float16, in which close logits tie.
    """
    tp_size, pp_size = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
    config: dict[str, Any] = {
        "producer": {"name": "modelopt", "version": producer_version},
        "architecture": facts.architecture,
        "dtype": checkpoint_dtype(recipe),
        "logits_dtype": "float32",
        "num_hidden_layers": facts.num_hidden_layers,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_key_value_heads,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "head_size": facts.head_size,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_position_embeddings,
        "hidden_act": facts.hidden_act,
        "norm_epsilon": facts.norm_epsilon,
        **POSITIONS,
        "rotary_base": facts.rotary_base,
        "rotary_scaling": facts.rotary_scaling,
        "attn_bias": facts.attention_bias,
        "mlp_bias": facts.mlp_bias,
        "qk_layernorm": facts.qk_layernorm,
        "tie_word_embeddings": facts.tie_word_embeddings,
        "residual_mlp": False,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": tp_size * pp_size, "tp_size": tp_size, "pp_size": pp_size},
        "quantization": quantization_section(recipe.quantize),
        **facts.family.tensorrt_llm.switches,
        **facts.family.tensorrt_llm.constants,
    }
    if facts.sliding_window is not None:
        config["sliding_window"] = facts.sliding_window
    return config


def _check_label(exported: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuses an export that is not what was asked for, such as one that lost its KV scales."""
    wanted = quantization_section(recipe.quantize)
    for key in ("quant_algo", "kv_cache_quant_algo", "group_size"):
        if exported.get(key) != wanted.get(key):
            raise StageError(
                f"ModelOpt exported {key} {exported.get(key)} where the recipe asks for "
                f"{wanted.get(key)}",
                where=recipe.place("quantize.format"),
                fix=install("quantize"),
            )


def _bound_prequant(weights: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Lowers pre-quant scales that TensorRT-LLM would load as infinite.

    For W4A8 it divides them by the activation scale in the model's dtype. AWQ gives channels that
    the calibration text hardly moves large pre-quant scales, and in float16 the quotient of such a
    channel overflows. Its values stay below 448 / 65504 in the whole text, so that little is lost
    where the lower scale makes them smaller, and the gate measures it; larger ones saturate at the
    same FP8 code as before.
    """
    if not FORMATS[recipe.quantize.format].divides_prequant:
        return weights
    suffix, divisor = ".prequant_scaling_factor", ".activation_scaling_factor"
    tensors = dict(weights)
    for name, scales in weights.items():
        if name.endswith(suffix):
            activation = float(weights[name.removesuffix(suffix) + divisor])
            limit = largest_loadable(checkpoint_dtype(recipe), activation)
            tensors[name] = scales.clamp(max=limit)
    return tensors


def _unpad_vocabulary(
    weights: dict[str, Any], tp_rank: int, model: Any, tp_size: int
) -> dict[str, Any]:
    """Replaces the vocabulary tensors by ones of the tokenizer's size.

    For AWQ ModelOpt pads them to a multiple of 64 with zero rows and raises ``vocab_size`` with
    them. TensorRT-LLM would then sample from the padding, whose logits are 0 and may well be the
    largest, so the padding is not taken over: ``vocab_size`` stays the model's, and rows are only
    rounded up to a multiple of tp_size, the shape TensorRT-LLM gives the parameters itself.
    """
    modules = {EMBEDDING: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    tensors = dict(weights)
    for name, module in modules.items():
        if name in tensors:
            rows = _rows_of_rank(module.weight, tp_rank, tp_size)
            # Tied weights share their memory, which safetensors refuses: hence a copy always.
            tensors[name] = rows.to("cpu", tensors[name].dtype, copy=True).contiguous()
    return tensors


def _rows_of_rank(weight: Any, tp_rank: int, tp_size: int) -> Any:
    from torch.nn.functional import pad

    rows = vocabulary_rows(weight.shape[0], tp_size)
    part = weight[tp_rank * rows : (tp_rank + 1) * rows]
    return pad(part, (0, 0, 0, rows - part.shape[0]))
