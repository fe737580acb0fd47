"""Reads a GGUF file back as a checkpoint in memory, whatever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import Layer, Linear, Weights
from pipeline.errors import StageError
from pipeline.formats import NO_QUANT
from pipeline.models.facts import ModelFacts
from pipeline.targets.llamacpp.names import (
    EMBEDDING,
    HEAD,
    LAST_NORM,
    LINEARS,
    NORMS,
    ROTATED,
    block,
    family_of,
    to_halves,
)

Floats = npt.NDArray[np.float32]


def read_gguf(path: Path, facts: ModelFacts) -> tuple[Weights, ModelFacts]:
    """Dequantizes every tensor of a file and undoes the order of its rotary pairs.

    Args:
        path: The file.
        facts: Of the model that it should be. Sizes, heads, epsilon and rope base are taken from
            the file instead, so that a wrong key there counts.

    Returns:
        The decoder in float32, and the facts as the file states them.

    Raises:
        StageError: A key or a tensor is not there, or the file is of another architecture.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise StageError("the GGUF file cannot be read", where=str(path), why=str(error)) from error
    values = {name: field.contents() for name, field in reader.fields.items()}
    family = family_of(facts)
    if values.get("general.architecture") != family.name:
        raise StageError(
            f"the GGUF file is of the architecture {values.get('general.architecture')}",
            where=str(path),
            why=f"{facts.architecture} is llama.cpp's {family.name}",
        )
    try:
        stated = _facts(values, family.name, facts)
        found = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
        return _weights(found, stated), stated
    except KeyError as error:
        raise StageError(
            f"the GGUF file lacks {error.args[0]}",
            where=str(path),
            fix="Compile again: --force compile",
        ) from error


def _facts(values: Mapping[str, Any], architecture: str, facts: ModelFacts) -> ModelFacts:
    def value(key: str) -> Any:
        return values[f"{architecture}.{key}"]

    return replace(
        facts,
        hidden_size=int(value("embedding_length")),
        intermediate_size=int(value("feed_forward_length")),
        num_hidden_layers=int(value("block_count")),
        num_attention_heads=int(value("attention.head_count")),
        num_key_value_heads=int(value("attention.head_count_kv")),
        head_size=int(value("attention.key_length")),
        norm_epsilon=float(value("attention.layer_norm_rms_epsilon")),
        rotary_base=float(value("rope.freq_base")),
    )


def _weights(found: Mapping[str, Floats], facts: ModelFacts) -> Weights:
    embedding = found[EMBEDDING]
    head = found[EMBEDDING if facts.tie_word_embeddings else HEAD]
    layers = tuple(_layer(number, found, facts) for number in range(facts.num_hidden_layers))
    return Weights(embedding, layers, found[LAST_NORM], Linear("lm_head", NO_QUANT, head))


def _layer(number: int, found: Mapping[str, Floats], facts: ModelFacts) -> Layer:
    in_pairs = family_of(facts).in_pairs

    def part(name: str, kind: str) -> Floats:
        ours = LINEARS[name]
        rows = found[block(number, ours, kind)]
        if ours in ROTATED and in_pairs:
            rows = to_halves(rows, getattr(facts, ROTATED[ours]))
        return rows

    linears: dict[str, Any] = {}
    for shape in facts.linears:
        names = [name for name, _ in shape.source]
        bias = None
        if block(number, LINEARS[names[0]], "bias") in found:
            bias = np.concatenate([part(name, "bias") for name in names])
        weight = np.concatenate([part(name, "weight") for name in names])
        place = f"transformer.layers.{number}.{shape.name}"
        linears[shape.name.rpartition(".")[2]] = Linear(place, NO_QUANT, weight, bias=bias)
    norms: dict[str, Any] = {
        norm.checkpoint.rpartition(".")[2]: found[block(number, NORMS[norm.source])]
        for norm in facts.family.norms
    }
    return Layer(**linears, **norms)
