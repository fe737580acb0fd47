"""``postprocessing``: token ids to text.

Each response is decoded on its own. So in a streaming ensemble a character split over two responses
comes out as two replacement characters, and a tokenizer that drops the space in front of a text
(Llama 2's) drops the one in front of each response. ``tensorrt_llm_bls`` decodes across responses
and is exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from .orphan import end_with_parent
from .parameters import flag, read_parameters


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the tokenizer."""
        end_with_parent()
        parameters = read_parameters(args)
        directory = Path(args["model_repository"]).parent / parameters["tokenizer_dir"]
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._skip_special_tokens = flag(parameters, "skip_special_tokens", default=True)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        # [batch, beam, n] ids, of which the first [batch, beam] count.
        texts = [
            [
                self._tokenizer.decode(
                    beam[:length].tolist(), skip_special_tokens=self._skip_special_tokens
                ).encode()
                for beam, length in zip(row, row_lengths, strict=True)
            ]
            for row, row_lengths in zip(tokens, lengths, strict=True)
        ]
        output = pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))
        return pb_utils.InferenceResponse(output_tensors=[output])
