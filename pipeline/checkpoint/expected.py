"""The tensors a rank file must hold, by architecture, format and rank.

The tables are those of TensorRT-LLM 1.2: ``PretrainedModel`` names its parameters this way and its
loader requires each of them in exactly this shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.loading import DIVIDED_SCALES
from pipeline.formats import ALGOS, FP8, NO_QUANT, W8A8_SQ_PER_CHANNEL, Format
from pipeline.models.facts import LinearShape


@dataclass(frozen=True)
class Loading:
    """The arguments of :func:`pipeline.checkpoint.loading.as_loaded`.

    Attributes:
        dtype: The model's.
        divided_by: The tensor of one element that it is divided by.
        last: The dtype of the result, where it is another one.
    """

    dtype: str
    divided_by: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class ExpectedTensor:
    """One tensor of a rank file.

    Attributes:
        dtypes: NumPy dtype names that TensorRT-LLM accepts; ModelOpt writes the first.
        is_scale: Whether its values must all be positive.
        required: False for a tensor that may be absent.
        loaded: How TensorRT-LLM casts and divides it when it loads it; None leaves it as it is.
        beside: A tensor that must be there too where this one is.
        is_order: Whether it must name each of its places once.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    is_scale: bool = False
    required: bool = True
    loaded: Loading | None = None
    beside: str | None = None
    is_order: bool = False


def expected_tensors(config: CheckpointConfig, rank: int) -> dict[str, ExpectedTensor]:
    """Lists every tensor of ``rank{rank}.safetensors``, those that it may lack among them.

    Args:
        config: The checkpoint's configuration.
        rank: tp_rank + tp_size * pp_rank. The shapes depend on pp_rank alone.

    Returns:
        The tensors by name; layer numbers count from 0 on every pipeline rank.
    """
    facts, floats = config.facts, (config.dtype,)
    pp_rank = rank // config.tp_size
    first, last = pp_rank == 0, pp_rank == config.pp_size - 1
    tensors = {}
    if first:
        tensors["transformer.vocab_embedding.weight"] = ExpectedTensor(
            floats, embedding_shape(config)
        )
    for layer in range(config.layers_per_rank):
        tensors.update(_layer(config, f"transformer.layers.{layer}."))
    if last:
        tensors["transformer.ln_f.weight"] = ExpectedTensor(floats, (facts.hidden_size,))
        tensors["lm_head.weight"] = ExpectedTensor(
            floats,
            (config.share.vocabulary_rows, facts.hidden_size),
            # TensorRT-LLM copies the embedding when the head is absent from the same file.
            required=not (facts.tie_word_embeddings and first),
        )
    return tensors


def embedding_shape(config: CheckpointConfig) -> tuple[int, int]:
    """Returns the shape of ``transformer.vocab_embedding.weight`` on each rank: rows, columns.

    Tensor-parallel ranks divide the rows or the columns where ``use_parallel_embedding`` is set, as
    ``embedding_sharding_dim`` says; rows are padded to a multiple of the ranks.
    """
    vocab, hidden = config.facts.vocab_size, config.facts.hidden_size
    if not config.use_parallel_embedding:
        return vocab, hidden
    if config.embedding_sharding_dim == 0:
        return config.share.vocabulary_rows, hidden
    return vocab, hidden // config.tp_size


def _layer(config: CheckpointConfig, prefix: str) -> Iterator[tuple[str, ExpectedTensor]]:
    facts, floats = config.facts, (config.dtype,)
    for norm in facts.family.norms:
        shape = (facts.width(norm.over),)
        yield f"{prefix}{norm.checkpoint}.weight", ExpectedTensor(floats, shape)
    for linear in facts.linears:
        yield from _linear(config, f"{prefix}{linear.name}", linear)
    if facts.attention_bias:
        yield f"{prefix}attention.qkv.bias", ExpectedTensor(floats, (config.share.qkv_rows,))
    if config.quantization.kv_cache_algo:
        scale = ExpectedTensor(("float32",), (1,), is_scale=True)
        yield f"{prefix}attention.kv_cache_scaling_factor", scale
        # The loader takes the larger of these two for the common one where they are there, and
        # asserts that they are both.
        names = [f"{prefix}attention.{part}_cache_scaling_factor" for part in ("k", "v")]
        for name, other in zip(names, reversed(names), strict=True):
            yield name, replace(scale, required=False, beside=other)


def _linear(
    config: CheckpointConfig, name: str, linear: LinearShape
) -> Iterator[tuple[str, ExpectedTensor]]:
    rows, columns = config.share.shape(linear)
    algo = config.quantization.algo_of(name)
    floats = (config.dtype,)
    scalar = ExpectedTensor(("float32",), (1,), is_scale=True)
    if algo == NO_QUANT:
        yield f"{name}.weight", ExpectedTensor(floats, (rows, columns))
        return
    if algo == FP8:
        # TensorRT-LLM views int8 bytes as float8.
        yield f"{name}.weight", ExpectedTensor(("float8_e4m3fn", "int8"), (rows, columns))
        yield f"{name}.weights_scaling_factor", scalar
        yield f"{name}.activation_scaling_factor", scalar
        return
    if ALGOS[algo].own:
        yield from _own_linear(config, name, rows, columns, ALGOS[algo])
        return
    divided = ALGOS[algo].divides_prequant
    prequant = ExpectedTensor(
        floats,
        (columns,),
        is_scale=True,
        loaded=Loading(config.dtype, f"{name}.activation_scaling_factor") if divided else None,
    )
    yield f"{name}.prequant_scaling_factor", prequant
    if algo == W8A8_SQ_PER_CHANNEL:
        yield f"{name}.weight", ExpectedTensor(("int8",), (rows, columns))
        yield (
            f"{name}.weights_scaling_factor",
            ExpectedTensor(("float32",), (rows,), is_scale=True),
        )
        yield f"{name}.activation_scaling_factor", scalar
    if ALGOS[algo].scales == "group":
        group = config.quantization.group_size
        assert group is not None
        scales = ExpectedTensor(
            ("float32", config.dtype),
            (rows, columns // group),
            is_scale=True,
            loaded=Loading(config.dtype, f"{name}.weights_scaling_factor_2", DIVIDED_SCALES)
            if divided
            else Loading(config.dtype),
        )
        # uint8 would be loaded without the interleaving that the kernels need.
        yield f"{name}.weight", ExpectedTensor(("int8",), (rows // 2, columns))
        yield f"{name}.weights_scaling_factor", scales
        if config.quantization.zero_points:
            yield f"{name}.zero", ExpectedTensor(floats, (columns // group, rows))
        if config.quantization.input_order:
            yield f"{name}.input_order", ExpectedTensor(("int32",), (columns,), is_order=True)
    if divided:
        yield f"{name}.activation_scaling_factor", scalar
        yield f"{name}.weights_scaling_factor_2", scalar


def _own_linear(
    config: CheckpointConfig, name: str, rows: int, columns: int, row: Format
) -> Iterator[tuple[str, ExpectedTensor]]:
    """A linear of a format that TensorRT-LLM does not have: codes, and scales in float32."""
    group = config.quantization.group_size
    # Codes of a table have no sign.
    weight = ("uint8", (rows // 2, columns)) if row.packed else ("int8", (rows, columns))
    scales = (rows, columns // group) if group else (rows,)
    yield f"{name}.weight", ExpectedTensor((weight[0],), weight[1])
    yield f"{name}.weights_scaling_factor", ExpectedTensor(("float32",), scales, is_scale=True)
