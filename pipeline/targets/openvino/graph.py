"""A decoder as an OpenVINO model, from a checkpoint's weights and the model's facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import openvino as ov
from openvino import opset13 as op

from pipeline.checkpoint.layout import Weights
from pipeline.models.facts import ModelFacts
from pipeline.targets.openvino.attention import Attention
from pipeline.targets.openvino.constants import Constants
from pipeline.targets.openvino.linears import LayerAt, Linears, joinable
from pipeline.targets.openvino.ops import Node, as_float32, integer, integers, rms_norm


def build_model(
    weights: Weights,
    facts: ModelFacts,
    layer_built: Callable[[], None] = lambda: None,
    constants: Constants | None = None,
) -> ov.Model:
    """Builds the stateful model that OpenVINO GenAI serves.

    Inputs are ``input_ids``, ``attention_mask``, ``position_ids`` (int64 [batch, length]) and
    ``beam_idx`` (int32 [batch]); the output ``logits`` is float32 [batch, length, vocab_size]. Keys
    and values live in variables.

    Args:
        weights: The checkpoint's, in the quantization they are stored in.
        facts: Sizes, norms and rotary embedding.
        layer_built: Called after each layer.
        constants: Makes the matrices; None copies them into memory.

    Raises:
        CompileError: A linear's quantization cannot be executed exactly on the CPU.
    """
    input_ids = _parameter("input_ids", ov.Type.i64, 2)
    attention_mask = _parameter("attention_mask", ov.Type.i64, 2)
    position_ids = _parameter("position_ids", ov.Type.i64, 2)
    beam_idx = _parameter("beam_idx", ov.Type.i32, 1)

    constants = Constants() if constants is None else constants
    linears = Linears(constants)
    attention = Attention.from_inputs(facts, attention_mask, position_ids, beam_idx)
    table = constants.stored(
        weights.vocab_embedding,
        lambda: [weights.vocab_embedding],
        "transformer.vocab_embedding.weight",
    )
    x = op.gather(as_float32(table), input_ids, integer(0))
    for number in range(len(weights.layers)):
        layer = LayerAt(weights.layers, number)
        h = rms_norm(x, layer().input_layernorm, facts.norm_epsilon)
        x = op.add(x, attention(h, layer, linears))
        h = rms_norm(x, layer().post_layernorm, facts.norm_epsilon)
        x = op.add(x, _mlp(h, layer, linears))
        layer_built()
    h = rms_norm(x, weights.ln_f, facts.norm_epsilon)
    logits = linears(h, lambda: weights.lm_head)

    logits.output(0).set_names({"logits"})
    result = op.result(logits)
    result.set_friendly_name("logits")
    inputs = [input_ids, attention_mask, position_ids, beam_idx]
    model = ov.Model([result], attention.sinks, inputs, facts.architecture)
    _name_operations(model)
    return model


def _mlp(x: Node, layer: LayerAt, linears: Linears) -> Node:
    fc, gate = layer.linear("fc"), layer.linear("gate")
    if joinable(fc(), gate()):
        widths = integers(fc().out_features, gate().out_features)
        parts = op.variadic_split(linears(x, fc, gate), integer(-1), widths)
        raised, gated = parts.output(0), parts.output(1)
    else:
        raised, gated = linears(x, fc), linears(x, gate)
    return linears(op.multiply(op.swish(raised), gated), layer.linear("proj"))


def _parameter(name: str, element_type: ov.Type, rank: int) -> Node:
    parameter = op.parameter(ov.PartialShape([-1] * rank), element_type, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _name_operations(model: ov.Model) -> None:
    """Replaces names that number the whole process's operations: equal models, equal bytes."""
    counts: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{kind}_{counts[kind]}")
            counts[kind] += 1
