"""Writes a GGUF file from a checkpoint and the snapshot that it was made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from pipeline.checkpoint import open_checkpoint
from pipeline.models.facts import ModelFacts
from pipeline.targets.llamacpp.names import family_of
from pipeline.targets.llamacpp.rope import add_rope
from pipeline.targets.llamacpp.tensors import Tensor, tensors
from pipeline.targets.llamacpp.types import MIXTURES, row_bytes
from pipeline.targets.llamacpp.vocabulary import Tokens, add_vocabulary

_NUMPY = {Type.F32: np.float32, Type.F16: np.float16}
"""Types that are written as numbers; all others are bytes."""
_STORED = {
    Type.F32: FileType.ALL_F32,
    Type.F16: FileType.MOSTLY_F16,
    Type.BF16: FileType.MOSTLY_BF16,
    Type.Q8_0: FileType.MOSTLY_Q8_0,
    Type.Q4_0: FileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Attributes:
        types: How many tensors have each number type.
        changes: What is not exactly the checkpoint's, and of how many tensors.
    """

    types: dict[str, int]
    changes: dict[str, int]


def write_gguf(
    checkpoint: Path,
    path: Path,
    wanted: str,
    tokens: Tokens,
    *,
    name: str,
    advance: Callable[[], None] = lambda: None,
) -> Written:
    """Writes the file; a tensor at a time is in memory.

    Args:
        checkpoint: A TensorRT-LLM checkpoint of any tensor and pipeline parallelism.
        path: The file.
        wanted: ``compile.llamacpp.type``.
        tokens: The tokenizer.
        name: ``general.name``.
        advance: Called after each layer.

    Raises:
        CheckpointError: The checkpoint is not complete.
        CompileError: The file cannot hold the tokenizer or a tensor.
        MissingDependencyError: xllamacpp is not installed, which makes K types.
    """
    opened = open_checkpoint(checkpoint)
    facts, dtype, weights = opened.facts, opened.config.dtype, opened.weights()
    writer = gguf.GGUFWriter(path, family_of(facts).name)
    try:
        writer.add_name(name)
        # Without what computes them, which holds the codes of its layer.
        described = [
            replace(tensor, data=_unread) for tensor in tensors(weights, facts, dtype, wanted)
        ]
        _add_sizes(writer, facts, _file_type(wanted, described))
        add_rope(writer, facts)
        add_vocabulary(writer, tokens, facts.vocab_size)
        types: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        for tensor in described:
            types[tensor.kind.name] += 1
            if tensor.change:
                changes[tensor.change] += 1
            stored = np.dtype(_NUMPY.get(tensor.kind, np.uint8))
            *rows, columns = tensor.shape
            row = row_bytes(tensor.kind, columns)
            writer.add_tensor_info(
                tensor.name,
                [*rows, row // stored.itemsize],
                stored,
                math.prod(rows) * row,
                None if tensor.kind in _NUMPY else tensor.kind,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors(weights, facts, dtype, wanted):
            writer.write_tensor_data(tensor.data())
            if tensor.name.endswith("ffn_down.weight"):
                advance()
    finally:
        writer.close()
    return Written(dict(sorted(types.items())), dict(changes))


def _unread() -> Any:
    raise AssertionError("a tensor that was described has no values")


def _add_sizes(writer: gguf.GGUFWriter, facts: ModelFacts, file_type: FileType) -> None:
    writer.add_context_length(facts.longest_sequence)
    writer.add_embedding_length(facts.hidden_size)
    writer.add_block_count(facts.num_hidden_layers)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.num_attention_heads)
    writer.add_head_count_kv(facts.num_key_value_heads)
    writer.add_key_length(facts.head_size)
    writer.add_value_length(facts.head_size)
    writer.add_layer_norm_rms_eps(facts.norm_epsilon)
    writer.add_vocab_size(facts.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _file_type(wanted: str, described: Sequence[Tensor]) -> FileType:
    """llama.cpp's word for the file: that of the mixture, or of what most matrices are."""
    if wanted in MIXTURES:
        return MIXTURES[wanted].file_type
    kinds = Counter(
        tensor.kind
        for tensor in described
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    )
    return _STORED[kinds.most_common(1)[0][0]]
