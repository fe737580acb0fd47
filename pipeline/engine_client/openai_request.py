"""A request for text as the body of a completion of OpenAI's API, as llama.cpp's server takes it.

Its defaults are not those of this project: it samples, it computes temperature last, and it takes
numbers that mean nothing. So every setting that decides a text is sent, and what it has no word
for is refused here, with the reason. Names and meanings are those of tools/server/README.md in
llama.cpp.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from typing import Any

from trtllm_client import GenerateRequest, InvalidRequest

NO_END = -1
"""``end_id`` of a request that no token ends."""

# Temperature first, as transformers and TensorRT-LLM have it.
_SAMPLERS = ("penalties", "temperature", "top_k", "top_p")
# Tokens that penalties look back on, the prompt's too: in practice all of them. The server keeps
# room for so many.
_PENALIZED = 32_768
# What llama.cpp's server has no word for, and why it cannot be done in front of it.
_UNKNOWN: Mapping[str, str] = {
    "bad_words": "it biases single tokens, which forbids other words too",
    "min_tokens": "it cannot be told when a text may end",
    "length_penalty": "it has no beam search",
    "lora_task_id": "the build has no adapters",
    "num_draft_tokens": "the build has no draft model",
}


def named(request: GenerateRequest) -> GenerateRequest:
    """Gives a request an id, if it has none."""
    return dataclasses.replace(request, request_id=request.request_id or uuid.uuid4().hex)


def with_fields(request: GenerateRequest | str | bytes, sampling: Mapping[str, Any]) -> Any:
    """Makes a checked request of a prompt, or of a request and fields that replace its own.

    Raises:
        InvalidRequest: A field is unknown or its value is not allowed.
    """
    import dataclasses

    try:
        made = (
            dataclasses.replace(request, **sampling)
            if isinstance(request, GenerateRequest)
            else GenerateRequest(request, **sampling)
        )
    except TypeError as error:
        raise InvalidRequest(f"a field of the request is unknown: {error}") from error
    made.validate()
    return made


def text_of(request: GenerateRequest) -> str:
    """Returns the prompt; it is checked already."""
    prompt = request.prompt
    return prompt.decode() if isinstance(prompt, bytes) else prompt


def as_it_is(request: GenerateRequest, begin: str) -> bool:
    """Says whether nothing is to be put around the prompt's tokens.

    Not asked, a text is given no second one of the token that begins every text, as by this
    project's Triton models; llama.cpp's server would give it one.

    Args:
        request: Checked.
        begin: The text of that token; empty where there is none.
    """
    if request.add_special_tokens is None:
        return bool(begin) and text_of(request).startswith(begin)
    return not request.add_special_tokens


def body_of(request: GenerateRequest, *, model: str, stream: bool) -> dict[str, Any]:
    """Writes the body of ``POST /v1/completions``.

    Args:
        request: Checked; its prompt is sent as it is.
        model: The model's name at the server.
        stream: Whether the answer comes in pieces.

    Raises:
        InvalidRequest: The request asks for what the server has no word for.
    """
    _refuse_unknown(request)
    return {
        "model": model,
        "prompt": text_of(request),
        "max_tokens": request.max_tokens,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        # Tokens so far with each piece, since a piece may have several.
        "timings_per_token": stream,
        "logprobs": 1 if request.return_log_probs else 0,
        "stop": list(request.stop_words),
        "ignore_eos": request.end_id == NO_END,
        # A prompt that is there already is computed in another order, and gives other last digits.
        "cache_prompt": False,
        **_sampling(request),
        **_guide(request),
    }


def _sampling(request: GenerateRequest) -> dict[str, Any]:
    greedy = request.temperature == 0 or request.top_k == 1
    # As Triton's models do: a temperature alone samples from one token.
    greedy = greedy or (not request.top_k and request.top_p in (None, 0.0))
    fields: dict[str, Any] = {
        "samplers": list(_SAMPLERS),
        "temperature": 0.0
        if greedy
        else (1.0 if request.temperature is None else request.temperature),
        "top_k": request.top_k or 0,
        "top_p": request.top_p or 1.0,
        "min_p": 0.0,
        "repeat_last_n": _PENALIZED,
        "repeat_penalty": 1.0 if request.repetition_penalty is None else request.repetition_penalty,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        # 32 bits are taken; 2^32 - 1 stands for one of its own choice.
        "seed": (request.seed or 0) % (2**32 - 1),
    }
    return fields


def _guide(request: GenerateRequest) -> dict[str, Any]:
    kind, guide = request.guided_decoding_guide_type, request.guided_decoding_guide
    text = guide.decode() if isinstance(guide, bytes) else guide
    if kind is None:
        return {}
    if kind == "json":
        return {"json_schema": {"type": "object"}}
    if kind == "json_schema":
        try:
            return {"json_schema": json.loads(text or "")}
        except ValueError as error:
            raise InvalidRequest(f"guided_decoding_guide is not JSON: {error}") from error
    if kind == "ebnf_grammar":
        return {"grammar": text}
    raise InvalidRequest(
        "llama.cpp's server cannot keep a text to a regular expression",
        fix="Use --json-schema or --grammar",
    )


def _refuse_unknown(request: GenerateRequest) -> None:
    for name, why in _UNKNOWN.items():
        if getattr(request, name):
            raise InvalidRequest(f"llama.cpp's server has no {name}", why=why, fix="Leave it out")
    if request.exclude_input_in_output is False:
        raise InvalidRequest(
            "OpenAI's API gives the answer alone, without its prompt",
            fix="Leave exclude_input_in_output out",
        )
    if request.end_id not in (None, NO_END):
        raise InvalidRequest(
            f"end_id cannot be {request.end_id}: OpenAI's API does not let a request choose the "
            "token that ends a text",
            fix="Leave it out, give -1 for none, or name a text as a stop word",
        )
