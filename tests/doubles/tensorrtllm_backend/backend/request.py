"""From input tensors to the executor's requests: ``utils.cc`` and what its constructors check.

Triton has applied ``reshape`` of config.pbtxt, so a scalar arrives as [batch]. Nothing here looks
at a tensor's type, and an input that is not named here is not read, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import check, runtime_error, throw
from .settings import check_lookahead

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

_UTILS = "triton_backend/inflight_batcher_llm/src/utils.cc"
_UTILS_H = "triton_backend/inflight_batcher_llm/src/utils.h"
_SAMPLING = "cpp/tensorrt_llm/executor/samplingConfig.cpp"
_REQUEST = "cpp/tensorrt_llm/executor/requestImpl.h"
_GUIDED = "cpp/tensorrt_llm/executor/guidedDecodingParams.cpp"

_SKIPPED = frozenset(("START", "CORRID", "END", "stop", "streaming"))
_GUIDE_TYPES = frozenset(("json", "json_schema", "regex", "ebnf_grammar"))
_MAX_BEAM_WIDTH = 1024
"""``kMaxBeamWidth`` of beamSearchKernels.h."""


@dataclass(frozen=True)
class Sampling:
    """``executor::SamplingConfig`` after the C++ backend has filled it; None is not given.

    Attributes:
        prompt_ignore_length: Tokens of the prompt that presence and frequency penalty skip.
    """

    beam_width: int = 1
    top_k: int | None = None
    top_p: float | None = None
    top_p_decay: float | None = None
    top_p_reset_ids: int | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    prompt_ignore_length: int | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None


@dataclass(frozen=True)
class Request:
    """``executor::Request``: one prompt."""

    input_tokens: tuple[int, ...]
    max_new_tokens: int
    streaming: bool
    sampling: Sampling
    exclude_input: bool
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    return_perf_metrics: bool = False
    end_id: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_words: tuple[tuple[int, ...], ...] = ()
    embedding_bias: Array | None = field(default=None, compare=False)
    draft_tokens: tuple[int, ...] = ()
    guide: tuple[str, str | None] | None = None
    lora_task_id: int | None = None
    lora_weights: Array | None = field(default=None, compare=False)
    lora_config: Array | None = field(default=None, compare=False)


def boolean(tensors: Tensors, name: str) -> bool:
    """``getRequestBooleanInputTensor``: the first byte of the tensor, false without it."""
    array = tensors.get(name)
    return array is not None and bool(array.reshape(-1)[0])


def split(tensors: Tensors) -> list[Tensors]:
    """``readInputsTensors`` and ``splitBatchInputsTensors``: the tensors of each prompt.

    Only a batch is cut at ``input_lengths``: of a single prompt all ids count, padding included.

    Raises:
        TllmError: There is no prompt, or its tensors have other dimensions.
    """
    read = {name: array for name, array in tensors.items() if name not in _SKIPPED}
    ids = read.get("input_ids")
    if ids is None:
        if "encoder_input_features" not in read:
            raise throw("inputTokens or encoderInputFeatures tensor not provided", _UTILS)
        return [read]
    check(ids.ndim == 2, "Expected inputTokens tensors to have 2 dimensions", _UTILS)
    if ids.shape[0] <= 1:
        return [read]
    lengths = read.get("input_lengths")
    if lengths is None:
        check(False, "input lengths tensor not provided", _UTILS)
        raise AssertionError
    check(lengths.ndim == 1, "Expected inputLengths tensors to have 1 dimension", _UTILS)
    rows = []
    for index, length in enumerate(lengths):
        row = {name: array[index : index + 1] for name, array in read.items()}
        row["input_ids"] = row["input_ids"][:, : int(length)]
        rows.append(row)
    return rows


def make_requests(
    rows: list[Tensors],
    *,
    streaming: bool,
    decoupled: bool,
    exclude_input: bool,
    lookahead: bool = False,
) -> list[Request]:
    """``createRequestsFromInputTensors``.

    Args:
        rows: The tensors of each prompt.
        streaming: The request's ``streaming``.
        decoupled: The model's transaction policy.
        exclude_input: The parameter ``exclude_input_in_output``.
        lookahead: Whether the model has sizes of lookahead decoding.

    Raises:
        TllmError: With upstream's text.
    """
    if not decoupled and len(rows) > 1:
        raise throw(
            "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction "
            "policy",
            _UTILS,
        )
    if streaming and not decoupled:
        raise throw(
            "Streaming is only supported if model is deployed using decoupled mode.", _UTILS
        )
    return [
        _request(row, streaming=streaming, exclude_input=exclude_input, lookahead=lookahead)
        for row in rows
    ]


def _request(row: Tensors, *, streaming: bool, exclude_input: bool, lookahead: bool) -> Request:
    flags = {
        name: bool(_single(row, name) or False)
        for name in (
            "return_log_probs",
            "return_generation_logits",
            "return_context_logits",
            "return_perf_metrics",
        )
    }
    exclude = _single(row, "exclude_input_in_output")
    ids = row.get("input_ids")
    if ids is None:
        raise throw("input_ids or encoder_input_features is not present in the request.", _UTILS)
    length = _single(row, "request_output_len")
    if length is None:
        raise runtime_error("request_output_len is not present in the request")
    end_id = _single(row, "end_id")
    _single(row, "pad_id")
    sampling = read_sampling(row)
    bad_words, stop_words = (word_list(row.get(f"{kind}_words_list")) for kind in ("bad", "stop"))
    bias = _squeezed(row.get("embedding_bias"))
    guide = _guide(row)
    request = Request(
        input_tokens=tuple(int(token) for token in ids.reshape(-1)),
        max_new_tokens=int(length),
        streaming=streaming,
        sampling=sampling,
        exclude_input=exclude_input if exclude is None else bool(exclude),
        end_id=None if end_id is None else int(end_id),
        bad_words=bad_words,
        stop_words=stop_words,
        embedding_bias=bias,
        draft_tokens=tuple(int(t) for t in row.get("draft_input_ids", np.array([])).reshape(-1)),
        guide=guide,
        lora_task_id=_whole(row, "lora_task_id"),
        lora_weights=row.get("lora_weights"),
        lora_config=row.get("lora_config"),
        **flags,
    )
    _look_ahead(row, served=lookahead)
    if bias is not None:
        check(bias.ndim == 1, "bias.value().getShape().size() == 1", _REQUEST)
    check(request.input_tokens, "!mInputTokenIds.empty()", _REQUEST)
    check(request.max_new_tokens > 0, "mMaxNewTokens > 0", _REQUEST)
    if guide and sampling.beam_width > 1:
        raise throw("Guided decoding does not support with beam search.", _REQUEST)
    return request


def read_sampling(row: Tensors) -> Sampling:
    """``getSamplingConfigFromTensors`` of 1.2.1, and what its constructor checks.

    The constructor had got the argument ``promptIgnoreLength`` in between, so that ``len_penalty``
    and what follows it land one place too early; ``num_return_sequences`` is never set. The name
    under which ``top_p_min`` is read, ``runtime_top_k_min``, is no input of config.pbtxt.

    Raises:
        TllmError: A value is out of range.
    """
    top_p = _single(row, "runtime_top_p")
    if top_p is not None and top_p <= 0:
        top_p = None
    given = Sampling(
        beam_width=int(_single(row, "beam_width") or 0) if "beam_width" in row else 1,
        top_k=_whole(row, "runtime_top_k"),
        top_p=None if top_p is None else float(top_p),
        top_p_decay=_real(row, "runtime_top_p_decay"),
        top_p_reset_ids=_whole(row, "runtime_top_p_reset_ids"),
        seed=_whole(row, "seed"),
        temperature=_real(row, "temperature"),
        min_tokens=_whole(row, "min_tokens"),
        beam_search_diversity_rate=_real(row, "beam_search_diversity_rate"),
        repetition_penalty=_real(row, "repetition_penalty"),
        presence_penalty=_real(row, "presence_penalty"),
        frequency_penalty=_real(row, "frequency_penalty"),
        prompt_ignore_length=_whole(row, "len_penalty"),
        length_penalty=_real(row, "early_stopping"),
        no_repeat_ngram_size=_whole(row, "num_return_sequences"),
    )
    _check_sampling(given)
    return given


def _check_sampling(given: Sampling) -> None:
    check(
        0 < given.beam_width <= _MAX_BEAM_WIDTH,
        "beamWidth > 0 && beamWidth <= static_cast<SizeType32 const>"
        "(tensorrt_llm::kernels::kMaxBeamWidth)",
        _SAMPLING,
    )
    # In the order of the constructor; a NaN fails each comparison, as it does there.
    for value, name, holds in (
        (given.top_k, "topK.value() >= 0", lambda v: v >= 0),
        (given.top_p, "topP.value() > 0.f", lambda v: v > 0),
        (given.top_p, "topP.value() <= 1.f", lambda v: v <= 1),
        (given.top_p_reset_ids, "topPResetIds.value() >= 0", lambda v: v >= 0),
        (given.top_p_decay, "topPDecay.value() > 0.f", lambda v: v > 0),
        (given.top_p_decay, "topPDecay.value() <= 1.f", lambda v: v <= 1),
        (given.temperature, "temperature.value() >= 0.f", lambda v: v >= 0),
        (given.min_tokens, "minTokens.value() >= 0", lambda v: v >= 0),
        (
            given.beam_search_diversity_rate,
            "beamSearchDiversityRate.value() >= 0.f",
            lambda v: v >= 0,
        ),
        (given.repetition_penalty, "repetitionpenalty.value() > 0.f", lambda v: v > 0),
        (given.prompt_ignore_length, "promptIgnoreLength.value() >= 0", lambda v: v >= 0),
        (given.length_penalty, "lengthPenalty.value() >= 0.f", lambda v: v >= 0),
        (given.no_repeat_ngram_size, "noRepeatNgramSize.value() >= 0", lambda v: v >= 0),
    ):
        check(value is None or holds(value), name, _SAMPLING)


def word_list(array: Array | None) -> tuple[tuple[int, ...], ...]:
    """``convertWordList``: the first half are ids, the second where each word ends.

    Raises:
        TllmError: The ends do not rise within the ids, or something follows a -1.
    """
    if array is None:
        return ()
    values = [int(value) for value in array.reshape(-1)]
    shown = "".join(f"{value} " for value in values)
    check(len(values) % 2 == 0, f"Sparse list must not have odd length: {shown}", _UTILS)
    half = len(values) // 2
    ids, ends = values[:half], values[half:]
    words, start = [], 0
    for place, end in enumerate(ends):
        if end == -1:
            check(
                all(rest == -1 for rest in ends[place:]),
                f"Sparse list must not have additional -1s: {shown}",
                _UTILS,
            )
            break
        check(end <= half, f"Sparse list must not have out-of-bound offsets: {shown}", _UTILS)
        check(
            place == 0 or end > ends[place - 1],
            f"Sparse list must not have non-increasing offsets: {shown}",
            _UTILS,
        )
        words.append(tuple(ids[start:end]))
        start = end
    return tuple(words)


def _single(row: Tensors, name: str) -> Any:
    """``extractSingleton``: None without the tensor."""
    array = row.get(name)
    if array is None:
        return None
    check(array.size == 1, f"Invalid size for tensor {name}", _UTILS_H)
    return array.item()


def _whole(row: Tensors, name: str) -> int | None:
    value = _single(row, name)
    return None if value is None else int(value)


def _real(row: Tensors, name: str) -> float | None:
    value = _single(row, name)
    return None if value is None else float(value)


def _squeezed(bias: Array | None) -> Array | None:
    """``squeezeTensor`` to one dimension; [0] is no bias. Any other shape stays as it is."""
    if bias is None:
        return None
    if bias.ndim == 2 and bias.shape[0] == 1:
        bias = bias[0]
    return None if bias.shape == (0,) else bias


def _guide(row: Tensors) -> tuple[str, str | None] | None:
    """Type and guide: an unknown type, or a guide without one, is not read at all.

    Raises:
        TllmError: The type needs a guide and has none.
    """
    kind = row.get("guided_decoding_guide_type")
    if kind is None or _text(kind) not in _GUIDE_TYPES:
        return None
    guide = row.get("guided_decoding_guide")
    check(
        _text(kind) == "json" or guide is not None,
        "The guide string must be provided unless using GuideType::kJSON.",
        _GUIDED,
    )
    return _text(kind), None if guide is None else _text(guide)


def _text(array: Array) -> str:
    value = array.reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _look_ahead(row: Tensors, *, served: bool) -> None:
    """``getLookaheadDecodingFromInputs``: all three sizes where the first is there."""
    if "lookahead_window_size" not in row:
        return
    sizes = []
    for name in ("window_size", "ngram_size", "verification_set_size"):
        value = _whole(row, f"lookahead_{name}")
        if value is None:
            raise runtime_error(f"Failed to extract lookahead_{name}")
        sizes.append(value)
    check_lookahead(*sizes)
    check(
        served,
        "Cannot set the request lookahead decoding configuration when model instance "
        "lookahead parameters are not set.",
        _UTILS,
    )
