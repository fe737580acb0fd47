from __future__ import annotations

import time

import pytest

from model_repo.tensorrt_llm.ending import EXIT_STATUS, end_process
from tests.unit.model_repo.fake_triton import Logger


def test_it_leaves_after_the_responses_and_the_grace() -> None:
    order: list[object] = []
    started = time.monotonic()
    end_process(
        RuntimeError("out of order"),
        lambda: order.append("sent"),
        grace_s=0.05,
        leave=order.append,
    )
    assert order == ["sent", EXIT_STATUS]
    assert time.monotonic() - started >= 0.05
    assert (
        "the engine is broken, this process ends: RuntimeError('out of order')"
        in (Logger.messages[-1])
    )


def test_it_leaves_even_when_the_responses_cannot_be_sent() -> None:
    def send_all() -> None:
        raise RuntimeError("Triton is gone")

    left: list[int] = []
    with pytest.raises(RuntimeError, match="Triton is gone"):
        end_process(RuntimeError("out of order"), send_all, leave=left.append)
    assert left == [EXIT_STATUS]
