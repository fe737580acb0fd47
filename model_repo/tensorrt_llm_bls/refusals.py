"""What ``tensorrt_llm_bls`` refuses of a request before it asks any other model.

The C++ backend would leave these things out without a word, answer with something else, or fail
other requests with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from .batch import scalar
from .calls import CallError
from .guides import GuideError, not_beside, not_served, read_guide

Prompt = Mapping[str, npt.NDArray[Any]]

# What leaves things as they are; whatever the engine can do, this model makes one text per request.
_ONLY = {
    "beam_width": (1, "beam search"),
    "num_return_sequences": (1, "several sequences per request"),
}

# Of a request to an engine that speculates: what asks for nothing.
_GREEDY = {
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "return_log_probs": (False,),
}
_NO_WORDS = ("bad_words", "embedding_bias_words")

_ANSWERS_ONCE = (
    "this model answers once per request (its model_transaction_policy is not decoupled); call one "
    "that may answer often, tensorrt_llm_bls of a repository with serve.decoupled: true or both"
)


@dataclass(frozen=True)
class Offers:
    """What this repository has of what a request may ask for.

    Attributes:
        guided_decoding: Whether requests may say what their text must be.
        lora_task_ids: The adapters that the server has loaded.
        greedy: Whether the engine takes the most likely token at each place, as one does that
            speculates.
    """

    guided_decoding: bool
    lora_task_ids: tuple[str, ...]
    greedy: bool


def refuse_prompt(inputs: Prompt, offers: Offers) -> None:
    """Refuses what one prompt asks for and this model or its engine has not.

    Args:
        inputs: The client's inputs for the prompt.
        offers: What there is.

    Raises:
        CallError: With the input's name and what to do.
    """
    _refuse_unsupported(inputs)
    _check_adapter(inputs, offers.lora_task_ids)
    if offers.greedy:
        _refuse_sampling(inputs)
    _check_guide(inputs, served=offers.guided_decoding)


def refuse_many_answers(rows: Sequence[Prompt]) -> None:
    """Refuses what takes more than one response, on a model that gives one.

    Raises:
        CallError: With what to send instead.
    """
    if any(scalar(row, "stream") for row in rows):
        raise CallError(f"stream: {_ANSWERS_ONCE}, or send stream false")
    if len(rows) > 1:
        raise CallError(f"text_input has {len(rows)} prompts: {_ANSWERS_ONCE}, or send one")


def _refuse_unsupported(inputs: Prompt) -> None:
    for name, (only, what) in _ONLY.items():
        value = scalar(inputs, name)
        if value not in (None, only):
            unsupported = pb_utils.TritonError.UNSUPPORTED
            raise CallError(f"{name} {value}: tensorrt_llm_bls has no {what}", unsupported)


def _check_adapter(inputs: Prompt, served: Sequence[str]) -> None:
    """Refuses an adapter that is not there; an engine without LoRA would answer without it.

    The first request with an id that the repository does not have may bring its weights.
    """
    chosen = scalar(inputs, "lora_task_id")
    brings = [name for name in ("lora_weights", "lora_config") if name in inputs]
    if chosen is None:
        if brings:
            raise CallError(f"{brings[0]} needs lora_task_id, the adapter's id")
        return
    if not served:
        raise CallError(
            f"lora_task_id {chosen} is not supported: this repository serves no LoRA adapters; "
            "leave it out, or make the repository again with serve.lora_adapters in the recipe",
            pb_utils.TritonError.UNSUPPORTED,
        )
    if not brings and str(chosen) not in served:
        raise CallError(
            f"lora_task_id {chosen} is unknown and needs lora_weights and lora_config in its first "
            f"request; the adapters of this repository are {', '.join(served)}"
        )


def _refuse_sampling(inputs: Prompt) -> None:
    """Refuses what an engine that speculates would leave out without a word.

    Its decoder takes the most likely token at each place, and has neither penalties nor banned
    words nor log probabilities (``DecodingMode::Lookahead`` in executor/types.h,
    layers/lookaheadDecodingLayer.cpp).
    """
    asked = [
        name for name, neutral in _GREEDY.items() if scalar(inputs, name) not in (None, *neutral)
    ]
    # Of either, 0 is not given; neither of them is greedy decoding.
    top_k, top_p = scalar(inputs, "top_k") or 0, scalar(inputs, "top_p") or 0.0
    if top_k > 1 or (top_k < 1 and top_p > 0.0):
        asked.append("top_k" if top_k else "top_p")
    asked += [name for name in _NO_WORDS if name in inputs and inputs[name].size]
    if asked:
        several = len(asked) > 1
        raise CallError(
            f"{' and '.join(asked)} {'are' if several else 'is'} not supported: this engine was "
            "built for lookahead decoding, which takes the most likely token at each place; leave "
            f"{'them' if several else 'it'} out",
            pb_utils.TritonError.UNSUPPORTED,
        )


def _check_guide(inputs: Prompt, *, served: bool) -> None:
    """Refuses a guide that the C++ backend would ignore, or fail all its requests with.

    A text that follows a guide ends with one of the model's own end ids. Where the request has
    another, the engine goes on, and xgrammar fails on a text that it has ended
    (GuidedDecodingConfig::validate in executor/guidedDecodingConfig.cpp warns of the mismatch).
    """
    try:
        guide = read_guide(inputs)
    except GuideError as error:
        raise CallError(str(error)) from error
    if guide is None:
        return
    if not served:
        raise CallError(not_served(guide[0]), pb_utils.TritonError.UNSUPPORTED)
    for name in ("end_id", "min_tokens"):
        value = scalar(inputs, name)
        if value is not None and (name, value) != ("min_tokens", 0):
            raise CallError(not_beside(name))
