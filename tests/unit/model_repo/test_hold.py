"""Which tokens leave at once and which wait, by a clock of the test's own."""

from __future__ import annotations

import random

import numpy as np
import pytest

from model_repo.tensorrt_llm.answer import Answer
from model_repo.tensorrt_llm.hold import RESPONSE_S, SHARE, Hold
from model_repo.tensorrt_llm.request import RequestError
from model_repo.tensorrt_llm.responses import ResponseStream
from tests.unit.model_repo.fake_triton import Sender

WANTED = frozenset({"output_ids", "output_log_probs", "cum_log_probs"})
STEP = 0.005
LONGEST = 0.2


class Rounds:
    """Streams on an engine that takes :data:`STEP` seconds for a step, and what leaves when.

    Args:
        longest: Seconds that a token may wait.
        processors: Of the machine.
    """

    def __init__(self, longest: float = LONGEST, processors: int = 2) -> None:
        self.now = 100.0
        self.hold: Hold[ResponseStream] = Hold(longest, processors, clock=lambda: self.now)
        self.ready: dict[ResponseStream, None] = {}
        self.waits: list[float] = []
        self._since: dict[ResponseStream, float] = {}

    def stream(self, **answer: bool) -> tuple[ResponseStream, Sender]:
        sender = Sender()
        made = ResponseStream(
            sender,
            Answer(True, WANTED, **answer),
            lambda stream: self.ready.__setitem__(stream, None),
        )
        return made, sender

    def round(self, seconds: float = STEP) -> list[ResponseStream]:
        """The end of a step: what the hold lets go is sent."""
        for stream in self.ready:
            self._since.setdefault(stream, self.now)
        leaving = self.hold.take(self.ready, seconds)
        self.ready = {}
        for stream in leaving:
            self.waits.append(self.now - self._since.pop(stream))
            stream.send()
        self.now += seconds
        return leaving


def sent(sender: Sender) -> list[list[int]]:
    return [
        tensor.as_numpy().reshape(-1).tolist()
        for response, _ in sender.sent
        if response is not None
        for tensor in response.output_tensors()
        if tensor.name() == "output_ids"
    ]


def test_a_first_token_never_waits() -> None:
    rounds = Rounds()
    running = [rounds.stream()[0] for _ in range(16)]
    for number in range(20):
        for stream in running:
            stream.tokens([number], [], last=False)
        rounds.round()
    new, sender = rounds.stream()
    for stream in (*running, new):
        stream.tokens([7], [], last=False)
    rounds.round()
    assert sent(sender) == [[7]]
    for stream in (*running, new):
        stream.tokens([8], [], last=False)
    assert new not in rounds.round()


def test_an_end_and_a_failure_take_what_was_held_with_them_at_once() -> None:
    rounds = Rounds()
    made = [rounds.stream() for _ in range(16)]
    (ending, ended), (failing, failed), (left, cancelled) = made[:3]
    for number in range(4):
        for stream, _ in made:
            stream.tokens([number], [], last=False)
        rounds.round()
    ending.tokens([4], [], last=True)
    failing.fail(RequestError("the cache is full", "UNAVAILABLE"))
    left.tokens([], [], last=True)  # as the loop ends what a client has given up
    assert set(rounds.round()) == {ending, failing, left}
    assert sent(ended) == [[0], [1, 2, 3, 4]]
    assert [final for _, final in ended.sent] == [False, True]
    assert sent(failed) == [[0], [1, 2, 3]]
    assert failed.failure() == "the cache is full"
    assert sent(cancelled) == [[0], [1, 2, 3]]


def test_a_single_stream_sends_every_token_by_itself() -> None:
    rounds = Rounds()
    (one, first), (other, second) = rounds.stream(), rounds.stream()
    for stream in (one, other):
        stream.tokens([0], [], last=False)
    rounds.round()
    other.tokens([1], [], last=True)
    rounds.round()
    for number in range(1, 6):
        one.tokens([number], [], last=False)
        rounds.round()
    assert sent(first) == [[number] for number in range(6)]
    assert sent(second) == [[0], [1]]


def test_what_two_streams_hold_leaves_with_the_first_round_of_one() -> None:
    rounds = Rounds()
    (one, first), (other, _) = rounds.stream(), rounds.stream()
    for number in range(3):
        for stream in (one, other):
            stream.tokens([number], [], last=False)
        rounds.round()
    assert sent(first) == [[0]]
    other.tokens([3], [], last=True)
    one.tokens([3], [], last=False)
    rounds.round()
    one.tokens([4], [], last=False)
    rounds.round()
    assert sent(first) == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize("longest", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_no_token_waits_longer_than_the_key_allows(longest: float, seed: int) -> None:
    """Whatever the lengths of steps, but for a step that is longer than all those before it."""
    drawn, rounds = random.Random(seed), Rounds(longest)
    streams = [rounds.stream()[0] for _ in range(32)]
    rounds.round(0.012)
    for _ in range(300):
        for stream in streams:
            if drawn.random() < 0.9:
                stream.tokens([1], [], last=False)
        rounds.round(drawn.uniform(0.009, 0.012))
    assert max(rounds.waits) <= longest + 0.003
    assert max(rounds.waits) > longest / 2 - 0.012


def test_nothing_is_held_when_the_key_is_0() -> None:
    rounds = Rounds(0.0)
    made = [rounds.stream() for _ in range(32)]
    for number in range(5):
        for stream, _ in made:
            stream.tokens([number], [], last=False)
        assert len(rounds.round()) == 32
    assert all(sent(sender) == [[0], [1], [2], [3], [4]] for _, sender in made)


@pytest.mark.parametrize(("streams", "processors"), [(2, 2), (8, 2), (32, 16), (32, 128)])
def test_few_streams_on_many_processors_wait_less(streams: int, processors: int) -> None:
    """Responses of all streams, once per wait, take the share of the processors and no more."""
    limit = Hold(10.0, processors).limit(streams)
    assert streams * RESPONSE_S / (limit * processors) == pytest.approx(SHARE)
    assert Hold(10.0, processors).limit(1) == 0.0


def test_steps_longer_than_the_wait_send_each_token() -> None:
    """A large model on a large machine: every step's tokens leave with it."""
    rounds = Rounds(processors=64)
    made = [rounds.stream() for _ in range(16)]
    for number in range(4):
        for stream, _ in made:
            stream.tokens([number], [], last=False)
        rounds.round(0.05)
    assert all(sent(sender) == [[0], [1], [2], [3]] for _, sender in made)


@pytest.mark.parametrize("longest", [0.0, 0.05, 10.0])
def test_order_content_and_scores_are_those_of_the_engine(longest: float) -> None:
    drawn, rounds = random.Random(5), Rounds(longest)
    made = [rounds.stream(log_probs=True) for _ in range(8)]
    expected: list[list[int]] = [[] for _ in made]
    lengths = [drawn.randint(1, 60) for _ in made]
    while any(len(ids) < length for ids, length in zip(expected, lengths, strict=True)):
        for (stream, _), ids, length in zip(made, expected, lengths, strict=True):
            count = min(drawn.randint(0, 2), length - len(ids))
            new = [drawn.randrange(100) for _ in range(count)]
            if count:
                ids.extend(new)
                scores = [-token / 100 for token in new]
                stream.tokens(new, scores, last=len(ids) == length)
        rounds.round()
    for (_, sender), ids in zip(made, expected, strict=True):
        outputs = sender.outputs()
        assert [t for one in outputs for t in one["output_ids"].reshape(-1).tolist()] == ids
        so_far = 0
        for one in outputs:
            so_far += one["output_ids"].size
            scores = np.array([-token / 100 for token in ids[:so_far]], np.float32)
            assert np.allclose(one["output_log_probs"].reshape(-1), scores)
            assert one["cum_log_probs"].item() == pytest.approx(scores.sum(), abs=1e-4)
        assert [final for _, final in sender.sent].count(True) == 1
