"""Puts the rank files of a tensor- and pipeline-parallel checkpoint back together.

Merging is exact: values are concatenated, never computed. How ModelOpt cuts each tensor: weights,
biases and per-row scales of column-parallel linears by row (q, k and v rows each on their own),
weights, group scales and pre-quant scales of row-parallel linears by column; all else is repeated
on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import PACKED_ALGOS, Array, Layer, Linear, Weights
from pipeline.checkpoint.reader import TensorFile, numpy_dtype
from pipeline.errors import CheckpointError
from pipeline.formats import ALGOS, NO_QUANT
from pipeline.models.facts import LinearShape


def merge(config: CheckpointConfig, files: Sequence[TensorFile]) -> Weights:
    """Joins the files of all ranks into one decoder, each layer when it is asked for.

    Args:
        config: The checkpoint's configuration.
        files: One file per rank, in rank order; validated.

    Raises:
        CheckpointError: Ranks disagree about a tensor that they must share; of one in a layer,
            that layer says it.
    """
    stages = [
        _Stage(config, files[start : start + config.tp_size])
        for start in range(0, config.world_size, config.tp_size)
    ]
    embedding = stages[0].embedding()
    head = stages[-1].head() if stages[-1].has("lm_head.weight") else embedding
    return Weights(
        vocab_embedding=embedding,
        layers=Layers(config, stages),
        ln_f=stages[-1].shared("transformer.ln_f.weight"),
        lm_head=Linear("lm_head", NO_QUANT, head),
    )


class Layers(Sequence[Layer]):
    """The decoder layers of a checkpoint, joined one at a time.

    The last one asked for is kept. When another is asked for, the pages of the mapped files that
    were read go, which would otherwise count as memory of this process.

    Args:
        config: The checkpoint's configuration.
        stages: Its pipeline ranks in their order.
    """

    def __init__(self, config: CheckpointConfig, stages: Sequence[_Stage]) -> None:
        self._config, self._stages = config, stages
        self._last: tuple[int, Layer] | None = None

    def __len__(self) -> int:
        """Counts the layers of all pipeline ranks."""
        return self._config.facts.num_hidden_layers

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...

    def __getitem__(self, index: int | slice) -> Layer | Sequence[Layer]:
        """Joins a layer, or several, which are then in memory together.

        Raises:
            CheckpointError: Ranks disagree about a tensor that they must share.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        if self._last is None or self._last[0] != number:
            # Before the next one is made, so that there are never two.
            self._last = None
            pipeline_rank, local = divmod(number, self._config.layers_per_rank)
            for stage in self._stages:
                stage.release()
            self._last = number, self._stages[pipeline_rank].layer(local, number)
        return self._last[1]


class _Stage:
    """The tensor-parallel ranks of one pipeline rank."""

    def __init__(self, config: CheckpointConfig, files: Sequence[TensorFile]) -> None:
        self._config, self._files = config, files

    def has(self, name: str) -> bool:
        return name in self._files[0].tensors

    def release(self) -> None:
        for file in self._files:
            file.release()

    def parts(self, name: str) -> list[Array]:
        return [file.read(name) for file in self._files]

    def shared(self, name: str) -> Array:
        first, *others = self.parts(name)
        for rank, other in enumerate(others, 1):
            if first.tobytes() != other.tobytes():
                raise CheckpointError(
                    f"{name} differs from the one of the first tensor-parallel rank",
                    where=str(self._files[rank].path),
                    fix="The rank files are of different exports; export the checkpoint again",
                )
        return first

    def embedding(self) -> Array:
        name, config = "transformer.vocab_embedding.weight", self._config
        if not config.use_parallel_embedding:
            return self.shared(name)
        axis = config.embedding_sharding_dim
        return _join(self.parts(name), axis)[: config.facts.vocab_size]

    def head(self) -> Array:
        return _join(self.parts("lm_head.weight"), 0)[: self._config.facts.vocab_size]

    def layer(self, local: int, number: int) -> Layer:
        prefix = f"transformer.layers.{local}."
        qkv, dense, fc, gate, proj = (
            self._linear(
                f"{prefix}{shape.name}", f"transformer.layers.{number}.{shape.name}", shape
            )
            for shape in self._config.facts.linears
        )
        return Layer(
            input_layernorm=self.shared(f"{prefix}input_layernorm.weight"),
            qkv=qkv,
            dense=dense,
            post_layernorm=self.shared(f"{prefix}post_layernorm.weight"),
            fc=fc,
            gate=gate,
            proj=proj,
            q_layernorm=self._optional(f"{prefix}attention.q_layernorm.weight"),
            k_layernorm=self._optional(f"{prefix}attention.k_layernorm.weight"),
            kv_cache_scaling_factor=self._kv_cache_scale(f"{prefix}attention."),
        )

    def _optional(self, name: str) -> Array | None:
        return self.shared(name) if self.has(name) else None

    def _kv_cache_scale(self, prefix: str) -> float | None:
        """The scale that TensorRT-LLM uses: the larger of two where keys and values have their own.

        ``process_kv_scaling_factor`` of its ``modeling_utils.py`` then ignores the stored one.
        """
        keys, values, both = (
            self._scalar(f"{prefix}{part}_cache_scaling_factor") for part in ("k", "v", "kv")
        )
        return both if keys is None or values is None else max(keys, values)

    def _scalar(self, name: str) -> float | None:
        return float(self.shared(name)[0]) if self.has(name) else None

    def _linear(self, name: str, global_name: str, shape: LinearShape) -> Linear:
        algo = self._config.quantization.algo_of(name)
        column = shape.split == "column"
        scales, prequant = f"{name}.weights_scaling_factor", f"{name}.prequant_scaling_factor"
        scaling: Array | None = None
        if self.has(scales):
            per_row = self._files[0].tensors[scales].shape != (1,)
            if column and per_row:
                scaling = self._rows(self.parts(scales), shape)
            elif ALGOS[algo].scales == "group":
                scaling = _join(self.parts(scales), 1)
            else:
                scaling = self.shared(scales)
        smoothing: Array | None = None
        if self.has(prequant):
            smoothing = self.shared(prequant) if column else _join(self.parts(prequant), 0)
        weight_name, bias = f"{name}.weight", f"{name}.bias"
        weight = (
            self._rows(self.parts(weight_name), shape, 2 if algo in PACKED_ALGOS else 1)
            if column
            else _join(self.parts(weight_name), 1)
        )
        if ALGOS[algo].fp8_weights and weight.dtype == np.int8:
            weight = weight.view(numpy_dtype("float8_e4m3fn"))
        return Linear(
            name=global_name,
            algo=algo,
            weight=weight,
            weights_scaling_factor=scaling,
            prequant_scaling_factor=smoothing,
            activation_scaling_factor=self._scalar(f"{name}.activation_scaling_factor"),
            weights_scaling_factor_2=self._scalar(f"{name}.weights_scaling_factor_2"),
            bias=self._rows(self.parts(bias), shape) if self.has(bias) else None,
            zero=self._zero(f"{name}.zero", shape),
            input_order=self._optional(f"{name}.input_order"),
        )

    def _zero(self, name: str, shape: LinearShape) -> Array | None:
        """Joins what is stored with its rows as columns."""
        if not self.has(name):
            return None
        if shape.split != "column":
            return _join(self.parts(name), 0)
        return self._rows([part.T for part in self.parts(name)], shape).T

    def _rows(self, parts: list[Array], shape: LinearShape, rows_per_entry: int = 1) -> Array:
        """Joins row-cut parts; ``rows_per_entry`` is 2 for packed INT4 weights."""
        if shape.name != "attention.qkv" or len(parts) == 1:
            return _join(parts, 0)
        share = self._config.share
        q_rows, kv_rows = share.q_rows // rows_per_entry, share.kv_rows // rows_per_entry
        owners = parts[:: share.kv_copies]
        return np.concatenate(
            [part[:q_rows] for part in parts]
            + [part[q_rows : q_rows + kv_rows] for part in owners]
            + [part[q_rows + kv_rows :] for part in owners]
        )


def _join(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
