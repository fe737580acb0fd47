"""``preprocessing``: text and words to the token tensors of ``tensorrt_llm``.

Every end id of the model's generation_config.json is honoured: the first one is ``OUT_END_ID`` and
the others join the stop words, which is how the C++ backend can be told about them. A request that
brings its own ``END_ID`` gets that one only, and -1 for none.

What no engine should be asked for is refused here, so that both targets say the same; the inputs
that are looked at for that go to the engine by themselves. TensorRT-LLM checks most of them, too,
but its answer is the text of an assertion, and a beam_width above the engine's ends every other
request (changeBeamWidth in batch_manager/trtGptModelInflightBatching.cpp, terminateActiveRequests
in executor/executorImpl.cpp).

There are no virtual tokens here: they come from images, or from clients of ``tensorrt_llm`` that
write ids above the vocabulary themselves. So ``OUT_PROMPT_TABLE_EXTRA_IDS`` is never made.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .engine_limits import EngineLimits
from .orphan import end_with_parent
from .parameters import flag, read_parameters
from .prompt import PromptEncoder, PromptError, pad, word_list
from .request_limits import cold_problem, room_problem, sampling_problem, tokens_problem
from .request_parameters import unknown_parameters

_REQUIRED = {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens"}

_NO_GENERATION_LOGITS = (
    "return_generation_logits: TensorRT-LLM's backend for Triton never switches its executor's "
    "gather_generation_logits on, so that every request for them fails; leave it out"
)

_ADD_SPECIAL_TOKENS = "add_special_tokens"

ENGINE_CONFIG = "tensorrt_llm/1/engine/config.json"
"""Where the repository keeps the engine's limits, whatever the engine."""


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the tokenizer."""
        end_with_parent()
        parameters = read_parameters(args)
        repository = Path(args["model_repository"]).parent
        self._encoder = PromptEncoder(
            repository / parameters["tokenizer_dir"],
            add_special_tokens=_setting(parameters),
            limits=EngineLimits.read(repository / ENGINE_CONFIG),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        wanted = request.requested_output_names()
        try:
            if reason := unknown_parameters(request):
                raise PromptError(reason)
            outputs = self._outputs(inputs)
        except PromptError as error:
            invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=invalid)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, value) for name, value in outputs.items() if name in wanted
            ]
        )

    def _outputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        encoder = self._encoder
        for name, client_name in _REQUIRED.items():
            # Triton counts the inputs of a request and does not look which they are.
            if name not in inputs:
                raise PromptError(f"the input {client_name} is missing")
        queries = inputs["QUERY"]
        batch = queries.shape[0]
        decoder_query = inputs.get("DECODER_QUERY")
        if decoder_query is not None and any(decoder_query.reshape(-1)):
            raise PromptError("decoder_text_input: this model has no encoder to pair it with")
        if np.any(inputs.get("PROMPT_TABLE_EXTRA_ID", 0)):
            raise PromptError("prompt_table_extra_id: a text has no virtual tokens to give it to")
        for row in range(batch):
            if problem := self._problem(inputs, row):
                raise PromptError(problem)
        flags = inputs.get("ADD_SPECIAL_TOKENS")
        ids = [
            encoder.encode(
                queries[row][0],
                "text_input",
                add_special_tokens=None if flags is None else bool(flags[row].item()),
            )
            for row in range(batch)
        ]
        self._check_room(ids, inputs["REQUEST_OUTPUT_LEN"])
        end_id, pad_id = inputs.get("END_ID"), inputs.get("PAD_ID")
        own_end = encoder.end_ids[0] if encoder.end_ids else -1
        pad_ids = np.full((batch, 1), encoder.pad_id, np.int32) if pad_id is None else pad_id
        more_ends = encoder.end_ids[1:] if end_id is None else ()
        return {
            "INPUT_ID": pad(ids, encoder.pad_id),
            "REQUEST_INPUT_LEN": np.array([[len(row)] for row in ids], np.int32),
            # A decoder-only engine is given one pad token here by upstream's model too.
            "DECODER_INPUT_ID": pad_ids,
            "REQUEST_DECODER_INPUT_LEN": np.ones((batch, 1), np.int32),
            "BAD_WORDS_IDS": self._words(inputs, "BAD_WORDS_DICT", "bad_words", batch),
            "STOP_WORDS_IDS": self._words(
                inputs, "STOP_WORDS_DICT", "stop_words", batch, [[end] for end in more_ends]
            ),
            "EMBEDDING_BIAS": self._embedding_bias(inputs, batch),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
            "OUT_END_ID": np.full((batch, 1), own_end, np.int32) if end_id is None else end_id,
            "OUT_PAD_ID": pad_ids,
        }

    def _words(
        self,
        inputs: dict[str, Any],
        name: str,
        client_name: str,
        batch: int,
        more: list[list[int]] | None = None,
    ) -> Any:
        given = inputs.get(name)
        texts = [[]] * batch if given is None else given
        rows = [self._encoder.word_ids(row, client_name) for row in texts]
        if client_name != "stop_words":
            # A stop word that the engine cannot say is harmless.
            for word in itertools.chain.from_iterable(rows):
                self._encoder.check_known(word, client_name)
        return word_list([[*row, *(more or [])] for row in rows])

    def _problem(self, inputs: dict[str, Any], row: int) -> str | None:
        """Why what one prompt asks the engine for is refused."""

        def scalar(name: str) -> Any:
            array = inputs.get(name.upper())
            return None if array is None else array[row].item()

        beams, most = scalar("beam_width"), self._encoder.limits.max_beam_width
        if beams is not None and beams < 1:
            return f"beam_width must be at least 1, got {beams}"
        if beams is not None and most is not None and beams > most:
            return f"beam_width must be at most the engine's max_beam_width {most}, got {beams}"
        if scalar("return_generation_logits"):
            return _NO_GENERATION_LOGITS
        max_tokens = int(inputs["REQUEST_OUTPUT_LEN"][row].item())
        return (
            sampling_problem(scalar)
            or cold_problem(scalar)
            or tokens_problem(max_tokens, "max_tokens", scalar("min_tokens") or 0)
        )

    def _check_room(self, prompts: list[list[int]], max_tokens: Any) -> None:
        longest = self._encoder.limits.max_seq_len
        if longest is None:
            return
        for ids, tokens in zip(prompts, max_tokens.flat, strict=True):
            if problem := room_problem(len(ids), int(tokens), "max_tokens", longest):
                raise PromptError(problem)

    def _embedding_bias(self, inputs: dict[str, Any], batch: int) -> Any:
        """float32 [batch, vocabulary], or [batch, 0] when no word is to be favoured.

        The vocabulary is the engine's, which may be larger than the tokenizer's: TensorRT-LLM
        meets a bias of another width with an error that ends every other request, too
        (batch_manager/createNewDecoderRequests.cpp, "The embedding bias shape is not as expected";
        terminateActiveRequests in executor/executorImpl.cpp).
        """
        words, weights = inputs.get("EMBEDDING_BIAS_WORDS"), inputs.get("EMBEDDING_BIAS_WEIGHTS")
        if words is None and weights is None:
            return np.empty((batch, 0), np.float32)
        if words is None or weights is None:
            raise PromptError("embedding_bias_words needs embedding_bias_weights, and vice versa")
        if words.shape != weights.shape:
            raise PromptError(
                f"embedding_bias_words has the shape {list(words.shape)} and "
                f"embedding_bias_weights {list(weights.shape)}; each word needs one weight"
            )
        bias = np.zeros((batch, self._encoder.vocab_size), np.float32)
        for row in range(batch):
            tokens = self._encoder.word_ids(words[row], "embedding_bias_words")
            for word, weight in zip(tokens, weights[row], strict=True):
                self._encoder.check_known(word, "embedding_bias_words")
                for token in word:
                    bias[row, token] += weight
        return bias


def _setting(parameters: Mapping[str, str]) -> bool | None:
    """The parameter ``add_special_tokens``; None is ``auto``, which is also the default.

    Raises:
        ValueError: It is something else.
    """
    if parameters.get(_ADD_SPECIAL_TOKENS, "auto").lower() == "auto":
        return None
    return flag(parameters, _ADD_SPECIAL_TOKENS, default=True, other="auto, ")
