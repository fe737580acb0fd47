"""Reads a Triton request on ``tensorrt_llm``; refuses by name what the engine cannot do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .abilities import ENGINE, WHY
from .answer import Answer
from .guides import GUIDE, KIND, GuideError, not_beside, not_served, read_guide
from .request import GenerationRequest, Guide, RequestError
from .sampling import read_sampling
from .settings import EngineSettings

Array = npt.NDArray[Any]

PROMPT_LOG_PROBS = "return_prompt_log_probs"
"""An input of this front alone: upstream has the whole ``context_logits`` for the purpose."""

LARGEST_LOGITS = 2**29
"""Bytes of the logits of one step, which a scored prompt needs for each of its tokens."""

# Each of these changes the answer, so leaving it out silently would give a wrong one.
_UNSUPPORTED = {
    "embedding_bias": "embedding bias",
    "draft_input_ids": "draft tokens",
    "draft_logits": "draft tokens",
    "draft_acceptance_threshold": "draft tokens",
    "prompt_embedding_table": "prompt tuning tables",
    "encoder_input_features": "encoder inputs",
    "cross_attention_mask": "encoder inputs",
    "skip_cross_attn_blocks": "encoder inputs",
    "mrope_rotary_cos_sin": "multimodal rope",
    "lora_task_id": "LoRA",
    "lora_weights": "LoRA",
    "lora_config": "LoRA",
    "lookahead_window_size": "lookahead decoding",
    "lookahead_ngram_size": "lookahead decoding",
    "lookahead_verification_set_size": "lookahead decoding",
    "context_phase_params": "disaggregated serving",
    "retention_token_range_starts": "KV cache retention",
    "retention_decode_priority": "KV cache retention",
    "runtime_top_p_min": "decaying top_p",
    "runtime_top_p_decay": "decaying top_p",
    "runtime_top_p_reset_ids": "decaying top_p",
}
_ONE_SEQUENCE = (
    f"{ENGINE} has no several sequences per request, and 1 is no safe way to say so: "
    "TensorRT-LLM 1.2.1 behind Triton takes the number for no_repeat_ngram_size, which at 1 "
    "forbids every token that came before; leave it out (tensorrt_llm_bls takes 1)"
)
_EARLY_STOPPING = (
    "early_stopping: TensorRT-LLM 1.2.1 behind Triton reads four bytes of this input, which has "
    "one, and may refuse what it finds; without beams it means nothing, leave it out"
)
_UNSUPPORTED_FLAGS = {
    "return_context_logits": "context logits",
    "return_generation_logits": "generation logits",
}
# The values that leave things as they are.
_UNSUPPORTED_NUMBERS = {
    "beam_width": ((1,), "beam search"),
    # The preprocessing model always sends one pad token for a decoder-only model, as upstream's.
    "decoder_input_lengths": ((0, 1), "decoder inputs"),
}


class Inputs:
    """The input tensors of one request by name.

    Args:
        tensors: Name to array, each with a batch dimension of 1 in front.
    """

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors

    @classmethod
    def of(cls, request: Any) -> Inputs:
        """The inputs of a ``pb_utils.InferenceRequest``."""
        return cls({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})

    def rows(self) -> list[Inputs]:
        """The inputs of each row of the batch by itself; the prompts are cut at their lengths.

        Raises:
            RequestError: The rows of an input are not as many as the prompts.
        """
        ids = self.required("input_ids")
        if ids.ndim != 2 or ids.shape[0] == 0:
            raise RequestError(
                f"input_ids must be prompts [batch, n], got the shape {list(ids.shape)}"
            )
        count = ids.shape[0]
        if count > 1:
            # One length for all would take the padding of the shorter ones for tokens.
            self.required("input_lengths")
        for name, array in self._tensors.items():
            if array.ndim == 0 or array.shape[0] != count:
                raise RequestError(
                    f"{name} must have one row for each of the {count} prompts, got the shape "
                    f"{list(array.shape)}"
                )
        return [self._row(row) if count > 1 else self for row in range(count)]

    def _row(self, row: int) -> Inputs:
        tensors = {name: array[row : row + 1] for name, array in self._tensors.items()}
        ids, length = tensors["input_ids"], int(tensors["input_lengths"].item())
        if not 0 <= length <= ids.shape[1]:
            raise RequestError(
                f"input_lengths is {length}, but input_ids has {ids.shape[1]} tokens"
            )
        return Inputs({**tensors, "input_ids": ids[:, :length]})

    def array(self, name: str) -> Array | None:
        """An optional tensor."""
        return self._tensors.get(name)

    def scalar(self, name: str) -> Any:
        """The value of an optional one-element tensor, or None.

        Raises:
            RequestError: It has more elements (or none).
        """
        array = self._tensors.get(name)
        if array is None:
            return None
        if array.size != 1:
            raise RequestError(f"{name} must hold one value, got the shape {list(array.shape)}")
        return array.item()

    def required(self, name: str) -> Array:
        """A tensor that must be there.

        Raises:
            RequestError: It is not.
        """
        array = self._tensors.get(name)
        if array is None:
            raise RequestError(f"the input {name} is missing")
        return array


def is_stop(inputs: Inputs) -> bool:
    """Whether the request only asks to stop the one with its request id (upstream's contract).

    As in upstream's backend nothing else of the request counts, and of a batch its first row.
    """
    stop = inputs.array("stop")
    return stop is not None and stop.size > 0 and bool(stop.flat[0])


def read_request(inputs: Inputs, client_id: str, settings: EngineSettings) -> GenerationRequest:
    """What the client wants generated.

    Args:
        inputs: Of one row.
        client_id: The client's request id.
        settings: The engine's limits.

    Raises:
        RequestError: A value is wrong, or the engine cannot do what is asked.
    """
    ids = inputs.required("input_ids")
    _refuse_unsupported(inputs)
    length = inputs.scalar("input_lengths")
    if length is not None and length != ids.shape[1]:
        raise RequestError(
            f"input_lengths is {length}, but input_ids has {ids.shape[1]} tokens, all of which "
            "TensorRT-LLM takes for the prompt: send the prompt without padding"
        )
    stop_words = word_list(inputs.array("stop_words_list"), "stop_words_list")
    end_id = _end_id(inputs, settings)
    guide = _guide(inputs, settings)
    if guide is not None:
        # The engine ends with a complete text, whatever ends the request's own; any but the
        # request's own end id stays in the output, as a stop word does.
        ends = ((token,) for token in sorted(guide.end_ids) if token != end_id)
        stop_words = tuple(dict.fromkeys((*stop_words, *ends)))
    inputs.required("request_output_len")
    return GenerationRequest(
        prompt=ids[0].astype(np.int64),
        max_new_tokens=int(inputs.scalar("request_output_len")),
        sampling=read_sampling(inputs.scalar),
        end_id=end_id,
        stop_words=stop_words,
        log_probs=bool(inputs.scalar("return_log_probs")),
        prompt_log_probs=_prompt_log_probs(inputs, guide, settings),
        guide=guide,
        client_id=client_id,
    )


def read_answer(
    inputs: Inputs,
    wanted: frozenset[str],
    request: GenerationRequest,
    settings: EngineSettings,
    *,
    batch_index: int | None = None,
) -> Answer:
    """How the client wants it answered.

    Args:
        inputs: Of one row.
        wanted: Names of the outputs that the client asked for.
        request: What is generated.
        settings: The engine's limits.
        batch_index: The row, if there are several.
    """
    exclude = inputs.scalar("exclude_input_in_output")
    exclude = settings.exclude_input_in_output if exclude is None else bool(exclude)
    return Answer(
        streaming=bool(inputs.scalar("streaming")),
        wanted=wanted,
        prompt=() if exclude else tuple(int(token) for token in request.prompt),
        input_tokens=int(request.prompt.size),
        log_probs=request.log_probs,
        perf_metrics=bool(inputs.scalar("return_perf_metrics")),
        num_input_tokens=bool(inputs.scalar("return_num_input_tokens")),
        num_output_tokens=bool(inputs.scalar("return_num_output_tokens")),
        batch_index=batch_index,
    )


def word_list(array: Array | None, name: str) -> tuple[tuple[int, ...], ...]:
    """Token sequences from upstream's word list format.

    Args:
        array: int32 [1, 2, L]: all ids one after the other, padded with 0, and the end of each
            word in that row, padded with -1.

    Raises:
        RequestError: The ends do not rise within the ids.
    """
    if array is None or array.size == 0:
        return ()
    if array.ndim != 3 or array.shape[:2] != (1, 2):
        raise RequestError(f"{name} must have the shape [1, 2, L], got {list(array.shape)}")
    ids, ends = array[0].tolist()
    words, start = [], 0
    while ends and ends[-1] == -1:
        ends.pop()
    for end in ends:
        if not start < end <= len(ids):
            raise RequestError(
                f"{name}: the word ends must rise from 1 to {len(ids)}, but {end} follows {start}"
            )
        words.append(tuple(ids[start:end]))
        start = end
    return tuple(words)


def _end_id(inputs: Inputs, settings: EngineSettings) -> int | None:
    """The token that ends the text; without one, and with upstream's -1, none does.

    The model's own end ids are for the client to know, as with the C++ backend: preprocessing
    names the first one as ``end_id`` and the others as stop words.
    """
    end_id = inputs.scalar("end_id")
    if end_id is None or end_id == -1:
        return None
    if not 0 <= end_id < settings.vocab_size:
        raise RequestError(
            f"end_id is {end_id}; this model's ids are 0 to {settings.vocab_size - 1}, and -1 is "
            "for no end id"
        )
    return int(end_id)


def check_outputs(wanted: Collection[str]) -> None:
    """Refuses a request that does not ask for both the tokens and their number.

    Upstream's backend fails each of its responses (model_instance_state.cc, fillTritonResponse);
    who names no output asks for all of them.

    Args:
        wanted: Names of the outputs that the client asked for.

    Raises:
        RequestError: With upstream's text and code.
    """
    for name in ("output_ids", "sequence_length"):
        if name not in wanted:
            raise RequestError(
                "Error encountered while populating response: "
                f"{name} tensor must be present in list of output tensors",
                "INTERNAL",
            )


def _guide(inputs: Inputs, settings: EngineSettings) -> Guide | None:
    """Reads what the text must be; type and shape are checked here, not the guide itself."""
    tensors = {name: array for name in (KIND, GUIDE) if (array := inputs.array(name)) is not None}
    try:
        found = read_guide(tensors)
    except GuideError as error:
        raise RequestError(str(error)) from error
    if found is None:
        return None
    if not settings.guided_decoding:
        raise RequestError(not_served(found[0]), "UNSUPPORTED")
    if inputs.scalar("min_tokens"):
        raise RequestError(not_beside("min_tokens"))
    return Guide(*found, frozenset(settings.end_ids))


def check_policy(inputs: Inputs, rows: int, settings: EngineSettings) -> None:
    """Refuses what a model that answers once cannot do, as upstream's backend does.

    Raises:
        RequestError: With the reason and the remedy.
    """
    if settings.decoupled:
        return
    remedy = (
        "Triton's model answers once per request here (model_transaction_policy is not decoupled); "
        "serve the repository with serve.decoupled: true"
    )
    streaming = inputs.array("streaming")
    if streaming is not None and streaming.any():
        raise RequestError(f"streaming: {remedy}, or send streaming false")
    if rows > 1:
        raise RequestError(f"a batch of {rows} prompts: {remedy}, or send them one by one")


def _prompt_log_probs(inputs: Inputs, guide: Guide | None, settings: EngineSettings) -> bool:
    """Whether the prompt's log-probabilities are asked for; refuses what would spoil them."""
    if not inputs.scalar(PROMPT_LOG_PROBS):
        return False
    if guide is not None:
        raise RequestError(
            f"{PROMPT_LOG_PROBS} does not go with guided_decoding_guide: send two requests"
        )
    if settings.enable_prefix_caching:
        raise RequestError(
            f"{PROMPT_LOG_PROBS}: the engine gives none for the tokens whose KV blocks it finds in "
            "its cache, and no request can pass the cache by; serve the repository with "
            "serve.enable_kv_cache_reuse: false",
            "UNSUPPORTED",
        )
    if not settings.guaranteed_no_evict:
        raise RequestError(
            f"{PROMPT_LOG_PROBS}: a prompt that is evicted halfway would be scored twice; serve "
            "the repository with serve.batch_scheduler_policy: guaranteed_no_evict",
            "UNSUPPORTED",
        )
    if (size := settings.logit_bytes) > LARGEST_LOGITS:
        raise RequestError(
            f"{PROMPT_LOG_PROBS}: the logits of one step may take {size / 2**20:,.0f} MiB, more "
            f"than the {LARGEST_LOGITS / 2**20:.0f} that are allowed; serve the repository with "
            "serve.enable_chunked_context: true, so that a step takes a part of a prompt",
            "UNSUPPORTED",
        )
    return True


def _refuse_unsupported(inputs: Inputs) -> None:
    sequences = inputs.scalar("num_return_sequences")
    if sequences is not None:
        raise RequestError(f"num_return_sequences {sequences}: {_ONE_SEQUENCE}", "UNSUPPORTED")
    if inputs.array("early_stopping") is not None:
        raise RequestError(_EARLY_STOPPING, "UNSUPPORTED")
    if word_list(inputs.array("bad_words_list"), "bad_words_list"):
        raise RequestError(f"bad_words_list: {ENGINE} has no bad words", "UNSUPPORTED")
    for name, what in _UNSUPPORTED.items():
        array = inputs.array(name)
        if array is not None and array.size:
            why = f": {WHY[what]}" if what in WHY else ""
            raise RequestError(f"{name}: {ENGINE} has no {what}{why}", "UNSUPPORTED")
    for name, what in _UNSUPPORTED_FLAGS.items():
        if inputs.scalar(name):
            raise RequestError(f"{name}: {ENGINE} has no {what}", "UNSUPPORTED")
    for name, (harmless, what) in _UNSUPPORTED_NUMBERS.items():
        value = inputs.scalar(name)
        if value is not None and value not in harmless:
            raise RequestError(f"{name} {value}: {ENGINE} has no {what}", "UNSUPPORTED")
