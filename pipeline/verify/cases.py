"""What is asked to learn whether a model takes each of its inputs: one right value, wrong ones.

Every input of ``ensemble`` and ``tensorrt_llm_bls`` has a case for text, and every one of
``tensorrt_llm`` a case for ids; a test walks the wire contract for those that have none. Besides
the values here, each input is sent as another type, which must be refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.triton.contract import SCORES_PROMPTS
from pipeline.verify.requests import Value
from trtllm_client import Tensors

ASKED_TOKENS = 8
"""Tokens of an answer where a case does not say otherwise."""

INVALID = b"caf\xe9 \xff"
_FAVOUR = -100.0


@dataclass(frozen=True)
class Got:
    """An answer.

    Attributes:
        text: Its text; of ids, the ids with spaces between.
        count: How many tokens were generated; None where the server does not count.
        responses: As they arrived.
        ids: The ids of its tokens; of a text those that the engine makes, none where it has none.
    """

    text: str
    count: int | None
    responses: Sequence[Tensors]
    ids: Sequence[int] = ()

    def has(self, *names: str) -> bool:
        """Whether one of the responses brings each of some outputs, with values."""
        return all(
            any(name in one and one[name].values for one in self.responses) for name in names
        )


Holds = Callable[[Got, Got], bool]
Given = Callable[[Got], Sequence[Value] | None]


@dataclass(frozen=True)
class Case:
    """How one input of a model is put to the test.

    Attributes:
        name: The input.
        good: A right value; or makes it of the answer without the input, None where that is not
            possible. Empty where the answer itself shows it.
        holds: Whether an answer with the right value is right, beside the one without.
        must: What must hold, in words.
        bad: Wrong values, each of which must be refused.
        beside: Inputs that go with the right value; None takes one away that is otherwise sent.
        shape: Of the right value, where it is not one row.
        offered: Whether every server has to do it; otherwise it may refuse the right value.
        risky: Whether TensorRT-LLM's executor may end everybody's requests with the right value
            where nothing in front of it looks, so that it is not sent there.
        guarded: Whether the wrong values are only refused where something in front of the executor
            looks at them.
        twice: Whether the same is asked twice, and ``holds`` compares both answers.
    """

    name: str
    good: Sequence[Value] | Given
    must: str
    holds: Holds = lambda _plain, got: bool(got.responses)
    bad: Sequence[Sequence[Value]] = ()
    beside: Mapping[str, Sequence[Value] | Given | None] = field(default_factory=dict)
    shape: Sequence[int] | None = None
    offered: bool = True
    risky: bool = False
    guarded: bool = True
    twice: bool = False


def _same(plain: Got, got: Got) -> bool:
    return got.text == plain.text


def _other(plain: Got, got: Got) -> bool:
    return got.text != plain.text


def _brings(*names: str) -> Holds:
    return lambda _plain, got: got.has(*names)


def _counts(tokens: int) -> Holds:
    return lambda _plain, got: got.count in (None, tokens)


def _first_word(plain: Got) -> Sequence[Value] | None:
    words = re.findall(r"\s*\S+", plain.text)
    return [words[0]] if words else None


def _later_word(plain: Got) -> Sequence[Value] | None:
    words = [word for word in plain.text.split(" ")[1:-1] if word]
    return [f" {words[-1]}"] if words else None


def _ends_at_word(plain: Got, got: Got) -> bool:
    return len(got.text) < len(plain.text) and plain.text.startswith(got.text)


def _nan() -> Sequence[Value]:
    return [math.nan]


def _early_id(plain: Got) -> Sequence[Value] | None:
    """An id that comes first where it can end the answer early."""
    ids = plain.ids
    return next(([ids[n]] for n in range(2, len(ids) - 1) if ids[n] not in ids[:n]), None)


def _word_list(plain: Got) -> Sequence[Value] | None:
    found = _early_id(plain)
    return [*found, 1] if found else None


def _first_id_word(plain: Got) -> Sequence[Value]:
    return [*plain.ids[:1], 1]


def _ends_early(plain: Got, got: Got) -> bool:
    return got.count in (None, plain.ids.index(_early_id(plain)[0]))  # type: ignore[index]


def _follows_guide(_plain: Got, got: Got) -> bool:
    """Of ids nothing can be told here."""
    return bool(got.ids) or bool(re.fullmatch("[ab]{3}", got.text.strip()))


_UNCHANGED = "the text is the one without it"
_ANSWERED = "it is answered"

_BRINGS = "the answer has {}"


def _feature(name: str, *values: Value, good: Given | None = None, **more: Any) -> Case:
    """An input of something that most engines cannot do: refused with a reason, or answered."""
    more.setdefault("risky", True)
    must = "it is answered, or refused with a reason"
    return Case(name, good or list(values), must, offered=False, **more)


def _sampling(top_k: str, top_p: str, length_penalty: str) -> tuple[Case, ...]:
    """What text and ids have in common; three inputs have other names on the engine."""
    return (
        Case("temperature", [0.0], "0 with top_k 1 is greedy", _same, bad=[[-1.0]]),
        Case(top_k, [1], "1 is greedy, whatever the temperature", _same, bad=[[-1]],
             beside={"temperature": [1.5], "seed": [3]}),
        Case(top_p, [1e-6], "next to nothing is greedy", _same, bad=[[1.5]],
             beside={top_k: [0], "seed": [3]}),
        Case(length_penalty, [1.0], _ANSWERED, bad=[[-1.0]]),
        Case("repetition_penalty", [1.0], _UNCHANGED, _same, bad=[[0.0]]),
        Case("presence_penalty", [0.0], _UNCHANGED, _same, bad=[_nan()]),
        Case("frequency_penalty", [0.0], _UNCHANGED, _same, bad=[_nan()]),
        Case("min_tokens", [4], "so many tokens come before an end", lambda _, got: (
             got.count is None or got.count >= 4), bad=[[-1], [10_000]],
             beside={"end_id": _early_id}),
        Case("beam_width", [1], _UNCHANGED, _same, bad=[[0], [64]]),
        _feature("num_return_sequences", 1, risky=False),
        Case("pad_id", [0], _UNCHANGED, _same),
        Case("return_log_probs", [True], _BRINGS.format("output_log_probs and cum_log_probs"),
             _brings("output_log_probs", "cum_log_probs")),
        Case("return_perf_metrics", [True], _BRINGS.format("the times and the KV blocks"),
             _brings("arrival_time_ns", "first_token_time_ns", "kv_cache_alloc_total_blocks")),
        Case("return_num_input_tokens", [True], _BRINGS.format("num_input_tokens"),
             _brings("num_input_tokens")),
        Case("return_num_output_tokens", [True], _BRINGS.format("num_output_tokens"),
             _brings("num_output_tokens")),
        _feature("return_context_logits", True, holds=_brings("context_logits")),
        _feature("return_generation_logits", True, holds=_brings("generation_logits")),
        _feature("prompt_embedding_table", 0.0, shape=(1, 1, 1)),
        _feature("prompt_vocab_size", 1),
        _feature("lora_task_id", 2**40, risky=False),
        _feature("lora_weights", 0.0, shape=(1, 1, 1)),
        _feature("lora_config", 0, 0, 1, shape=(1, 1, 3)),
        _feature("guided_decoding_guide_type", "regex",
                 beside={"guided_decoding_guide": ["[ab]{3}"]},
                 holds=_follows_guide),
        _feature("guided_decoding_guide", "[ab]{3}",
                 beside={"guided_decoding_guide_type": ["regex"]},
                 holds=_follows_guide),
    )  # fmt: skip


TEXT_CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("text_input", [], "the prompt is continued", bad=[[INVALID]]),
        Case("decoder_text_input", [""], _UNCHANGED, _same, offered=False),
        Case("max_tokens", [3], "3 tokens come", _counts(3), bad=[[0], [-5]], guarded=False),
        Case("add_special_tokens", [False], _ANSWERED),
        _feature("bad_words", holds=lambda plain, got: not got.text.startswith(
            str(_first_word(plain)[0])), good=_first_word, risky=False),  # type: ignore[index]
        Case("stop_words", _later_word, "the text ends there", _ends_at_word),
        Case("exclude_input_in_output", [False], "the prompt stands in front", lambda plain, got: (
            got.text.endswith(plain.text) and len(got.text) > len(plain.text))),
        Case("end_id", _early_id, "the text ends before that token", _ends_early),
        Case("seed", [7], "the text is the same each time", twice=True,
             beside={"top_k": [20], "temperature": [1.0]}),
        Case("stream", [True], "the pieces are the text", _same),
        _feature("prompt_table_extra_id", 0),
        Case("embedding_bias_words", _first_word, "the word does not begin the text", _other,
             beside={"embedding_bias_weights": [_FAVOUR]}, risky=True, offered=False),
        Case("embedding_bias_weights", [_FAVOUR], "the word does not begin the text", _other,
             beside={"embedding_bias_words": _first_word}, risky=True, offered=False),
        Case("num_draft_tokens", [0], "0 guesses none", _same),
        Case("use_draft_logits", [False], _UNCHANGED, _same),
        *_sampling("top_k", "top_p", "length_penalty"),
    )
}  # fmt: skip
"""By input of ``ensemble`` or ``tensorrt_llm_bls``."""


ENGINE_CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("input_ids", [], "the prompt is continued", bad=[[-7]]),
        Case("input_lengths", [], "the prompt is continued"),
        Case("request_output_len", [3], "3 tokens come", _counts(3), bad=[[0], [-5]],
             guarded=False),
        Case("end_id", _early_id, "the answer ends there", _ends_at_word),
        Case("stop_words_list", _word_list, "the answer ends there", _ends_at_word,
             shape=(1, 2, 1)),
        _feature("bad_words_list", good=_first_id_word, shape=(1, 2, 1), risky=False,
                 holds=lambda plain, got: got.ids[:1] != plain.ids[:1]),
        _feature("embedding_bias", 0.0, shape=(1, 1)),
        Case("seed", [7], "the ids are the same each time", twice=True,
             beside={"runtime_top_k": [20], "temperature": [1.0]}),
        Case("exclude_input_in_output", [False], "the prompt stands in front",
             lambda plain, got: got.text.endswith(plain.text) and len(got.text) > len(plain.text)),
        Case("stop", [False], _UNCHANGED, _same),
        Case("streaming", [True], "the pieces are the answer", _same),
        _feature(SCORES_PROMPTS, True, holds=_brings("prompt_log_probs")),
        _feature("runtime_top_p_min", 0.5),
        _feature("runtime_top_p_decay", 0.5),
        _feature("runtime_top_p_reset_ids", 1),
        _feature("early_stopping", True, risky=False),
        _feature("beam_search_diversity_rate", 0.0, risky=False),
        _feature("encoder_input_features", 0.0, shape=(1, 1, 1)),
        _feature("encoder_output_lengths", 1),
        _feature("decoder_input_ids", 1, risky=False),
        _feature("decoder_input_lengths", 1, risky=False),
        _feature("draft_input_ids", 1),
        _feature("draft_logits", 0.0, shape=(1, 1, 1)),
        _feature("draft_acceptance_threshold", 0.5),
        _feature("prompt_table_extra_ids", 0),
        _feature("cross_attention_mask", True, shape=(1, 1, 1)),
        _feature("mrope_rotary_cos_sin", 0.0),
        _feature("mrope_position_deltas", 0),
        _feature("context_phase_params", 0),
        _feature("skip_cross_attn_blocks", False),
        _feature("retention_token_range_starts", 0),
        _feature("retention_token_range_ends", 1),
        _feature("retention_token_range_priorities", 50),
        _feature("retention_token_range_durations_ms", 1000),
        _feature("retention_decode_priority", 50),
        _feature("retention_decode_duration_ms", 1000),
        _feature("lookahead_window_size", 1),
        _feature("lookahead_ngram_size", 2),
        _feature("lookahead_verification_set_size", 1),
        *_sampling("runtime_top_k", "runtime_top_p", "len_penalty"),
    )
}  # fmt: skip
"""By input of ``tensorrt_llm``."""

ON_ENGINE: Mapping[str, tuple[str, ...]] = {
    "text_input": ("input_ids", "input_lengths"),
    "decoder_text_input": ("decoder_input_ids", "decoder_input_lengths"),
    "max_tokens": ("request_output_len",),
    "stop_words": ("stop_words_list", "stop"),
    "bad_words": ("bad_words_list",),
    "top_k": ("runtime_top_k",),
    "top_p": ("runtime_top_p", "runtime_top_p_min", "runtime_top_p_decay",
              "runtime_top_p_reset_ids"),
    "length_penalty": ("len_penalty", "early_stopping", "beam_search_diversity_rate"),
    "stream": ("streaming",),
    "prompt_table_extra_id": ("prompt_table_extra_ids",),
    "embedding_bias_words": ("embedding_bias",),
    "embedding_bias_weights": (),
    "num_draft_tokens": ("draft_input_ids", "draft_acceptance_threshold"),
    "use_draft_logits": ("draft_logits",),
    "add_special_tokens": (),
}  # fmt: skip
"""What an input of the text models is on the engine, where it has another name there."""

ENGINE_ALONE: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder_input_features", "encoder_output_lengths", "cross_attention_mask",
                "skip_cross_attn_blocks"),
    "mrope": ("mrope_rotary_cos_sin", "mrope_position_deltas"),
    "context_phase": ("context_phase_params",),
    "retention": ("retention_token_range_starts", "retention_token_range_ends",
                  "retention_token_range_priorities", "retention_token_range_durations_ms",
                  "retention_decode_priority", "retention_decode_duration_ms"),
    "lookahead": ("lookahead_window_size", "lookahead_ngram_size",
                  "lookahead_verification_set_size"),
    "prompt_scores": (SCORES_PROMPTS,),
}  # fmt: skip
"""Inputs that only the engine has, by what they are for."""
