"""Request tensors to :class:`request.Sampling`, and that to OpenVINO's GenerationConfig.

TensorRT-LLM's meaning is kept: nothing given is greedy, ``top_k`` 0 keeps every token, ``top_p`` 0
is not given, and a request without a seed uses seed 0, so equal requests get equal answers.
A temperature below :data:`COLDEST` is greedy, and ``top_k`` above :data:`LARGEST_TOP_K` is that.

What the engine would do otherwise is refused by name. docs/sampling.md has every parameter with its
meaning on both targets.
"""

from __future__ import annotations

from typing import Any

from .request import GenerationRequest, Guide, RequestError, Sampling
from .request_limits import Scalar, cold_problem, sampling_problem

COLDEST = 1e-5
"""The lowest temperature that is sampled with. Below, only the most likely token has a chance, and
far below the scores divided by it no longer fit into float32, which gives any token at all."""

LARGEST_TOP_K = 1024
"""TensorRT-LLM's limit (``TOP_K_MAX``); it lowers a larger one to this."""

_ANY_JSON = '{"anyOf": [{"type": "object"}, {"type": "array"}]}'

_COUNTS_OTHERWISE = (
    "TensorRT-LLM counts the prompt's tokens too and always lowers their scores, the CPU engine "
    "counts generated ones only and raises those below zero; leave it out or send 0 here, use "
    "repetition_penalty, which is the same on both, or serve the tensorrt target"
)
_OTHER_PENALTIES = ("presence_penalty", "frequency_penalty")
# What tensorrt_llm calls otherwise than the text models do.
_ENGINE_NAMES = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
}


def read_sampling(scalar: Scalar) -> Sampling:
    """The sampling parameters of one request.

    Args:
        scalar: Looks a tensor up by its name on ``tensorrt_llm``.

    Raises:
        RequestError: A value is out of range.
    """
    problem = sampling_problem(scalar, _ENGINE_NAMES) or cold_problem(scalar, _ENGINE_NAMES)
    if problem is not None:
        raise RequestError(problem)
    for name in _OTHER_PENALTIES:
        value = scalar(name)
        if value is not None and value != 0:
            raise RequestError(f"{name} {value:g}: {_COUNTS_OTHERWISE}", "UNSUPPORTED")
    temperature = _given(scalar("temperature"), 1.0)
    top_k = min(scalar("runtime_top_k") or 0, LARGEST_TOP_K)
    top_p = float(scalar("runtime_top_p") or 0.0)
    return Sampling(
        greedy=temperature < COLDEST or top_k == 1 or (top_k == 0 and top_p == 0),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p or 1.0,
        seed=scalar("seed") or 0,
        repetition_penalty=_given(scalar("repetition_penalty"), 1.0),
        min_tokens=scalar("min_tokens") or 0,
    )


def generation_config(
    genai: Any, request: GenerationRequest, *, already_generated: int = 0, echo: bool = False
) -> Any:
    """OpenVINO's GenerationConfig of a request.

    Args:
        genai: The ``openvino_genai`` module.
        echo: Whether the prompt comes back in front of the answer, with its log-probabilities.
        already_generated: Tokens of a request that starts again with them as part of its prompt.
    """
    config = genai.GenerationConfig()
    sampling = request.sampling
    config.max_new_tokens = request.max_new_tokens - already_generated
    config.min_new_tokens = max(0, sampling.min_tokens - already_generated)
    # Stop words are not told: the engine would hold them back, too, until min_new_tokens.
    known = frozenset() if request.end_id is None else frozenset((request.end_id,))
    if request.guide is not None:
        config.structured_output_config = structured_output(genai, request.guide)
        # The guide allows them behind a complete text only, so they must not be ordinary tokens.
        known = request.guide.end_ids
    if known:
        config.set_eos_token_id(min(known))
        config.stop_token_ids = set(known)
    else:
        # The engine refuses its own default end id of -1 even where it is to be ignored.
        config.set_eos_token_id(0)
        config.ignore_eos = True
    config.repetition_penalty = sampling.repetition_penalty
    # 1 is the chosen token's own; without it the scores of greedy decoding are 0.
    config.logprobs = int(request.log_probs or echo)
    config.echo = echo
    if not sampling.greedy:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.rng_seed = sampling.seed
        if sampling.top_k:
            config.top_k = sampling.top_k
    return config


def structured_output(genai: Any, guide: Guide) -> Any:
    """Makes OpenVINO's StructuredOutputConfig of a guide.

    ``json`` is an object or an array, as xgrammar's own grammar of JSON has it, which TensorRT-LLM
    uses (``CompileBuiltinJSONGrammar`` in cpp/tensorrt_llm/batch_manager/guidedDecoder.cpp).
    """
    if guide.kind == "regex":
        return genai.StructuredOutputConfig(regex=guide.text)
    if guide.kind == "ebnf_grammar":
        return genai.StructuredOutputConfig(grammar=guide.text)
    return genai.StructuredOutputConfig(json_schema=guide.text or _ANY_JSON)


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
