"""What ``verify`` may say of a server whose tokens come in few pieces."""

from __future__ import annotations

from pipeline.verify.accumulation import all_begin_alike
from pipeline.verify.check_load import _most_open, _Stream
from trtllm_client import Chunk, PerfMetrics


def stream(*pieces: str, places: list[int], first: int | None, last: int | None) -> _Stream:
    told = PerfMetrics(first_token_time_ns=first, last_token_time_ns=last)
    chunks = [Chunk(piece, index, False, perf_metrics=told) for index, piece in enumerate(pieces)]
    return _Stream(chunks, places)


def test_an_empty_piece_is_no_beginning() -> None:
    assert not all_begin_alike(["", "Once"])
    assert not all_begin_alike(["", "Once", ""])
    assert all_begin_alike(["", "Once", "Once there"])


def test_streams_of_one_piece_were_open_together_where_the_server_says_so() -> None:
    one_piece = [stream("ab", places=[n], first=10 + n, last=90 + n) for n in range(3)]
    assert _most_open(one_piece) == 3
    in_a_row = [
        stream("a", "b", places=[n, 5 + n], first=10 * n + 1, last=10 * n + 5) for n in range(3)
    ]
    assert _most_open(in_a_row) == 1


def test_the_order_of_pieces_counts_where_the_server_tells_no_times() -> None:
    streams = [stream("a", "b", places=[n, 5 + n], first=None, last=None) for n in range(3)]
    assert _most_open(streams) == 3
