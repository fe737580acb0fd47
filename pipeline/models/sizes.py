"""How many bytes weights take, by format, and how many operations a token takes."""

from __future__ import annotations

from pipeline.formats import FORMATS, Format
from pipeline.models.facts import ModelFacts


def linear_bytes(
    row: Format, rows: int, columns: int, value_bytes: int, group_size: int | None
) -> int:
    """Computes the bytes of one linear's weights and scales, as an engine holds them.

    TensorRT-LLM loads INT4 scales, which the checkpoint has in float32, in the model's dtype.

    Args:
        row: The format.
        rows: Output features.
        columns: Input features.
        value_bytes: Bytes of a value that is not quantized.
        group_size: Input features that share one scale; None for formats without groups.
    """
    if not row.quantizes:
        return rows * columns * value_bytes
    weights = rows * columns * row.weight_bits // 8
    if row.scales == "tensor":
        # A scale of the weights and one of the input.
        return weights + 8
    if row.own:
        # Scales in float32, and none of the input.
        return weights + rows * (columns // row.block if row.block else 1) * 4
    # Those with finer scales have a pre-quant scale for each input feature.
    weights += columns * value_bytes
    if row.scales == "row":
        return weights + rows * 4 + 4
    assert group_size is not None
    return weights + rows * (columns // group_size) * value_bytes


def layer_bytes(facts: ModelFacts, row: Format, value_bytes: int, group_size: int | None) -> int:
    """Computes the bytes of the weights of all decoder layers, norms and biases included."""
    linears = sum(
        linear_bytes(row, linear.out_features, linear.in_features, value_bytes, group_size)
        for linear in facts.linears
    )
    norms = sum(facts.width(norm.over) for norm in facts.family.norms)
    bias = facts.width("q") + 2 * facts.width("kv") if facts.attention_bias else 0
    return facts.num_hidden_layers * (linears + (norms + bias) * value_bytes)


def table_bytes(facts: ModelFacts, value_bytes: int) -> int:
    """Computes the bytes of the embedding, which is as large as the language-model head."""
    return facts.vocab_size * facts.hidden_size * value_bytes


def layer_parameters(facts: ModelFacts) -> int:
    """Counts the parameters of one decoder layer in floating point."""
    plain = next(row for row in FORMATS.values() if not row.quantizes)
    return layer_bytes(facts, plain, 1, None) // facts.num_hidden_layers


def parameters(facts: ModelFacts) -> int:
    """Counts the parameters of a model in floating point, a tied head once."""
    tables = table_bytes(facts, 1) * (1 if facts.tie_word_embeddings else 2)
    return facts.num_hidden_layers * layer_parameters(facts) + tables + facts.hidden_size


def multiplications(facts: ModelFacts) -> int:
    """Counts the multiplications that one token takes outside attention: one for each weight."""
    linears = sum(linear.out_features * linear.in_features for linear in facts.linears)
    return facts.num_hidden_layers * linears + facts.vocab_size * facts.hidden_size


def attention_multiplications(facts: ModelFacts) -> int:
    """Counts the multiplications of one token with each token before it: scores and values."""
    return 2 * facts.num_hidden_layers * facts.num_attention_heads * facts.head_size
