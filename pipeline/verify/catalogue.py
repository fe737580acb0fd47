"""The checks, in the order they run."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.verify.check import Check
from pipeline.verify.check_errors import bad_inputs
from pipeline.verify.check_limits import end_token, log_probs, max_tokens, stop_words
from pipeline.verify.check_load import cancel_frees_slot, interleaved_streams
from pipeline.verify.check_server import readiness, wire_contract
from pipeline.verify.check_text import (
    ensemble_equals_bls,
    greedy_determinism,
    stream_equals_whole,
    utf8_across_tokens,
)
from pipeline.verify.check_tokenizer import own_tokenizer

CHECKS: Mapping[str, Check] = {
    check.name: check
    for check in (
        readiness,
        wire_contract,
        own_tokenizer,
        greedy_determinism,
        stream_equals_whole,
        utf8_across_tokens,
        ensemble_equals_bls,
        max_tokens,
        end_token,
        stop_words,
        log_probs,
        interleaved_streams,
        cancel_frees_slot,
        bad_inputs,
    )
}
