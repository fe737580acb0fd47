"""The checks, in the order they run."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.verify.check import Check
from pipeline.verify.check_declared import accumulate_tokens, end_ids, stop_word_kept
from pipeline.verify.check_edges import large_prompt, max_tokens_zero, odd_prompts, prompt_limit
from pipeline.verify.check_errors import bad_inputs
from pipeline.verify.check_front import http_generate, kv_reuse, metrics_move, queue_full
from pipeline.verify.check_leaving import leaving_checks
from pipeline.verify.check_limits import end_token, log_probs, max_tokens, stop_words
from pipeline.verify.check_load import cancel_frees_slot, interleaved_streams
from pipeline.verify.check_parameters import parameter_checks
from pipeline.verify.check_prompts import batch_of_two, border, empty_prompt
from pipeline.verify.check_requests import (
    old_names,
    request_parameters,
    stop_request,
    unary_call,
)
from pipeline.verify.check_sampling import every_model_streams, log_probs_alone, seeds
from pipeline.verify.check_server import readiness, wire_contract
from pipeline.verify.check_special_tokens import begins_once
from pipeline.verify.check_text import (
    ensemble_equals_bls,
    greedy_determinism,
    stream_equals_whole,
    utf8_across_tokens,
)
from pipeline.verify.check_tokenizer import own_tokenizer
from pipeline.verify.check_wire import output_shapes, perf_metrics

CHECKS: Mapping[str, Check] = {
    check.name: check
    for check in (
        readiness,
        wire_contract,
        own_tokenizer,
        begins_once,
        output_shapes,
        greedy_determinism,
        stream_equals_whole,
        utf8_across_tokens,
        ensemble_equals_bls,
        max_tokens,
        border,
        batch_of_two,
        empty_prompt,
        accumulate_tokens,
        end_token,
        end_ids,
        stop_words,
        stop_word_kept,
        log_probs,
        perf_metrics,
        interleaved_streams,
        cancel_frees_slot,
        stop_request,
        unary_call,
        request_parameters,
        old_names,
        bad_inputs,
        max_tokens_zero,
        prompt_limit,
        large_prompt,
        odd_prompts,
        seeds,
        log_probs_alone,
        every_model_streams,
        kv_reuse,
        http_generate,
        metrics_move,
        *leaving_checks(),
        queue_full,
        *parameter_checks(),
    )
}
