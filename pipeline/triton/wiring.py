"""How the ensemble joins preprocessing, engine and postprocessing: as upstream does, but that
``preprocessing`` sees what it is to check."""

from __future__ import annotations

from pipeline.triton.tensors import (
    BOOL,
    ENGINE,
    FP32,
    INT32,
    POSTPROCESSING,
    PREPROCESSING,
    UINT64,
    Step,
)

# Everything an answer says besides its text, from the engine to the client unchanged.
ANSWER_DETAILS = (
    "cum_log_probs",
    "output_log_probs",
    "context_logits",
    "generation_logits",
    "batch_index",
    "sequence_index",
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
    "num_input_tokens",
    "num_output_tokens",
)

CHECKED = {
    "top_k": INT32,
    "top_p": FP32,
    "temperature": FP32,
    "length_penalty": FP32,
    "repetition_penalty": FP32,
    "min_tokens": INT32,
    "presence_penalty": FP32,
    "frequency_penalty": FP32,
    "beam_width": INT32,
    "return_generation_logits": BOOL,
    "seed": UINT64,
    "return_perf_metrics": BOOL,
}
"""Inputs of the engine that ``preprocessing`` looks at before the engine sees them, with their
types; its own names for them are the same in capitals. Of the last two it must know that they are
there: their former names are then taken as parameters."""

ADD_SPECIAL_TOKENS = "add_special_tokens"
"""Input of the text models that decides whether a text gets what the tokenizer puts around it;
``preprocessing`` has it in capitals."""

STEPS = (
    Step(
        PREPROCESSING,
        input_map={
            "QUERY": "text_input",
            "DECODER_QUERY": "decoder_text_input",
            "REQUEST_OUTPUT_LEN": "max_tokens",
            "BAD_WORDS_DICT": "bad_words",
            "STOP_WORDS_DICT": "stop_words",
            "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
            "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
            "END_ID": "end_id",
            "PAD_ID": "pad_id",
            "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
            ADD_SPECIAL_TOKENS.upper(): ADD_SPECIAL_TOKENS,
            **{name.upper(): name for name in CHECKED},
        },
        output_map={
            "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
            "INPUT_ID": "_INPUT_ID",
            "REQUEST_DECODER_INPUT_LEN": "_REQUEST_DECODER_INPUT_LEN",
            "DECODER_INPUT_ID": "_DECODER_INPUT_ID",
            "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
            "STOP_WORDS_IDS": "_STOP_WORDS_IDS",
            "BAD_WORDS_IDS": "_BAD_WORDS_IDS",
            "EMBEDDING_BIAS": "_EMBEDDING_BIAS",
            "OUT_END_ID": "_PREPROCESSOR_END_ID",
            "OUT_PAD_ID": "_PREPROCESSOR_PAD_ID",
            "OUT_PROMPT_TABLE_EXTRA_IDS": "_OUT_PROMPT_TABLE_EXTRA_IDS",
        },
    ),
    Step(
        ENGINE,
        input_map={
            "input_ids": "_INPUT_ID",
            "decoder_input_ids": "_DECODER_INPUT_ID",
            "input_lengths": "_REQUEST_INPUT_LEN",
            "decoder_input_lengths": "_REQUEST_DECODER_INPUT_LEN",
            "exclude_input_in_output": "exclude_input_in_output",
            "request_output_len": "_REQUEST_OUTPUT_LEN",
            "end_id": "_PREPROCESSOR_END_ID",
            "pad_id": "_PREPROCESSOR_PAD_ID",
            "embedding_bias": "_EMBEDDING_BIAS",
            "runtime_top_k": "top_k",
            "runtime_top_p": "top_p",
            "len_penalty": "length_penalty",
            "streaming": "stream",
            "stop_words_list": "_STOP_WORDS_IDS",
            "bad_words_list": "_BAD_WORDS_IDS",
            "prompt_table_extra_ids": "_OUT_PROMPT_TABLE_EXTRA_IDS",
            **{
                name: name
                for name in (
                    "temperature",
                    "repetition_penalty",
                    "min_tokens",
                    "presence_penalty",
                    "frequency_penalty",
                    "seed",
                    "return_log_probs",
                    "return_context_logits",
                    "return_generation_logits",
                    "return_perf_metrics",
                    "return_num_input_tokens",
                    "return_num_output_tokens",
                    "num_return_sequences",
                    "beam_width",
                    "prompt_embedding_table",
                    "prompt_vocab_size",
                    "lora_task_id",
                    "lora_weights",
                    "lora_config",
                    "guided_decoding_guide_type",
                    "guided_decoding_guide",
                )
            },
        },
        output_map={
            "output_ids": "_TOKENS_BATCH",
            "sequence_length": "_SEQUENCE_LENGTH",
            **{name: name for name in ANSWER_DETAILS},
        },
    ),
    Step(
        POSTPROCESSING,
        input_map={"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
        output_map={"OUTPUT": "text_output"},
    ),
)
