"""``postprocessing``: token ids to text.

Each response is decoded on its own: Triton lets a step of an ensemble take nothing but the outputs
of the decoupled model before it, so neither the prompt nor the earlier responses can be known here
(pieces.py). Two things follow. In a stream, a character split over two responses comes out as
replacement characters, as in upstream's ensemble. And an answer keeps the space in front of its
first word, with tokenizers that have one there, also after a prompt that ends with a special token.
``tensorrt_llm_bls`` knows the prompt, decodes across responses and is exact.

The model's end ids after the first are stop words to the engine, which leaves them in its output.
One at the end of a response has no text here, as if it were the first one. Neither can it be known
whether the request named an end id of its own, so that it might be an ordinary token; nor do the
engine's counts and log probabilities pass through here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from .end_ids import read_end_ids
from .failures import unexpected
from .orphan import end_with_parent
from .parameters import flag, read_parameters
from .pieces import PieceDecoder
from .receipts import PLACES, Returns

LOOK_PERIOD_S = 0.1
"""Seconds between two looks whether one client has gone: each asks Triton, and takes as long as
decoding a response."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the tokenizer."""
        end_with_parent()
        parameters = read_parameters(args)
        directory = Path(args["model_repository"]).parent / parameters["tokenizer_dir"]
        self._decoder = PieceDecoder(
            Tokenizer.from_file(str(directory / "tokenizer.json")),
            skip_special_tokens=flag(parameters, "skip_special_tokens", default=True),
        )
        self._stops = frozenset(read_end_ids(directory)[1:])
        self._returns = Returns()
        self._looked: dict[int, float] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return self._answer(request)
        except _Refused as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=refusal)
        except Exception as error:
            # Raised on, it would fail every request of the batch, with the traceback for a text.
            internal = pb_utils.TritonError(unexpected(error), pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(output_tensors=[], error=internal)

    def _answer(self, request: Any) -> Any:
        if (ticket := pb_utils.get_input_tensor_by_name(request, "TICKET")) is not None:
            self._look_after(request, ticket.as_numpy().reshape(-1, 3).tolist())
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        _check(tokens, lengths)
        # [batch, beam, n] ids, of which the first [batch, beam] count.
        texts = [
            self._decoder.text(self._without_end(_ids(beam, length))).encode()
            for row, row_lengths in zip(tokens, lengths, strict=True)
            for beam, length in zip(row, row_lengths, strict=True)
        ]
        # Flat, as upstream's model sends it: its clients take the first element for the text.
        output = pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))
        return pb_utils.InferenceResponse(output_tensors=[output])

    def _look_after(self, request: Any, tickets: list[list[int]]) -> None:
        """Hands the ticket of a request back whose client has gone (receipts.py)."""
        now = time.monotonic()
        for number, place, client in tickets:
            if now - self._looked.get(place, 0.0) < LOOK_PERIOD_S:
                continue
            if 0 <= place < PLACES:
                self._looked[place] = now
            if request.is_cancelled():
                self._returns.hand_back((number, place, client))

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self._stops else ids


class _Refused(Exception):  # noqa: N818
    """Tensors that are no answer of an engine; the text goes to the client."""


def _check(tokens: Any, lengths: Any) -> None:
    if lengths.shape != tokens.shape[:2]:
        raise _Refused(
            f"SEQUENCE_LENGTH must have one length for each text of TOKENS_BATCH, which has the "
            f"shape {list(tokens.shape)}; it has the shape {list(lengths.shape)}"
        )
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= tokens.shape[2]:
        wrong = lengths.min() if lengths.min() < 0 else lengths.max()
        raise _Refused(
            f"SEQUENCE_LENGTH must be between 0 and the {tokens.shape[2]} ids that TOKENS_BATCH "
            f"has for each text, got {wrong}"
        )


def _ids(beam: Any, length: Any) -> list[int]:
    """The ids of a text; what is behind them may be anything."""
    ids: list[int] = beam[:length].tolist()
    if ids and min(ids) < 0:
        raise _Refused(f"TOKENS_BATCH has the id {min(ids)}; ids are 0 and above")
    return ids
