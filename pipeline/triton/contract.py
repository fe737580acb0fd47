"""The wire contract: tensors of the five Triton models and how the ensemble joins them.

Names, types, dimensions and optionality are those of ``triton_backend/all_models/
inflight_batcher_llm`` in TensorRT-LLM 1.2, so that any client written for it works unchanged.
Deviations, each on purpose:

* The image and video tensors of ``preprocessing`` and ``tensorrt_llm_bls`` are left out: the
  models here are text-only. A declared input that nothing reads would be ignored in silence; an
  undeclared one is refused by Triton by name.
* ``ensemble`` lists ``kv_cache_alloc_total_blocks`` once; upstream lists it twice.
* Upstream's ``decoupled_mode`` is ``serve.decoupled``; ``both`` adds a sixth model,
  ``tensorrt_llm_bls_unary``, with the tensors of ``tensorrt_llm_bls``. A draft model's engine is
  ``tensorrt_llm_draft``, with those of ``tensorrt_llm``, under upstream's name for it.
* ``text_input`` and ``max_tokens`` of ``ensemble`` are declared optional, as ``QUERY`` and
  ``REQUEST_OUTPUT_LEN`` of ``preprocessing`` are, which refuses a request without them. Triton
  counts a request's inputs and does not look which they are, and an ensemble that lacks one for its
  first step ends as if it were answered, without a word.
* ``prompt_table_extra_id`` is refused by ``preprocessing``: a text has no virtual tokens.
* ``preprocessing`` has the inputs of :data:`CHECKED` besides, all of them optional: what it would
  be wrong to ask any engine for is refused there, for the ensemble too.
* ``preprocessing``, ``tensorrt_llm_bls`` and ``ensemble`` have :data:`ADD_SPECIAL_TOKENS` besides,
  optional: whether a text gets what the tokenizer puts around it. Upstream has a parameter of that
  name only, which is the same for every request.
* ``tensorrt_llm`` of an engine that can has :func:`scoring_prompts` besides: a number for each
  token of the prompt, where upstream's ``context_logits`` are a whole vocabulary of them.
* With such an engine, :func:`with_tickets` joins it to ``postprocessing`` by one more tensor.
* The template variables for data types are settled: logits are ``TYPE_FP32``
  (``trtllm-build --logits_dtype`` defaults to float32), ``prompt_embedding_table`` and
  ``encoder_input_features`` are ``TYPE_FP16`` (what upstream's ensemble hard-codes).

``text_output`` and ``OUTPUT`` arrive without a batch dimension, ``[1]`` for one text: upstream's
models send them so, and its clients take the first element. Everything else has it.

``dims`` leaves out the batch dimension. ``reshape=()`` means the model sees a scalar per batch
element although the wire carries ``[1]``. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.triton.tensors import (
    BLS,
    BLS_UNARY,
    BOOL,
    DRAFT,
    ENGINE,
    ENSEMBLE,
    FP16,
    FP32,
    INT32,
    INT64,
    POSTPROCESSING,
    PREPROCESSING,
    STRING,
    UINT8,
    UINT64,
    ModelContract,
    Step,
    Tensor,
    one,
    ragged,
    scalar,
)
from pipeline.triton.wiring import ADD_SPECIAL_TOKENS, CHECKED, STEPS

__all__ = [
    "ADD_SPECIAL_TOKENS",
    "BLS",
    "BLS_UNARY",
    "CHECKED",
    "CPP_BACKEND",
    "DRAFT",
    "ENGINE",
    "ENSEMBLE",
    "KNOWN",
    "MODELS",
    "POSTPROCESSING",
    "PREPROCESSING",
    "SCORES_PROMPTS",
    "TICKET",
    "ModelContract",
    "Step",
    "Tensor",
    "answering_model",
    "scoring_prompts",
    "served_models",
    "with_tickets",
]

SCORES_PROMPTS = "return_prompt_log_probs"
"""The input that asks ``tensorrt_llm`` for the log-probabilities of a prompt; not upstream's."""

TICKET = "ticket"
"""The output by which this project's engine learns that a client has gone; not upstream's."""

CPP_BACKEND = "tensorrtllm"
"""The backend that runs TensorRT-LLM engines in Triton, as ``config.pbtxt`` names it."""

_PREPROCESSING = ModelContract(
    PREPROCESSING,
    inputs=(
        one("QUERY", STRING),
        one("DECODER_QUERY", STRING),
        one("REQUEST_OUTPUT_LEN", INT32),
        Tensor("BAD_WORDS_DICT", STRING, (-1,), optional=True),
        Tensor("STOP_WORDS_DICT", STRING, (-1,), optional=True),
        Tensor("EMBEDDING_BIAS_WORDS", STRING, (-1,), optional=True),
        Tensor("EMBEDDING_BIAS_WEIGHTS", FP32, (-1,), optional=True),
        one("END_ID", INT32),
        one("PAD_ID", INT32),
        one("PROMPT_TABLE_EXTRA_ID", UINT64),
        one(ADD_SPECIAL_TOKENS.upper(), BOOL),
        *(one(name.upper(), data_type) for name, data_type in CHECKED.items()),
    ),
    outputs=(
        Tensor("INPUT_ID", INT32, (-1,)),
        Tensor("REQUEST_INPUT_LEN", INT32, (1,)),
        Tensor("DECODER_INPUT_ID", INT32, (-1,)),
        Tensor("REQUEST_DECODER_INPUT_LEN", INT32, (1,)),
        Tensor("BAD_WORDS_IDS", INT32, (2, -1)),
        Tensor("STOP_WORDS_IDS", INT32, (2, -1)),
        Tensor("EMBEDDING_BIAS", FP32, (-1,)),
        Tensor("REQUEST_OUTPUT_LEN", INT32, (-1,)),
        Tensor("OUT_END_ID", INT32, (1,)),
        Tensor("OUT_PAD_ID", INT32, (1,)),
        Tensor("OUT_PROMPT_TABLE_EXTRA_IDS", UINT64, (-1,)),
    ),
)

# What a response says about itself, the same on the engine, the BLS model and the ensemble.
_ANSWER_FACTS = (
    Tensor("kv_cache_alloc_new_blocks", INT32, (1,)),
    Tensor("kv_cache_reused_blocks", INT32, (1,)),
    Tensor("kv_cache_alloc_total_blocks", INT32, (1,)),
    Tensor("arrival_time_ns", INT64, (1,)),
    Tensor("first_scheduled_time_ns", INT64, (1,)),
    Tensor("first_token_time_ns", INT64, (1,)),
    Tensor("last_token_time_ns", INT64, (1,)),
    Tensor("acceptance_rate", FP32, (1,)),
    Tensor("total_accepted_draft_tokens", INT32, (1,)),
    Tensor("total_draft_tokens", INT32, (1,)),
    Tensor("num_input_tokens", INT32, (1,)),
    Tensor("num_output_tokens", INT32, (1,)),
)
_ANSWER_SCORES = (
    Tensor("cum_log_probs", FP32, (-1,)),
    Tensor("output_log_probs", FP32, (-1, -1)),
    Tensor("context_logits", FP32, (-1, -1)),
    Tensor("generation_logits", FP32, (-1, -1, -1)),
    Tensor("batch_index", INT32, (1,)),
    Tensor("sequence_index", INT32, (1,)),
)

_ENGINE = ModelContract(
    ENGINE,
    decoupled=True,
    inputs=(
        ragged("input_ids", INT32, -1),
        ragged("encoder_input_features", FP16, -1, -1),
        scalar("encoder_output_lengths", INT32),
        Tensor("input_lengths", INT32, (1,), reshape=()),
        Tensor("request_output_len", INT32, (1,), reshape=()),
        scalar("num_return_sequences", INT32),
        ragged("draft_input_ids", INT32, -1),
        ragged("decoder_input_ids", INT32, -1),
        scalar("decoder_input_lengths", INT32),
        ragged("draft_logits", FP32, -1, -1),
        scalar("draft_acceptance_threshold", FP32),
        scalar("end_id", INT32),
        scalar("pad_id", INT32),
        ragged("stop_words_list", INT32, 2, -1),
        ragged("bad_words_list", INT32, 2, -1),
        ragged("embedding_bias", FP32, -1),
        scalar("beam_width", INT32),
        scalar("temperature", FP32),
        scalar("runtime_top_k", INT32),
        scalar("runtime_top_p", FP32),
        scalar("runtime_top_p_min", FP32),
        scalar("runtime_top_p_decay", FP32),
        scalar("runtime_top_p_reset_ids", INT32),
        scalar("len_penalty", FP32),
        scalar("early_stopping", BOOL),
        scalar("repetition_penalty", FP32),
        scalar("min_tokens", INT32),
        scalar("beam_search_diversity_rate", FP32),
        scalar("presence_penalty", FP32),
        scalar("frequency_penalty", FP32),
        scalar("seed", UINT64),
        scalar("return_log_probs", BOOL),
        scalar("return_context_logits", BOOL),
        scalar("return_generation_logits", BOOL),
        scalar("return_perf_metrics", BOOL),
        scalar("return_num_input_tokens", BOOL),
        scalar("return_num_output_tokens", BOOL),
        scalar("exclude_input_in_output", BOOL),
        scalar("stop", BOOL),
        scalar("streaming", BOOL),
        ragged("prompt_embedding_table", FP16, -1, -1),
        ragged("prompt_table_extra_ids", UINT64, -1),
        scalar("prompt_vocab_size", INT32),
        ragged("cross_attention_mask", BOOL, -1, -1),
        Tensor("mrope_rotary_cos_sin", FP32, (-1,), optional=True),
        one("mrope_position_deltas", INT64),
        scalar("lora_task_id", UINT64),
        ragged("lora_weights", FP16, -1, -1),
        ragged("lora_config", INT32, -1, 3),
        ragged("context_phase_params", UINT8, -1),
        ragged("skip_cross_attn_blocks", BOOL, 1),
        ragged("retention_token_range_starts", INT32, -1),
        ragged("retention_token_range_ends", INT32, -1),
        ragged("retention_token_range_priorities", INT32, -1),
        ragged("retention_token_range_durations_ms", INT32, -1),
        ragged("retention_decode_priority", INT32, 1),
        ragged("retention_decode_duration_ms", INT32, 1),
        ragged("guided_decoding_guide_type", STRING, 1),
        ragged("guided_decoding_guide", STRING, 1),
        ragged("lookahead_window_size", INT32, 1),
        ragged("lookahead_ngram_size", INT32, 1),
        ragged("lookahead_verification_set_size", INT32, 1),
    ),
    outputs=(
        Tensor("output_ids", INT32, (-1, -1)),
        Tensor("sequence_length", INT32, (-1,)),
        *_ANSWER_SCORES,
        Tensor("context_phase_params", UINT8, (-1,)),
        *_ANSWER_FACTS,
    ),
)

_POSTPROCESSING = ModelContract(
    POSTPROCESSING,
    inputs=(
        Tensor("TOKENS_BATCH", INT32, (-1, -1)),
        Tensor("SEQUENCE_LENGTH", INT32, (-1,)),
    ),
    outputs=(Tensor("OUTPUT", STRING, (-1,)),),
)

_TEXT = (
    Tensor("text_input", STRING, (1,)),
    one("decoder_text_input", STRING),
    Tensor("max_tokens", INT32, (1,)),
    one(ADD_SPECIAL_TOKENS, BOOL),
)
_SAMPLING = (
    Tensor("bad_words", STRING, (-1,), optional=True),
    Tensor("stop_words", STRING, (-1,), optional=True),
    one("exclude_input_in_output", BOOL),
    one("end_id", INT32),
    one("pad_id", INT32),
    one("top_k", INT32),
    one("top_p", FP32),
    one("temperature", FP32),
    one("length_penalty", FP32),
    one("repetition_penalty", FP32),
    one("min_tokens", INT32),
    one("presence_penalty", FP32),
    one("frequency_penalty", FP32),
    one("seed", UINT64),
)
_PROMPT_TUNING = (
    Tensor("prompt_embedding_table", FP16, (-1, -1), optional=True),
    one("prompt_table_extra_id", UINT64),
    one("prompt_vocab_size", INT32),
    Tensor("embedding_bias_words", STRING, (-1,), optional=True),
    Tensor("embedding_bias_weights", FP32, (-1,), optional=True),
)
_ANSWER = (Tensor("text_output", STRING, (-1,)), *_ANSWER_SCORES, *_ANSWER_FACTS)

_BLS = ModelContract(
    BLS,
    decoupled=True,
    inputs=(
        *_TEXT,
        *_SAMPLING,
        scalar("return_log_probs", BOOL),
        scalar("return_context_logits", BOOL),
        scalar("return_generation_logits", BOOL),
        scalar("num_return_sequences", INT32),
        one("beam_width", INT32),
        one("stream", BOOL),
        *_PROMPT_TUNING,
        one("num_draft_tokens", INT32),
        scalar("use_draft_logits", BOOL),
        scalar("lora_task_id", UINT64),
        ragged("lora_weights", FP16, -1, -1),
        ragged("lora_config", INT32, -1, 3),
        scalar("return_perf_metrics", BOOL),
        scalar("return_num_input_tokens", BOOL),
        scalar("return_num_output_tokens", BOOL),
        one("guided_decoding_guide_type", STRING),
        one("guided_decoding_guide", STRING),
    ),
    outputs=_ANSWER,
)

_ENSEMBLE = ModelContract(
    ENSEMBLE,
    inputs=(
        *(replace(tensor, optional=True) for tensor in _TEXT),
        one("num_return_sequences", INT32),
        *_SAMPLING,
        one("return_log_probs", BOOL),
        one("return_context_logits", BOOL),
        one("return_generation_logits", BOOL),
        one("return_perf_metrics", BOOL),
        one("return_num_input_tokens", BOOL),
        one("return_num_output_tokens", BOOL),
        one("beam_width", INT32),
        one("stream", BOOL),
        *_PROMPT_TUNING,
        one("lora_task_id", UINT64),
        ragged("lora_weights", FP16, -1, -1),
        ragged("lora_config", INT32, -1, 3),
        ragged("guided_decoding_guide_type", STRING, 1),
        ragged("guided_decoding_guide", STRING, 1),
    ),
    outputs=_ANSWER,
    steps=STEPS,
)

MODELS: Mapping[str, ModelContract] = {
    model.name: model for model in (_PREPROCESSING, _ENGINE, _POSTPROCESSING, _BLS, _ENSEMBLE)
}
"""The five models by name, in the order in which they must be loaded one by one."""

_UNARY = replace(_BLS, name=BLS_UNARY, decoupled=False)

KNOWN: Mapping[str, ModelContract] = {
    **MODELS,
    BLS_UNARY: _UNARY,
    DRAFT: replace(_ENGINE, name=DRAFT),
}
"""Every model that a repository may have, by name."""


def served_models(decoupled: bool | str, *, draft: bool = False) -> Mapping[str, ModelContract]:
    """Returns a repository's models by name, in the order in which they must be loaded one by one.

    Args:
        decoupled: ``serve.decoupled`` of the recipe: whether the models that answer clients may
            answer a request more than once; ``both`` adds one that answers once.
        draft: Whether an engine that guesses tokens is served beside the engine.
    """
    models = {name: KNOWN[name] for name in _order(draft=draft, unary=decoupled == "both")}
    if decoupled:
        return models
    return {name: replace(contract, decoupled=False) for name, contract in models.items()}


def scoring_prompts(engine: ModelContract) -> ModelContract:
    """Returns an engine's contract with the tensors that ask for and hold scores of the prompt.

    ``prompt_log_probs`` has the natural log-probability of each token of the prompt but the first.
    """
    return replace(
        engine,
        inputs=(*engine.inputs, scalar(SCORES_PROMPTS, BOOL)),
        outputs=(*engine.outputs, Tensor("prompt_log_probs", FP32, (-1,))),
    )


def with_tickets(contract: ModelContract) -> ModelContract:
    """Returns a model's contract with what tells an engine that a client of the ensemble has gone.

    The engine's responses carry :data:`TICKET`, which the ensemble gives to ``postprocessing``
    (model_repo/common/receipts.py); other models stay as they are.
    """
    if contract.name == ENGINE:
        return replace(contract, outputs=(*contract.outputs, Tensor(TICKET, UINT64, (3,))))
    if contract.name == POSTPROCESSING:
        taken = Tensor(TICKET.upper(), UINT64, (3,), optional=True)
        return replace(contract, inputs=(*contract.inputs, taken))
    return replace(contract, steps=tuple(map(_with_ticket, contract.steps)))


def _with_ticket(step: Step) -> Step:
    place = f"_{TICKET.upper()}"
    if step.model == ENGINE:
        return replace(step, output_map={**step.output_map, TICKET: place})
    if step.model == POSTPROCESSING:
        return replace(step, input_map={**step.input_map, TICKET.upper(): place})
    return step


def _order(*, draft: bool, unary: bool) -> tuple[str, ...]:
    """The models' names; one that calls others is behind them."""
    first = (PREPROCESSING, *((DRAFT,) if draft else ()))
    others = (name for name in MODELS if name not in first)
    return (*first, *others, *((BLS_UNARY,) if unary else ()))


def answering_model(model: str) -> str:
    """Names the model whose transaction policy decides how often ``model`` answers a request.

    An ensemble has none of its own; it answers as often as the engine does.
    """
    return ENGINE if model == ENSEMBLE else model
