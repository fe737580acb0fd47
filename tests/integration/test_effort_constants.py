"""What an estimate takes for granted of the code that does the work, which imports torch."""

from __future__ import annotations

from pipeline.effort import memory, seconds, work
from pipeline.evaluation import scoring, signal_to_noise
from pipeline.layers import parts, walk
from pipeline.reference import by_layer


def test_limits_are_those_of_the_walks() -> None:
    assert (work.BATCH_TOKENS, work.BATCH_LOGITS) == (scoring.BATCH_TOKENS, scoring.BATCH_LOGITS)
    assert (work.HEAD, work.OFTEN_BYTES) == (parts.HEAD_BYTES, by_layer.OFTEN_BYTES)
    assert memory.STATES == walk.HIDDEN_BYTES
    assert seconds.NOISE_TOKENS == signal_to_noise.TOKENS
