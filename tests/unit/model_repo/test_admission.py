from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm.admission import Capacity, check_request, check_stream
from model_repo.tensorrt_llm.request import GenerationRequest, RequestError, Sampling
from model_repo.tensorrt_llm.settings import EngineSettings


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{
            "engine_dir": Path("engine"),
            "vocab_size": 100,
            "max_batch_size": 2,
            "max_input_len": 64,
            "max_seq_len": 96,
            "num_kv_blocks": 6,
            "max_num_batched_tokens": 64,
            **changes,
        }
    )


def request(
    ids: int | list[int] = 10, max_new_tokens: int = 8, min_tokens: int = 0
) -> GenerationRequest:
    prompt = np.array(ids if isinstance(ids, list) else [1] * ids, np.int64)
    return GenerationRequest(prompt, max_new_tokens, Sampling(min_tokens=min_tokens))


@pytest.mark.parametrize(
    "accepted",
    [
        request([0]),
        request([99]),
        request(ids=64, max_new_tokens=32),
        request(max_new_tokens=86),
        request(max_new_tokens=1),
        request(max_new_tokens=8, min_tokens=8),
    ],
)
def test_what_just_fits_is_accepted(accepted: GenerationRequest) -> None:
    check_request(accepted, settings())


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (request([]), "the prompt is empty"),
        (request([1, 100]), "token id 100; this model's ids are 0 to 99"),
        (request([1, 2**40]), "token id 1099511627776"),
        (request([-1, 5]), "token id -1;"),
        (request(ids=65), "prompt has 65 tokens; .* at most 64 .max_input_len"),
        (request(max_new_tokens=87), "8?7 is 97; .* at most 96 .max_seq_len"),
        (request(max_new_tokens=0), "must be at least 1, got 0"),
        (request(max_new_tokens=-5), "must be at least 1, got -5"),
        (request(max_new_tokens=8, min_tokens=9), "min_tokens 9 is above"),
    ],
)
def test_what_the_engine_would_not_survive_is_refused(
    refused: GenerationRequest, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        check_request(refused, settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"guaranteed_no_evict": True, "dynamic_split_fuse": False},
        {"guaranteed_no_evict": False, "dynamic_split_fuse": True},
    ],
)
def test_a_stream_that_can_go_on_after_an_eviction_is_accepted(changes: dict[str, bool]) -> None:
    check_stream(request(ids=64, max_new_tokens=32), settings(**changes))


def test_a_stream_that_could_not_go_on_after_an_eviction_is_refused() -> None:
    """executorImpl.cpp: ``maxRestartLen = promptLen + maxNewTokens - 1 <= maxInputLen``."""
    uncut = settings(guaranteed_no_evict=False, dynamic_split_fuse=False)
    check_stream(request(ids=60, max_new_tokens=5), uncut)
    with pytest.raises(RequestError, match=r"may grow to 65 tokens, more than the 64 of the"):
        check_stream(request(ids=60, max_new_tokens=6), uncut)


def test_a_request_larger_than_the_whole_cache_is_refused() -> None:
    small = settings(num_kv_blocks=2)
    check_request(request(ids=32, max_new_tokens=32), small)
    with pytest.raises(RequestError, match=r"needs 3 KV cache blocks .* the cache has 2"):
        check_request(request(ids=32, max_new_tokens=33), small)


def test_a_slot_and_every_block_are_promised_before_a_request_starts() -> None:
    capacity = Capacity(settings(num_kv_blocks=6, max_batch_size=3))
    assert capacity.take(32, 65) == 4  # 97 tokens
    assert capacity.take(32, 33) is None  # needs 3 of the 2 left
    assert capacity.take(32, 32) == 2
    assert capacity.free_blocks == 0
    capacity.give_back(4)
    assert capacity.take(1, 1) == 1
    assert capacity.take(1, 1) == 1
    assert capacity.take(1, 1) is None  # three slots


def test_max_utilization_promises_the_prompt_and_one_block_more() -> None:
    capacity = Capacity(settings(guaranteed_no_evict=False, num_kv_blocks=6))
    assert capacity.take(40, 56) == 3
    assert capacity.take(33, 1, whole=True) == 2
    evicted = Capacity(settings(guaranteed_no_evict=False, num_kv_blocks=6))
    assert evicted.take(1, 95, whole=True) == 3
