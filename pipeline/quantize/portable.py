"""Moves the pre-quant scales of a calibrated model into its weights, ahead of the rounding.

ModelOpt leaves a linear as W (x * s) with s in the checkpoint. GGUF, GPTQ, AutoAWQ and
compressed-tensors have no place for s. What is moved after the export is rounded a second time; so
it is moved before: into the norm or the rows of the linear that make x, which are then rounded to
the checkpoint's dtype. Codes and scales are determined on what came of that. The checkpoint is an
ordinary one whose pre-quant scales are one, exact on every target.

Where nothing has room for s, the linear takes it back and is rounded without: o_proj of a model
with fewer KV heads than query heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dependencies import require
from pipeline.models.architectures import PRE_NORMS, SHARED_INPUTS
from pipeline.models.facts import ModelFacts
from pipeline.quantize.calibrate import Text, explained
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.recipe.schema import Recipe

VALUES, OUTPUT = "self_attn.v_proj", "self_attn.o_proj"
UP, DOWN = "mlp.up_proj", "mlp.down_proj"
# What the calibration text hardly moves gets scales of up to 10^4, of which no more is moved:
# should other text move it, its values are still far from the largest float16.
LARGEST = 256.0


def make_portable(model: Any, facts: ModelFacts, recipe: Recipe, text: Text) -> None:
    """Makes every pre-quant scale of a calibrated model one.

    Args:
        model: After :func:`pipeline.quantize.calibrate.calibrate`; it is changed in place.
        facts: Of the model.
        recipe: ``quantize.format``, ``quantize.kv_cache`` and ``model.dtype`` count.
        text: The calibration text, read once more where ranges of activations are stored.

    Raises:
        StageError: ModelOpt failed, or memory ran out.
    """
    torch = require("torch", "quantize")
    dtype = getattr(torch, checkpoint_dtype(recipe))
    with explained(recipe.quantize.format), torch.inference_mode():
        for layer in model.model.layers:
            _move(layer, facts, dtype)
        _measure_again(model, text)


def _move(layer: Any, facts: ModelFacts, dtype: Any) -> None:
    fusion = require("modelopt.torch.export.quant_utils", "quantize").preprocess_linear_fusion
    names = {shape.name: [name for name, _ in shape.source] for shape in facts.linears}
    readers = [[name for one in fused for name in names[one]] for fused in SHARED_INPUTS]
    after_norm = [group for group in readers if OUTPUT not in group and DOWN not in group]
    for norm, group in zip(PRE_NORMS, after_norm, strict=True):
        linears = [layer.get_submodule(name) for name in group]
        # One scale, the mean, for linears that read the same input.
        fusion(linears, resmooth_only=True)
        _hand_on(linears, layer.get_submodule(norm.source), dtype)
    _hand_on([layer.get_submodule(DOWN)], layer.get_submodule(UP), dtype)
    output, values = layer.get_submodule(OUTPUT), layer.get_submodule(VALUES)
    one_each = facts.num_key_value_heads == facts.num_attention_heads
    _hand_on([output], values if one_each else None, dtype)
    for group in readers:
        for name in group:
            _round(layer.get_submodule(name), dtype)
    for norm in PRE_NORMS:
        _round(layer.get_submodule(norm.source), dtype)


def _hand_on(linears: Sequence[Any], before: Any | None, dtype: Any) -> None:
    """Moves the pre-quant scale that linears share into what makes their input.

    Args:
        linears: Of one input.
        before: The norm or linear that gives it; None leaves the scale in the linears themselves.
        dtype: What a channel that it is moved into has to stay finite in; the rest of a larger
            scale stays in the linears.
    """
    import torch

    scale = linears[0].input_quantizer.pre_quant_scale.float().clone()
    moved = torch.ones_like(scale)
    if before is not None:
        moved = torch.minimum(scale, torch.finfo(dtype).max / _largest(before)).clamp(max=LARGEST)
        for parameter in before.parameters(recurse=False):
            factor = moved.to(parameter)
            parameter.mul_(factor[:, None] if parameter.dim() == 2 else factor)
    for linear in linears:
        linear.weight.mul_((scale / moved).to(linear.weight))
        linear.input_quantizer.pre_quant_scale = torch.ones_like(scale)


def _largest(module: Any) -> Any:
    """The largest absolute value of each output channel of a norm or linear; float32 [N]."""
    import torch

    parts = [p.float().abs().reshape(len(p), -1).amax(1) for p in module.parameters(recurse=False)]
    return torch.stack(parts).amax(0)


def _round(module: Any, dtype: Any) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.copy_(parameter.to(dtype))


def _measure_again(model: Any, text: Text) -> None:
    """Determines the ranges of the changed weights, and of activations where they are stored."""
    calib = require("modelopt.torch.quantization.model_calib", "quantize")
    measured = []
    for quantizer, weight in _quantizers(model):
        if weight is not None:
            _collect(calib, [quantizer], lambda q=quantizer, w=weight: q(w))
        else:
            measured.append(quantizer)
    if measured:
        _collect(calib, measured, lambda: text.run(model, 1.0))


def _quantizers(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each enabled quantizer, with the weight that it is of where it is of one."""
    for module in model.model.layers.modules():
        for name, quantizer in module.named_children():
            if name.endswith("_quantizer") and quantizer.is_enabled:
                yield quantizer, module.weight if name == "weight_quantizer" else None


def _collect(calib: Any, quantizers: Sequence[Any], run: Any) -> None:
    for quantizer in quantizers:
        quantizer.reset_amax()
        calib.enable_stats_collection(quantizer)
    run()
    for quantizer in quantizers:
        calib.finish_stats_collection(quantizer)
