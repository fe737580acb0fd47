from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm.request import GenerationRequest, RequestError, Sampling
from model_repo.tensorrt_llm.sampling import generation_config, read_sampling


@pytest.mark.parametrize(
    ("given", "greedy"),
    [
        ({}, True),
        ({"temperature": 0.7}, True),  # TensorRT-LLM: no top_k and no top_p is greedy
        ({"seed": 3}, True),
        ({"runtime_top_k": 1, "temperature": 2.0}, True),
        ({"runtime_top_k": 5, "temperature": 0.0}, True),
        ({"runtime_top_k": 5, "temperature": 1e-38}, True),
        ({"runtime_top_k": 5, "temperature": 0.9e-5}, True),
        ({"runtime_top_p": 0.9, "temperature": 1e-5}, False),
        ({"runtime_top_k": 5}, False),
        ({"runtime_top_k": 0, "runtime_top_p": 0.0}, True),
        ({"runtime_top_p": 0.9}, False),
        ({"runtime_top_k": 0, "runtime_top_p": 0.5}, False),
    ],
)
def test_what_is_greedy(given: dict[str, Any], greedy: bool) -> None:
    assert read_sampling(given.get).greedy is greedy


def test_every_value_is_read() -> None:
    given = {
        "temperature": 0.5,
        "runtime_top_k": 7,
        "runtime_top_p": 0.25,
        "seed": 2**64 - 1,
        "repetition_penalty": 1.5,
        "min_tokens": 4,
    }
    assert read_sampling(given.get) == Sampling(
        greedy=False,
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        seed=2**64 - 1,
        repetition_penalty=1.5,
        min_tokens=4,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("runtime_top_k", -1),
        ("runtime_top_p", 1.01),
        ("runtime_top_p", -0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("len_penalty", -1.0),
        ("min_tokens", -1),
        ("beam_search_diversity_rate", -0.5),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{name} must be"):
        read_sampling({"runtime_top_k": 5, name: value}.get)


def test_a_cold_top_p_is_not_what_tensorrt_llm_makes_of_it() -> None:
    """runtime/samplingConfig.h, validate: it draws from all tokens at temperature 1."""
    cold = {"temperature": 0.0, "runtime_top_p": 0.9}
    with pytest.raises(RequestError, match=r"must be sent with runtime_top_k 1: .* any token"):
        read_sampling(cold.get)
    assert read_sampling({**cold, "runtime_top_k": 0}.get).greedy
    assert read_sampling({**cold, "runtime_top_p": 0.0}.get).greedy


class Config(SimpleNamespace):
    def set_eos_token_id(self, token: int) -> None:
        self.eos = token


GENAI = SimpleNamespace(GenerationConfig=Config)


def request(**changes: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": np.array([1]), "max_new_tokens": 10, **changes})


def test_greedy_leaves_the_sampler_off() -> None:
    config = generation_config(GENAI, request(end_id=7))
    assert not hasattr(config, "do_sample")
    assert (config.eos, config.stop_token_ids) == (7, {7})
    assert not hasattr(config, "ignore_eos")
    assert (config.max_new_tokens, config.min_new_tokens, config.logprobs) == (10, 0, 0)


def test_no_end_id_is_not_the_engines_default_of_minus_one() -> None:
    config = generation_config(GENAI, request())
    assert config.ignore_eos is True
    assert config.eos >= 0


def test_sampling_reaches_the_engine() -> None:
    sampling = Sampling(greedy=False, temperature=0.5, top_k=0, top_p=0.9, seed=11)
    config = generation_config(GENAI, request(sampling=sampling, log_probs=True))
    assert (config.do_sample, config.temperature, config.top_p) == (True, 0.5, 0.9)
    assert (config.rng_seed, config.logprobs) == (11, 1)
    assert not hasattr(config, "top_k")  # every token


def test_a_request_that_starts_again_only_asks_for_the_rest() -> None:
    again = request(sampling=Sampling(min_tokens=4))
    config = generation_config(GENAI, again, already_generated=3)
    assert (config.max_new_tokens, config.min_new_tokens) == (7, 1)
    assert generation_config(GENAI, again, already_generated=9).min_new_tokens == 0
