"""Causal attention with rotary positions and a key/value cache, as OpenVINO GenAI expects it.

``ContinuousBatchingPipeline`` replaces each cache and ScaledDotProductAttention by its paged
attention; the graph it recognizes is: ReadValue, Gather by ``beam_idx``, Concat, Assign, and heads
repeated by Broadcast and Reshape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import openvino as ov
from openvino import opset6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from pipeline.models.facts import ModelFacts
from pipeline.targets.openvino.linears import LayerAt, Linears
from pipeline.targets.openvino.ops import (
    Node,
    concat_shape,
    dimension,
    floats,
    integer,
    integers,
    rms_norm,
)
from pipeline.targets.openvino.rope import inverse_frequencies

# The most negative float16: it masks in every precision the plugin may choose, and stays finite.
MASKED = -65504.0


@dataclass
class Attention:
    """What every layer's attention shares.

    Attributes:
        batch: int64 [1], sequences.
        cos: float32 [batch, 1, length, head_size], with ``sin``.
        mask: float32 [batch, 1, length, past + length], added to the scores.
        beam_idx: int32 [batch], the cache row each sequence continues.
        sinks: The Assign operations created so far.
    """

    facts: ModelFacts
    batch: Node
    cos: Node
    sin: Node
    mask: Node
    beam_idx: Node
    sinks: list[Node] = field(default_factory=list)

    @classmethod
    def from_inputs(
        cls, facts: ModelFacts, attention_mask: Node, position_ids: Node, beam_idx: Node
    ) -> Attention:
        """Builds the tables that all layers read from the model's int64 inputs."""
        batch = dimension(position_ids, 0)
        cos, sin = _rotary_tables(facts, position_ids, batch)
        mask = _causal_mask(attention_mask, position_ids)
        return cls(facts, batch, cos, sin, mask, beam_idx)

    def __call__(self, x: Node, layer: LayerAt, linears: Linears) -> Node:
        """Attention of one layer.

        Args:
            x: float32 [batch, length, hidden_size], already normalized.
            layer: Its weights, and its number, which names its cache.
            linears: Adds the projections.

        Returns:
            float32 [batch, length, hidden_size].
        """
        facts = self.facts
        heads, kv_heads, size = (
            facts.num_attention_heads,
            facts.num_key_value_heads,
            facts.head_size,
        )
        widths = integers(heads * size, kv_heads * size, kv_heads * size)
        qkv = op.variadic_split(linears(x, layer.linear("qkv")), integer(-1), widths)
        q, k, v = (
            op.reshape(qkv.output(i), integers(0, 0, n, size), True)
            for i, n in enumerate((heads, kv_heads, kv_heads))
        )
        q_norm, k_norm = layer().q_layernorm, layer().k_layernorm
        if q_norm is not None and k_norm is not None:
            q = rms_norm(q, q_norm, facts.norm_epsilon)
            k = rms_norm(k, k_norm, facts.norm_epsilon)
        q, k, v = (op.transpose(y, integers(0, 2, 1, 3)) for y in (q, k, v))
        number = layer.number
        keys = self._cached(self._rotated(k), f"past_key_values.{number}.keypresent.{number}.key")
        values = self._cached(v, f"past_key_values.{number}.valuepresent.{number}.value")
        y = op.scaled_dot_product_attention(self._rotated(q), keys, values, self.mask)
        y = op.reshape(op.transpose(y, integers(0, 2, 1, 3)), integers(0, 0, heads * size), True)
        return linears(y, layer.linear("dense"))

    def _rotated(self, x: Node) -> Node:
        half = self.facts.head_size // 2
        first = op.slice(x, integers(0), integers(half), integers(1), integers(3))
        second = op.slice(x, integers(half), integers(2**63 - 1), integers(1), integers(3))
        turned = op.concat([op.multiply(second, floats(-1.0, 4)), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def _cached(self, new: Node, name: str) -> Node:
        """Appends ``new`` [batch, kv_heads, length, size] to a cache, repeated per query head."""
        facts = self.facts
        heads, kv_heads, size = (
            facts.num_attention_heads,
            facts.num_key_value_heads,
            facts.head_size,
        )
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, kv_heads, -1, size])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        empty = op.broadcast(floats(0.0), concat_shape(self.batch, kv_heads, 0, size))
        past = op.gather(opset6.read_value(empty, variable), self.beam_idx, integer(0))
        whole = op.concat([past, new], 2)
        self.sinks.append(opset6.assign(whole, variable))
        if heads == kv_heads:
            return whole
        shape = concat_shape(self.batch, kv_heads, heads // kv_heads, 1, size)
        repeated = op.broadcast(
            op.unsqueeze(whole, integers(2)), shape, broadcast_spec="BIDIRECTIONAL"
        )
        return op.reshape(repeated, integers(0, heads, -1, size), True)


def _rotary_tables(facts: ModelFacts, position_ids: Node, batch: Node) -> tuple[Node, Node]:
    frequencies = floats(inverse_frequencies(facts).reshape(1, -1, 1))
    frequencies = op.broadcast(
        frequencies, concat_shape(batch, 1, 1), broadcast_spec="BIDIRECTIONAL"
    )
    positions = op.convert(op.unsqueeze(position_ids, integers(1)), ov.Type.f32)
    angles = op.transpose(op.matmul(frequencies, positions, False, False), integers(0, 2, 1))
    both_halves = op.concat([angles, angles], -1)
    return (
        op.unsqueeze(op.cos(both_halves), integers(1)),
        op.unsqueeze(op.sin(both_halves), integers(1)),
    )


def _causal_mask(attention_mask: Node, position_ids: Node) -> Node:
    total = op.gather(op.shape_of(attention_mask), integer(1), integer(0))
    key_positions = op.unsqueeze(
        op.range(integer(0), total, integer(1), ov.Type.i64), integers(0, 1, 2)
    )
    query_positions = op.unsqueeze(op.unsqueeze(position_ids, integers(-1)), integers(1))
    visible = op.less_equal(key_positions, query_positions)
    present = op.unsqueeze(op.convert(attention_mask, ov.Type.boolean), integers(1, 2))
    return op.select(op.logical_and(visible, present), floats(0.0), floats(MASKED))
