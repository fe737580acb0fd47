"""The same model on the CPU: OpenVINO's own runtime, without openvino_genai.

``rank0.engine`` of the repository is a double's and cannot run, so the engine directory that the
same recipe builds for OpenVINO is opened instead. Each sequence has an inference request of its
own, with the KV cache as its state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .adapters import Row

_LINEARS = {
    "attn_q": "attention.qkv",
    "attn_k": "attention.qkv",
    "attn_v": "attention.qkv",
    "attn_dense": "attention.dense",
    "mlp_h_to_4h": "mlp.fc",
    "mlp_gate": "mlp.gate",
    "mlp_4h_to_h": "mlp.proj",
}
"""The matrix multiplication in a layer that holds a module of ``LoraModule``."""


class Engine:
    """A compiled model.

    Args:
        directory: The engine directory of OpenVINO.
        noise: Standard deviation of what is added to every score, as rounding would.
        adapter: What a LoRA adapter adds to the linears.

    Attributes:
        vocab_size: Columns of the scores.
    """

    def __init__(self, directory: Path, noise: float = 0.0, adapter: Sequence[Row] = ()) -> None:
        import openvino

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._directory, self._noise = directory, noise
        self.vocab_size = int(config["pretrained_config"]["vocab_size"])
        properties = {**(config.get("runtime") or {}), "ENABLE_CPU_PINNING": "NO"}
        core = openvino.Core()
        model: Any = directory / "openvino_model.xml"
        if adapter:
            model = core.read_model(model)
            _add(model, adapter, config["pretrained_config"])
        self._model: Any = core.compile_model(model, "CPU", properties)
        self._free: list[Any] = []
        self._random = np.random.default_rng(0)

    def adapted(self, adapter: Sequence[Row]) -> Engine:
        """The model with a LoRA adapter, beside this one."""
        return Engine(self._directory, self._noise, adapter)

    def sequence(self) -> Running:
        """A sequence with an empty KV cache."""
        request = self._free.pop() if self._free else self._model.create_infer_request()
        return Running(self._free, request, self._noisy)

    def _noisy(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not self._noise:
            return scores
        noise = self._random.normal(0.0, self._noise, scores.shape)
        return scores + noise.astype(np.float32)


class Running:
    """A sequence in the engine."""

    def __init__(self, free: list[Any], request: Any, noisy: Any) -> None:
        self._free, self._request, self._noisy = free, request, noisy
        self._request.reset_state()
        self._past = 0

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[Any]:
        """The scores after each of these tokens, float32 [tokens, vocabulary]."""
        count = len(tokens)
        outputs = self._request.infer(
            {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, self._past + count), np.int64),
                "position_ids": np.arange(self._past, self._past + count)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )
        self._past += count
        return self._noisy(np.array(outputs[0][0], np.float32))

    def release(self) -> None:
        """Gives the memory back; the sequence must not be used again."""
        self._free.append(self._request)


def _add(model: Any, adapter: Sequence[Row], config: dict[str, Any]) -> None:
    """Adds ``B @ A`` of each row to its linear: y becomes y + (x @ A.T) @ B.T."""
    from openvino import opset13 as op

    linears = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    # Several rows may add to one linear.
    totals: dict[str, Any] = {}
    queries, values = (
        int(config[f"num_{kind}_heads"]) * int(config["head_size"])
        for kind in ("attention", "key_value")
    )
    # Queries, keys and values are the rows of one linear, in this order.
    first = {"attn_k": queries, "attn_v": queries + values}
    for row in adapter:
        layer, linear = f"transformer.layers.{row.layer}", _LINEARS[row.module]
        start = first.get(row.module, 0)
        if linear == "mlp.gate" and f"{layer}.{linear}" not in linears:
            # Of one product with fc, whose rows come first.
            linear, start = "mlp.fc", int(config["intermediate_size"])
        name = f"{layer}.{linear}"
        node, total = linears[name], totals.get(name, linears[name])
        uses = total.output(0).get_target_inputs()
        outside = node.output(0).get_partial_shape()[2].get_length()
        b = np.zeros((outside, row.b.shape[1]), np.float32)
        b[start : start + row.b.shape[0]] = row.b
        inner = op.matmul(node.input_value(0), op.constant(row.a), False, True)
        totals[name] = op.add(total, op.matmul(inner, op.constant(b), False, True))
        for use in uses:
            use.replace_source_output(totals[name].output(0))
    model.validate_nodes_and_infer_types()
