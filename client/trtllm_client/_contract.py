"""Names and types on the wire: the part of the contract that a client of the text models needs.

They are those of ``triton_backend/all_models/inflight_batcher_llm`` in TensorRT-LLM 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping

ENGINE = "tensorrt_llm"
"""The model that takes tokens, and stop requests."""

DEFAULT_MODEL = "tensorrt_llm_bls"
"""The model that takes text."""

_INPUTS_BY_TYPE = {
    "BYTES": (
        "text_input",
        "decoder_text_input",
        "bad_words",
        "stop_words",
        "embedding_bias_words",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
    ),
    "INT32": (
        "max_tokens",
        "end_id",
        "pad_id",
        "top_k",
        "min_tokens",
        "num_return_sequences",
        "beam_width",
        "prompt_vocab_size",
        "num_draft_tokens",
        "lora_config",
    ),
    "UINT64": ("seed", "prompt_table_extra_id", "lora_task_id"),
    "FP32": (
        "top_p",
        "temperature",
        "length_penalty",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "embedding_bias_weights",
    ),
    "BOOL": (
        "add_special_tokens",
        "exclude_input_in_output",
        "stream",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "use_draft_logits",
    ),
}

INPUT_TYPES: Mapping[str, str] = {
    name: datatype for datatype, names in _INPUTS_BY_TYPE.items() for name in names
}
"""KServe's name of the element type of each input of the text models.

Those of half precision are left out: Python has no numbers of that kind to send.
"""
