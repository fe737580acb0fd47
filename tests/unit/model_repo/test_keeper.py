from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from model_repo.tensorrt_llm_bls.keeper import Keeper


class Responses:
    """An iterable that a weak reference can watch, as the stub's table would."""

    def __init__(self, *items: int, fails: bool = False) -> None:
        self._items, self._fails = items, fails

    def __iter__(self) -> Iterator[int]:
        yield from self._items
        if self._fails:
            raise RuntimeError("the call failed")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_has_ended_outlives_its_user(clock: Clock) -> None:
    keeper = Keeper(2.0, clock)
    responses = Responses(1, 2)
    alive = weakref.ref(responses)
    iterator = keeper.iterate(responses)
    del responses
    assert list(iterator) == [1, 2]
    del iterator
    gc.collect()
    assert alive() is not None
    clock.now = 1.9
    keeper.keep(object())
    assert alive() is not None
    clock.now = 2.0
    keeper.keep(object())
    assert alive() is None


@pytest.mark.parametrize("how", ["raises", "closed"])
def test_however_it_ends(clock: Clock, how: str) -> None:
    keeper = Keeper(2.0, clock)
    iterator = keeper.iterate(Responses(1, fails=True))
    assert next(iterator) == 1
    if how == "raises":
        with pytest.raises(RuntimeError, match="the call failed"):
            next(iterator)
    else:
        iterator.close()
    assert len(keeper) == 1


def test_what_is_kept_is_bounded_by_time(clock: Clock) -> None:
    keeper = Keeper(2.0, clock)
    for number in range(1000):
        clock.now = number * 0.1
        keeper.keep(object())
    assert len(keeper) == 20


def test_threads_share_it() -> None:
    keeper = Keeper(0.0)
    threads = [
        threading.Thread(target=lambda: [keeper.keep(object()) for _ in range(2000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keeper) == 0
