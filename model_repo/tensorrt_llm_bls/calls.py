"""Calls to the other models of the repository, by NVIDIA's tensor names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from .keeper import Keeper
from .lane import Lane, LaneCall, Lost
from .lane_frames import BEGUN, END, PARAMETER, Frame
from .statuses import ASKED, heard

Array = npt.NDArray[Any]

REASON_S = 5.0
"""Seconds for which a call that has failed waits for the reason from an engine that is gone."""

_TO_PREPROCESSING = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
    "add_special_tokens": "ADD_SPECIAL_TOKENS",
}
# Inputs of one element that preprocessing only looks at, by its own names in capitals.
_CHECKED = (
    "top_k",
    "top_p",
    "temperature",
    "length_penalty",
    "repetition_penalty",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "beam_width",
    "return_generation_logits",
    "seed",
    "return_perf_metrics",
)
_FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
# Inputs that go to the engine as they are, by its names; True for those of one element.
# Two stay here. Without beams, length_penalty means nothing and num_return_sequences can only be 1,
# while TensorRT-LLM 1.2.1's backend takes them for other parameters (docs/sampling.md).
_TO_ENGINE = {
    "top_k": ("runtime_top_k", True),
    "top_p": ("runtime_top_p", True),
    "prompt_embedding_table": ("prompt_embedding_table", False),
    "lora_weights": ("lora_weights", False),
    "lora_config": ("lora_config", False),
    **{
        name: (name, True)
        for name in (
            "temperature",
            "repetition_penalty",
            "min_tokens",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "beam_width",
            "prompt_vocab_size",
            "lora_task_id",
            "guided_decoding_guide_type",
            "guided_decoding_guide",
            "return_log_probs",
            "return_context_logits",
            "return_generation_logits",
            "return_perf_metrics",
        )
    },
}


class CallError(Exception):
    """A request that fails; the text goes to the client.

    Args:
        message: What went wrong.
        code: A code of ``pb_utils.TritonError``; None for "invalid argument".
    """

    def __init__(self, message: str, code: Any = None) -> None:
        super().__init__(message)
        self.code = pb_utils.TritonError.INVALID_ARG if code is None else code


@dataclass(frozen=True)
class _Returned:
    """Triton's answer to a call of a lane.

    Attributes:
        responses: The responses, of which there is one where the engine uses the lane.
        error: What Triton raised instead.
    """

    responses: Iterator[Any]
    error: Exception | None = None


class Models:
    """The models behind this one.

    Args:
        engine: Name of the engine's model.
        decoupled: Whether that model may answer a request more than once.
        lane: Whether its tokens come over a lane where it has one (lane_frames.py).
        calls: How many there may be at a time.
    """

    def __init__(
        self, engine: str, *, decoupled: bool = True, lane: bool = True, calls: int = 256
    ) -> None:
        self._engine = engine
        self.decoupled = decoupled
        self._keeper = Keeper()
        self._lane = Lane(engine, pb_utils.Logger.log_error) if decoupled and lane else None
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="call")

    def preprocess(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The engine's token inputs from the client's text inputs, one row for each prompt.

        Raises:
            CallError: A text cannot be tokenized.
        """
        response = pb_utils.InferenceRequest(
            model_name="preprocessing",
            parameters={ASKED: True},
            requested_output_names=list(_FROM_PREPROCESSING),
            inputs=_tensors(
                {to: inputs[name] for name, to in _TO_PREPROCESSING.items() if name in inputs}
                # A scalar arrives without its dimension and must be sent with it.
                | {n.upper(): inputs[n].reshape(-1, 1) for n in _CHECKED if n in inputs}
            ),
        ).exec()
        outputs = _outputs(response)
        return {_FROM_PREPROCESSING[name]: value for name, value in outputs.items() if value.size}

    def generate(
        self,
        inputs: Mapping[str, Array],
        tokens: Mapping[str, Array],
        outputs: list[str],
        *,
        request_id: str,
        streaming: bool,
    ) -> Iterator[dict[str, Array]]:
        """The engine's responses, as they come. All of them must be read.

        Args:
            inputs: The client's inputs for one prompt, each [1, ...] or, for a scalar, [1].
            tokens: The result of :meth:`preprocess` for that prompt.
            outputs: Names of the engine's outputs to ask for.
            request_id: The id by which :meth:`stop` knows the request.

        Raises:
            CallError: The engine refused the request or failed.
        """
        passed = {}
        for name, (engine_name, one_element) in _TO_ENGINE.items():
            if name in inputs:
                # A scalar arrives without its dimension and must be sent with it.
                passed[engine_name] = inputs[name].reshape(1, 1) if one_element else inputs[name]
        # Of other answers there is but one response, which Triton brings as well.
        call = self._lane.begin() if streaming and self._lane is not None else None
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            request_id=request_id,
            parameters={ASKED: True} | ({PARAMETER: call.ticket} if call else {}),
            requested_output_names=outputs,
            inputs=_tensors(
                {
                    **passed,
                    **tokens,
                    "streaming": np.array([[streaming]]),
                    "exclude_input_in_output": np.array([[True]]),
                }
            ),
        )
        if call is None:
            yield from self._ordinary(self._responses(request))
            return
        try:
            yield from self._laned(request, call)
        finally:
            for arrived in call.end():
                if isinstance(arrived, _Returned):
                    _read(arrived.responses)

    def close(self) -> None:
        """Ends the lane; nothing may be asked after that."""
        self._threads.shutdown(wait=False)
        if self._lane is not None:
            self._lane.close()

    def _ordinary(self, responses: Iterator[Any]) -> Iterator[dict[str, Array]]:
        ended = False
        for response in responses:
            found = _outputs(response)
            ended = not found
            if found:
                yield found
        if ended:
            # An error that follows other responses is lost on the way here (Triton 2.51); what
            # arrives is an end without outputs, and every other end has some.
            raise self._failed()

    def _laned(self, request: Any, call: LaneCall) -> Iterator[dict[str, Array]]:
        """The engine's responses from the lane, or from Triton where it does not use the lane.

        Triton's answer says which: it has outputs, or an error without :data:`BEGUN`, only where
        nothing is on the lane. What is there ends with a frame of its own, whichever comes first.
        """
        # A call waits for its first response. In a thread of its own, the tokens need not.
        self._threads.submit(self._call, request, call)
        last: Frame | None = None
        patience: float | None = None
        returned: _Returned | None = None
        error: CallError | None = None
        while returned is None or last is None:
            arrived = call.get(patience)
            if isinstance(arrived, Frame):
                last = arrived if arrived.kind == END else None
                if arrived.arrays:
                    yield dict(arrived.arrays)
            elif isinstance(arrived, Lost):
                if last is not None and last.arrays:
                    return  # all of the answer has come
                if last is None or patience is not None:
                    raise error or self._failed()
                patience = REASON_S
            else:
                returned = arrived
                if returned.error is not None:
                    raise returned.error
                first = next(returned.responses, None)
                if first is None:
                    raise self._failed()
                error, begun = _begun(first)
                if not begun:
                    yield from self._ordinary(itertools.chain((first,), returned.responses))
                    return
                _read(returned.responses)
        if error is not None:
            raise error

    def _call(self, request: Any, call: LaneCall) -> None:
        try:
            returned = _Returned(self._responses(request))
        except Exception as error:
            returned = _Returned(iter(()), error)
        if not call.hand_in(returned):
            _read(returned.responses)

    def _failed(self) -> CallError:
        return CallError(
            f"{self._engine} failed while it was serving the request; "
            "the reason is in the server's log",
            pb_utils.TritonError.INTERNAL,
        )

    def stop(self, request_id: str) -> None:
        """Asks the engine to end a request early; harmless when it is over.

        Cancellation does not pass from a model to the models it calls, so this is upstream's
        contract: a request with the same id and ``stop`` set.
        """
        one = np.ones((1, 1), np.int32)
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            request_id=request_id,
            requested_output_names=[],
            inputs=_tensors(
                {
                    "input_ids": one,
                    "input_lengths": one,
                    "request_output_len": one,
                    "stop": np.array([[True]]),
                }
            ),
        )
        for response in self._responses(request):
            _outputs(response)

    def _responses(self, request: Any) -> Iterator[Any]:
        # Triton refuses the call if this is not the policy of the model called.
        if self.decoupled:
            return self._keeper.iterate(request.exec(decoupled=True))
        return iter((request.exec(),))


def greedy_when_cold(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs with a ``top_k`` of 1 for each prompt whose temperature is 0.

    TensorRT-LLM makes 1 of a temperature of 0, and of top_k and top_p where they are given
    (runtime/samplingConfig.h, validate): without a top_k it would draw from all tokens.
    """
    cold = inputs["temperature"] == 0 if "temperature" in inputs else np.array(False)
    if not cold.any():
        return dict(inputs)
    # 0 is "not given", for the prompts of the batch that are not cold.
    top_k = inputs.get("top_k", np.zeros(cold.shape, np.int32))
    # What is wrong stays so, for preprocessing to refuse.
    return {**inputs, "top_k": np.where(cold & (top_k >= 0), 1, top_k).astype(np.int32)}


def _tensors(arrays: Mapping[str, Array]) -> list[Any]:
    return [pb_utils.Tensor(name, array) for name, array in arrays.items()]


def _read(responses: Iterator[Any]) -> None:
    """Reads what is not needed: Triton keeps every response until it is read."""
    for _ in responses:
        pass


def _begun(response: Any) -> tuple[CallError | None, bool]:
    """What Triton's answer to a call of a lane says: the error, and whether the lane is used."""
    try:
        return None, not _outputs(response)
    except CallError as error:
        text = str(error)
        return CallError(text.removeprefix(BEGUN), error.code), text.startswith(BEGUN)


def _outputs(response: Any) -> dict[str, Array]:
    if response.has_error():
        error = response.error()
        message, status = heard(error.message())
        code = error.code() if status is None else getattr(pb_utils.TritonError, status)
        raise CallError(message, code)
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
