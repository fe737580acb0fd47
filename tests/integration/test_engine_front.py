"""The engine loop over the real engine: batching in flight, and every guard the engine needs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.request import RequestError, Sampling
from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import (
    Front,
    Listener,
    Plain,
    Stubborn,
    front,
    settings,
    write_engine,
)

SAMPLED = Sampling(greedy=False, temperature=1.0, top_p=0.95, seed=7)


def prompts(count: int, length: int = 12, seed: int = 1) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 500, (count, length)).tolist()


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(DEMO_MODEL, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def plain(engine_dir: Path) -> Plain:
    """The expected tokens, from an engine of its own."""
    return Plain(Engine(settings(engine_dir, enable_prefix_caching=False)))


@pytest.fixture(scope="module")
def shared(engine_dir: Path) -> Iterator[Front]:
    with front(engine_dir) as made:
        yield made


def test_32_streams_interleave_and_equal_what_each_gives_alone(shared: Front, plain: Plain) -> None:
    log: list[int] = []
    listeners = [Listener(number, log) for number in range(32)]
    asked = prompts(32)
    for prompt, listener in zip(asked, listeners, strict=True):
        shared.submit(prompt, 24, listener=listener)
    results = [listener.result() for listener in listeners]
    assert results == [plain(prompt, 24) for prompt in asked]
    switches = sum(a != b for a, b in itertools.pairwise(log))
    assert switches > 0.9 * len(log)
    # Nobody waits for another to finish: all have begun before the first has half of its tokens.
    assert len(set(log[: 12 * 32])) == 32
    shared.idle()


def test_1000_short_requests_from_eight_threads(shared: Front, plain: Plain) -> None:
    asked = prompts(25, length=3)
    expected = [plain(prompt, 3) for prompt in asked]
    wrong: list[int] = []

    def client() -> None:
        for _ in range(5):
            pairs = [shared.submit(prompt, 3)[1] for prompt in asked]
            wrong.extend(
                number for number, pair in enumerate(pairs) if pair.result() != expected[number]
            )

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    shared.idle()


def test_a_prompt_longer_than_a_step_is_taken_in_pieces(shared: Front, plain: Plain) -> None:
    (long,) = prompts(1, length=384)
    _, neighbour = shared.submit(prompts(1)[0], 60)
    neighbour.wait_first()
    assert shared.run(long, 20) == plain(long, 20)
    assert neighbour.result() == plain(prompts(1)[0], 60)


def test_whole_prompts_when_chunked_context_is_off(engine_dir: Path, plain: Plain) -> None:
    (long,) = prompts(1, length=384)
    changes = {"dynamic_split_fuse": False, "max_num_batched_tokens": 512}
    with front(engine_dir, **changes) as made:
        assert made.run(long, 20) == plain(long, 20)


def test_a_shared_prefix_changes_nothing(shared: Front, plain: Plain) -> None:
    (prefix,) = prompts(1, length=200, seed=5)
    for end in prompts(3, length=9, seed=6):
        assert shared.run(prefix + end, 12) == plain(prefix + end, 12)


def test_seeds_are_reproducible_whatever_runs_beside_them(shared: Front) -> None:
    prompt = prompts(1)[0]
    first = shared.run(prompt, 30, sampling=SAMPLED)
    others = [shared.submit(other, 40, sampling=SAMPLED)[1] for other in prompts(9, seed=3)]
    assert shared.run(prompt, 30, sampling=SAMPLED) == first
    other_seed = Sampling(greedy=False, temperature=1.0, top_p=0.95, seed=8)
    assert shared.run(prompt, 30, sampling=other_seed) != first
    for other in others:
        other.result()


def test_log_probs_are_the_models_own(shared: Front, plain: Plain) -> None:
    prompt = prompts(1)[0]
    _, listener = shared.submit(prompt, 10, log_probs=True)
    assert listener.result() == plain(prompt, 10)
    assert len(listener.log_probs) == 10
    assert all(value <= 0 for value in listener.log_probs)
    _, twice = shared.submit(prompt, 10, log_probs=True)
    twice.result()
    assert twice.log_probs == pytest.approx(listener.log_probs, abs=1e-4)


def test_end_ids_and_stop_words(shared: Front, plain: Plain) -> None:
    prompt = prompts(1, seed=2)[0]
    whole = plain(prompt, 40)
    end = next(token for token in whole[5:] if whole.count(token) == 1)
    at = whole.index(end)
    assert shared.run(prompt, 40, end_id=end) == whole[:at]
    assert shared.run(prompt, 40, stop_words=((1, 2), (end,))) == whole[: at + 1]
    assert shared.run(prompt, 40, stop_words=(tuple(whole[at - 2 : at + 1]),)) == whole[: at + 1]
    longer = Sampling(min_tokens=at + 3)
    assert len(shared.run(prompt, 40, end_id=end, sampling=longer)) >= at + 3
    # TensorRT-LLM holds back the request's own end id only.
    stopped = shared.run(prompt, 40, end_id=1023, stop_words=((end,),), sampling=longer)
    assert stopped == whole[: at + 1]
    shared.idle()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [], "tokens": 4}, "the prompt is empty"),
    ({"prompt": [5] * 385, "tokens": 4}, "prompt has 385 tokens"),
    ({"prompt": [5] * 384, "tokens": 200}, "is 584; .* at most 512"),
    ({"prompt": [5, 1_000_000], "tokens": 4}, "token id 1000000"),
    ({"prompt": [5, -1], "tokens": 4}, "token id -1"),
    ({"prompt": [5, 2**40], "tokens": 4}, "token id 1099511627776"),
    ({"prompt": [5], "tokens": 0}, "must be at least 1"),
]


@pytest.mark.parametrize(("request_", "reason"), REFUSED)
def test_what_would_harm_the_engine_never_reaches_it(
    shared: Front, plain: Plain, request_: dict[str, Any], reason: str
) -> None:
    neighbour = shared.submit(prompts(1)[0], 10)[1]
    with pytest.raises(RequestError, match=reason):
        shared.submit(**request_)
    assert neighbour.result() == plain(prompts(1)[0], 10)


def test_a_prompt_larger_than_the_cache_spares_its_neighbour(
    engine_dir: Path, plain: Plain
) -> None:
    with front(engine_dir, num_kv_blocks=8) as made:
        neighbour = made.submit(prompts(1)[0], 40)[1]
        with pytest.raises(RequestError, match="needs 10 KV cache blocks"):
            made.submit([5] * 300, 4)
        assert neighbour.result() == plain(prompts(1)[0], 40)


def test_a_clients_id_may_be_used_twice(shared: Front, plain: Plain) -> None:
    asked = prompts(3)
    same = [shared.submit(prompt, 12, client_id="same")[1] for prompt in asked]
    assert [one.result() for one in same] == [plain(prompt, 12) for prompt in asked]
    assert shared.loop.cancel_client_id("same") == 0


def test_stopping_by_client_id_ends_all_that_have_it(shared: Front) -> None:
    same = [shared.submit(prompt, 400, client_id="same")[1] for prompt in prompts(2)]
    other = shared.submit(prompts(1)[0], 40, client_id="other")[1]
    for one in same:
        one.wait_first()
    assert shared.loop.cancel_client_id("same") == 2
    assert all(len(one.result()) < 400 for one in same)
    assert len(other.result()) == 40
    shared.idle()


def test_a_cancelled_request_leaves_its_neighbours_and_its_blocks(
    shared: Front, plain: Plain
) -> None:
    asked = prompts(4)
    pairs = [shared.submit(prompt, 60) for prompt in asked]
    pairs[1][1].wait_first()
    shared.loop.cancel(pairs[1][0])
    shared.loop.cancel(pairs[1][0])
    assert len(pairs[1][1].result()) < 60
    for number in (0, 2, 3):
        assert pairs[number][1].result() == plain(asked[number], 60)
    shared.loop.cancel(pairs[0][0])  # after its end
    shared.idle()


def test_a_cancelled_request_that_runs_alone_is_freed(shared: Front) -> None:
    generation, listener = shared.submit(prompts(1)[0], 400)
    listener.wait_first()
    shared.loop.cancel(generation)
    assert len(listener.result()) < 400
    shared.idle()


def test_a_request_that_waits_can_be_cancelled(engine_dir: Path) -> None:
    with front(engine_dir, max_batch_size=1) as made:
        running = made.submit(prompts(1)[0], 200)[1]
        generation, waiting = made.submit(prompts(1)[0], 5)
        made.loop.cancel(generation)
        assert waiting.result() == []
        assert len(running.result()) == 200


def test_no_more_than_the_batch_size_run_together(engine_dir: Path, plain: Plain) -> None:
    log: list[int] = []
    asked = prompts(5)
    with front(engine_dir, max_batch_size=2) as made:
        listeners = [Listener(number, log) for number in range(5)]
        for prompt, listener in zip(asked, listeners, strict=True):
            made.submit(prompt, 10, listener=listener)
        assert [one.result() for one in listeners] == [plain(p, 10) for p in asked]
    ends = {number: max(i for i, name in enumerate(log) if name == number) for number in range(5)}
    starts = {number: log.index(number) for number in range(5)}
    for at in range(len(log)):
        assert sum(starts[n] <= at <= ends[n] for n in range(5)) <= 2
    assert list(dict.fromkeys(log)) == [0, 1, 2, 3, 4]  # in their order


def test_the_queue_is_bounded(engine_dir: Path) -> None:
    with front(engine_dir, max_batch_size=2, max_queue_size=3) as made:
        accepted = [made.submit(prompt, 100)[1] for prompt in prompts(5)]
        with pytest.raises(RequestError, match="Maximum queue size of 3 has been reached") as full:
            made.submit(prompts(1)[0], 5)
        assert full.value.code == "UNAVAILABLE"
        assert all(len(one.result()) == 100 for one in accepted)
        assert len(made.run(prompts(1)[0], 5)) == 5


def test_requests_that_outgrow_the_cache_together_wait_their_turn(
    engine_dir: Path, plain: Plain
) -> None:
    asked = prompts(6, length=40)
    with front(engine_dir, num_kv_blocks=10) as made:
        listeners = [made.submit(prompt, 100)[1] for prompt in asked]
        assert [one.result() for one in listeners] == [plain(p, 100) for p in asked]
        assert made.loop.stats.evictions == 0
        made.idle()


def test_what_the_engine_drops_is_started_again_with_what_it_had(
    engine_dir: Path, plain: Plain
) -> None:
    """Cancelling one of three that share a full cache makes the engine drop the other two."""
    asked = prompts(3, length=120)
    changes = {"num_kv_blocks": 12, "guaranteed_no_evict": False, "enable_prefix_caching": False}
    dropped = 0
    with front(engine_dir, **changes) as made:
        for cancel_at in range(5, 100, 5):
            pairs = [made.submit(prompt, 100) for prompt in asked]
            while len(pairs[0][1].ids) < cancel_at and not pairs[0][0].done:
                threading.Event().wait(0.0005)
            made.loop.cancel(pairs[0][0])
            for number in (1, 2):
                assert pairs[number][1].result() == plain(asked[number], 100)
            dropped = made.loop.stats.evictions
            made.idle()
            if dropped:
                break
    assert dropped > 0, "the engine never dropped a request, so nothing was tested"


def test_an_exception_in_the_engine_fails_everyone_and_everything_after(
    engine_dir: Path,
) -> None:
    limits = settings(engine_dir, max_batch_size=2)
    engine = Engine(limits)
    made = Front(engine, limits, Stubborn(engine.pipeline, steps=5))
    listeners = [made.submit(prompt, 50)[1] for prompt in prompts(3)]
    assert all(
        "the engine stopped working and its process ends; the reason is in" in one.failure()
        for one in listeners
    )
    with pytest.raises(RequestError, match=r"the engine stopped working.*server's log"):
        made.submit(prompts(1)[0], 5)
    made.loop.close()
    assert [str(error) for error in made.broken] == ["out of order"]


def test_an_engine_that_fails_while_it_is_closed_is_just_closed(engine_dir: Path) -> None:
    class Closing(Stubborn):
        def has_non_finished_requests(self) -> bool:
            raise RuntimeError("out of order")

    limits = settings(engine_dir, max_batch_size=2)
    engine = Engine(limits)
    made = Front(engine, limits, Closing(engine.pipeline, steps=10_000))
    listener = made.submit(prompts(1)[0], 400)[1]
    listener.wait_first()
    made.loop.close()
    assert "shutting down" in listener.failure()
    assert made.broken == []
    while engine.pipeline.has_non_finished_requests():
        engine.pipeline.step()


def test_a_request_that_computes_its_prompt_is_counted_with_all_its_blocks(
    engine_dir: Path,
) -> None:
    class Looking(Stubborn):
        """Looks at what there is before each step."""

        def step(self) -> None:
            seen.append(made.loop.levels())
            super().step()

    seen: list[Any] = []
    limits = settings(engine_dir, max_batch_size=2)
    engine = Engine(limits)
    made = Front(engine, limits, Looking(engine.pipeline, steps=10_000))
    prompt = prompts(1, length=100)[0]
    firsts = []
    for _ in range(2):
        seen.clear()
        made.run(prompt, 3)
        firsts.append(seen[0])
        made.idle()
    made.loop.close()
    # 100 tokens are four blocks of 32; the second time three of them are there already.
    assert [(first.context, first.used_blocks) for first in firsts] == [(1, 4), (1, 4)]


def test_closing_fails_what_is_unfinished_and_frees_the_engine(engine_dir: Path) -> None:
    with front(engine_dir, max_batch_size=2) as made:
        listeners = [made.submit(prompt, 400)[1] for prompt in prompts(4)]
        listeners[0].wait_first()
        made.loop.close()
        assert all("shutting down" in one.failure() for one in listeners)
        assert not made.engine.pipeline.has_non_finished_requests()
        with pytest.raises(RequestError, match="shutting down"):
            made.submit(prompts(1)[0], 5)


def test_the_engine_warms_up(engine_dir: Path) -> None:
    limits = settings(engine_dir)
    engine = Engine(limits)
    engine.warm_up(limits)
    assert not engine.pipeline.has_non_finished_requests()
