"""INT8 and FP8 matrix products of the device with our scales, against the float32 reference.

``torch._int_mm`` must be exact: the codes are whole numbers. What is dequantized from it, and what
``torch._scaled_mm`` gives, must agree with ``pipeline/reference`` on the same input.
"""

from __future__ import annotations

from typing import Any

from scripts.gpu_check.task import Case, Cases, Task, case, quantize, recipe, verdict

ROWS = 64
INT8_TOLERANCE = 1e-5
FP8_TOLERANCE = 1e-3


def cases(task: Task) -> Cases:
    """One case per linear of the first and the last layer, in each of the two formats."""
    from pipeline.checkpoint import open_checkpoint

    for name, product in (("int8_sq", int8_case), ("fp8", fp8_case)):
        if not task.wants(name):
            continue
        folder = quantize(recipe(name, "cpu"), task.work / name)
        layers = open_checkpoint(folder).weights().layers
        for layer in (layers[0], layers[-1]):
            for linear in (layer.qkv, layer.dense, layer.fc, layer.gate, layer.proj):
                yield product(linear, task.device)


def int8_case(linear: Any, device: str) -> Case:
    """y = codes @ W.T in int32, times both scales."""
    import torch

    from pipeline.reference.linear import float32_tensor, round_to_int8, whole_linear

    x, step = activations(linear, 127.0), linear.activation_scaling_factor
    rounded = round_to_int8(x * float32_tensor(linear.prequant_scaling_factor), step)
    codes = torch.round(rounded / step).to(torch.int8)
    weight = torch.from_numpy(linear.weight.copy())
    try:
        sums = torch._int_mm(codes.to(device), weight.to(device).T).cpu()
    except (RuntimeError, NotImplementedError) as error:
        return skipped(f"int8 {linear.name}", "torch._int_mm", error)
    exact = codes.to(torch.int64) @ weight.to(torch.int64).T
    wrong = int((sums.to(torch.int64) != exact).sum())
    y = sums.float() * step * float32_tensor(linear.weights_scaling_factor)
    error = distance(y + bias_of(linear), whole_linear(linear)(x))
    problems = [f"{wrong} of {sums.numel()} sums are not exact"] if wrong else []
    problems += [f"rel-rms {error:.1e}"] if not error <= INT8_TOLERANCE else []
    return verdict(f"int8 {linear.name}", problems, inexact_sums=wrong, rel_rms=error)


def fp8_case(linear: Any, device: str) -> Case:
    """y = codes @ W.T times both scales, in float32 or, where the device has none, bfloat16."""
    import numpy as np
    import torch

    from pipeline.reference.linear import round_to_float8, whole_linear

    x = activations(linear, 448.0)
    step = linear.activation_scaling_factor
    codes = (round_to_float8(x, step) / step).to(torch.float8_e4m3fn)
    stored = torch.from_numpy(linear.weight.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    weight_scale = float(linear.weights_scaling_factor.reshape(-1)[0])
    scales = [torch.tensor(scale, device=device) for scale in (step, weight_scale)]
    y, said = None, None
    for dtype in (torch.float32, torch.bfloat16):
        try:
            y = torch._scaled_mm(
                codes.to(device),
                stored.to(device).T,
                scale_a=scales[0],
                scale_b=scales[1],
                out_dtype=dtype,
            )
            break
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said = error
    if y is None:
        return skipped(f"fp8 {linear.name}", "torch._scaled_mm", said)
    tolerance = FP8_TOLERANCE if y.dtype == torch.float32 else 2.0**-8
    error = distance(y.float().cpu() + bias_of(linear), whole_linear(linear)(x))
    problems = [f"rel-rms {error:.1e}"] if not error <= tolerance else []
    kind = str(y.dtype).removeprefix("torch.")
    return verdict(f"fp8 {linear.name}", problems, results=kind, rel_rms=error)


def activations(linear: Any, largest: float) -> Any:
    """float32 [ROWS, K], spread over the quantizer's range; a few values lie beyond it."""
    import torch

    generator = torch.Generator().manual_seed(17)
    x = torch.randn(ROWS, linear.in_features, generator=generator)
    x *= linear.activation_scaling_factor * largest / 3
    if linear.prequant_scaling_factor is None:
        return x
    from pipeline.reference.linear import float32_tensor

    return x / float32_tensor(linear.prequant_scaling_factor)


def bias_of(linear: Any) -> Any:
    """The bias in float32, or 0."""
    from pipeline.reference.linear import float32_tensor

    return 0.0 if linear.bias is None else float32_tensor(linear.bias)


def distance(found: Any, expected: Any) -> float:
    """rms(found - expected) / rms(expected)."""
    import torch

    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


def skipped(name: str, function: str, error: Exception | None) -> Case:
    """The device has no such product."""
    said = str(error).strip().partition("\n")[0]
    return case(name, "skipped", reason=f"{function} does not run here: {said}")
