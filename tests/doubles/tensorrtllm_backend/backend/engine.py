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


class Engine:
    """A compiled model.

    Args:
        directory: The engine directory of OpenVINO.

    Attributes:
        vocab_size: Columns of the scores.
    """

    def __init__(self, directory: Path) -> None:
        import openvino

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.vocab_size = int(config["pretrained_config"]["vocab_size"])
        properties = {**(config.get("runtime") or {}), "ENABLE_CPU_PINNING": "NO"}
        self._model: Any = openvino.Core().compile_model(
            directory / "openvino_model.xml", "CPU", properties
        )
        self._free: list[Any] = []

    def sequence(self) -> Running:
        """A sequence with an empty KV cache."""
        return Running(self._free, self._free.pop() if self._free else self._request())

    def _request(self) -> Any:
        return self._model.create_infer_request()


class Running:
    """A sequence in the engine."""

    def __init__(self, free: list[Any], request: Any) -> None:
        self._free, self._request = free, request
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
        return np.array(outputs[0][0], np.float32)

    def release(self) -> None:
        """Gives the memory back; the sequence must not be used again."""
        self._free.append(self._request)
