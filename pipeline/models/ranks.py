"""How much of a model each tensor-parallel rank holds, as TensorRT-LLM cuts it.

Attention is cut by heads, column-parallel linears by rows and row-parallel ones by columns. With
more ranks than KV heads, neighbouring ranks hold copies of the same head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.models.architectures import QKV
from pipeline.models.facts import LinearShape, ModelFacts


@dataclass(frozen=True)
class RankShare:
    """The part of each decoder layer, and of the vocabulary, that one rank holds.

    Every rank holds as much as any other. The figures are those of a cut that
    :func:`split_problem` has nothing against.

    Attributes:
        model: The whole model.
        ranks: Tensor-parallel ranks that share each layer.
    """

    model: ModelFacts
    ranks: int

    @property
    def heads(self) -> int:
        """Attention heads on a rank."""
        return self.model.num_attention_heads // self.ranks

    @property
    def kv_heads(self) -> int:
        """KV heads on a rank; at least one, where need be a copy."""
        return max(self.model.num_key_value_heads // self.ranks, 1)

    @property
    def kv_copies(self) -> int:
        """Neighbouring ranks that hold the same KV heads."""
        return max(self.ranks // self.model.num_key_value_heads, 1)

    @property
    def q_rows(self) -> int:
        """Rows of the fused ``attention.qkv`` that make queries; they come first."""
        return self.heads * self.model.head_size

    @property
    def kv_rows(self) -> int:
        """Rows of ``attention.qkv`` that make keys; as many make values."""
        return self.kv_heads * self.model.head_size

    @property
    def qkv_rows(self) -> int:
        """All rows of ``attention.qkv``."""
        return self.q_rows + 2 * self.kv_rows

    @property
    def inner_rows(self) -> int:
        """Features between the linears of the MLP."""
        return self.model.intermediate_size // self.ranks

    @property
    def vocabulary_rows(self) -> int:
        """Rows of an embedding or a head that is cut by token."""
        return vocabulary_rows(self.model.vocab_size, self.ranks)

    def shape(self, linear: LinearShape) -> tuple[int, int]:
        """Returns the rows and columns of a linear's weight on a rank."""
        if linear.name == QKV:
            return self.qkv_rows, linear.in_features
        if linear.split == "column":
            return linear.out_features // self.ranks, linear.in_features
        return linear.out_features, linear.in_features // self.ranks


@dataclass(frozen=True)
class Side:
    """One side of a linear's weight over all ranks.

    Attributes:
        linear: The linear's name.
        name: ``in_features`` or ``out_features``.
        size: Its length, copies of KV heads included.
    """

    linear: str
    name: str
    size: int


def sides(model: ModelFacts, ranks: int) -> Iterator[Side]:
    """Yields both sides of every linear of a decoder layer."""
    share = RankShare(model, ranks)
    for linear in model.linears:
        # With copies of KV heads the ranks together hold more rows than the model has.
        rows = ranks * share.qkv_rows if linear.name == QKV else linear.out_features
        yield Side(linear.name, "in_features", linear.in_features)
        yield Side(linear.name, "out_features", rows)


def vocabulary_rows(tokens: int, ranks: int) -> int:
    """Returns the rows of each rank's part of a vocabulary; zero rows pad the last part."""
    return -(-tokens // ranks)


def split_problem(model: ModelFacts, ranks: int) -> str | None:
    """Says why decoder layers cannot be cut over tensor-parallel ranks; None if they can."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % ranks:
        return f"{heads} attention heads cannot be split over {ranks} ranks"
    if max(kv_heads, ranks) % min(kv_heads, ranks):
        return f"{kv_heads} KV heads can be neither split nor repeated over {ranks} ranks"
    for linear in model.linears:
        if linear.name == QKV:
            # Cut by heads.
            continue
        column = linear.split == "column"
        size = linear.out_features if column else linear.in_features
        if size % ranks:
            side = "out_features" if column else "in_features"
            return f"{side} {size} of {linear.name} cannot be split over {ranks} ranks"
    return None
