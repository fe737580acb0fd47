"""Request tensors to :class:`request.Sampling`, and that to the LLM API's ``SamplingParams``.

TensorRT-LLM's meaning is kept, as behind its C++ backend: nothing given is greedy, ``top_k`` 0
keeps every token, ``top_p`` 0 is not given, and a request without a seed uses seed 0. What the
sampler that the engine runs would ignore is refused by name: ``TorchSampler`` of TensorRT-LLM 1.2
takes no penalty (NVIDIA/TensorRT-LLM#9442, mended in July 2026 by #16485) and draws from one
generator for all requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .request import GenerationRequest, RequestError, Sampling
from .request_limits import Scalar, cold_problem, sampling_problem

COLDEST = 1e-5
"""The lowest temperature that is sampled with; a smaller one is greedy, as on the CPU target."""

LARGEST_TOP_K = 1024
"""TensorRT-LLM's limit (``TOP_K_MAX``); it lowers a larger one to this."""

TORCH_SAMPLER = "TorchSampler"

# What tensorrt_llm calls otherwise than the text models do.
_ENGINE_NAMES = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
}
_PENALTIES = ("presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class FullSampling(Sampling):
    """The parameters of :class:`request.Sampling`, and those that this engine has besides.

    Attributes:
        seeded: Whether the request named a seed.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seeded: bool = False


def read_sampling(scalar: Scalar) -> FullSampling:
    """The sampling parameters of one request.

    Args:
        scalar: Looks a tensor up by its name on ``tensorrt_llm``.

    Raises:
        RequestError: A value is out of range.
    """
    problem = sampling_problem(scalar, _ENGINE_NAMES) or cold_problem(scalar, _ENGINE_NAMES)
    if problem is not None:
        raise RequestError(problem)
    temperature = _given(scalar("temperature"), 1.0)
    top_k = min(scalar("runtime_top_k") or 0, LARGEST_TOP_K)
    top_p = float(scalar("runtime_top_p") or 0.0)
    presence, frequency = (_given(scalar(name), 0.0) for name in _PENALTIES)
    return FullSampling(
        greedy=temperature < COLDEST or top_k == 1 or (top_k == 0 and top_p == 0),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p or 1.0,
        seed=scalar("seed") or 0,
        repetition_penalty=_given(scalar("repetition_penalty"), 1.0),
        min_tokens=scalar("min_tokens") or 0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        seeded=scalar("seed") is not None,
    )


def check_sampler(sampling: Sampling, sampler: str) -> None:
    """Refuses what the engine's sampler would take and not do.

    Args:
        sampling: Of the request.
        sampler: ``sampler_type`` of model.yaml.

    Raises:
        RequestError: Naming the parameter, and the sampler that has it.
    """
    if sampler != TORCH_SAMPLER or not isinstance(sampling, FullSampling):
        return
    asked = {
        "repetition_penalty": sampling.repetition_penalty != 1,
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "seed": sampling.seeded and not sampling.greedy,
    }
    for name, wanted in asked.items():
        if wanted:
            raise RequestError(
                f"{name}: {TORCH_SAMPLER} of TensorRT-LLM 1.2 ignores it; leave it out, or serve "
                "the repository with sampler_type TRTLLMSampler (compile.llmapi.sampler)",
                "UNSUPPORTED",
            )


def sampling_params(make: Any, request: GenerationRequest, end_ids: tuple[int, ...]) -> Any:
    """The ``SamplingParams`` of a request.

    Stop words of several tokens are not told: ``SamplingParams.stop`` takes texts, which the LLM
    API tokenizes anew. The front finds them among the tokens and aborts the request.

    Args:
        make: ``tensorrt_llm.SamplingParams``.
        request: What is generated.
        end_ids: The model's own end ids, of which the LLM API wants one even where none ends a
            text.
    """
    sampling = request.sampling
    words = {word[0] for word in request.stop_words if len(word) == 1}
    named: dict[str, Any] = {
        "max_tokens": request.max_new_tokens,
        "end_id": request.end_id if request.end_id is not None else next(iter(end_ids), 0),
        "ignore_eos": request.end_id is None,
        # The text that a stop word ends has it, as behind the C++ backend.
        "include_stop_str_in_output": True,
        "detokenize": False,
        "add_special_tokens": False,
    }
    if words:
        named["stop_token_ids"] = sorted(words)
    if sampling.min_tokens:
        named["min_tokens"] = sampling.min_tokens
    if request.log_probs:
        named["logprobs"] = 1
    if sampling.repetition_penalty != 1:
        named["repetition_penalty"] = sampling.repetition_penalty
    if isinstance(sampling, FullSampling):
        for name in _PENALTIES:
            if value := getattr(sampling, name):
                named[name] = value
    if sampling.greedy:
        return make(**named, top_k=1)
    named |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    if sampling.top_k:
        named["top_k"] = sampling.top_k
    return make(**named)


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
