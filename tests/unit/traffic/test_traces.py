"""Trace files: Mooncake's format, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.bench.traffic import read_trace
from pipeline.errors import UsageError

# The fields of a line in Mooncake's FAST'25 traces, with numbers of our own.
ROW = {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}


def test_a_trace_begins_with_its_first_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    later = {**ROW, "timestamp": 30482.5, "input_length": 3, "output_length": 4}
    path.write_text(f"{json.dumps(later)}\n\n{json.dumps(ROW)}\n", encoding="utf-8")
    first, second = read_trace(path)
    assert (first.at_s, first.input_tokens, first.output_tokens) == (0.0, 6955, 52)
    assert second.at_s == pytest.approx(3.0005)
    assert (second.input_tokens, second.output_tokens) == (3, 4)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "no JSON"),
        ("[1]", "no object"),
        (json.dumps({**ROW, "timestamp": None}), "timestamp is None"),
        (json.dumps({**ROW, "timestamp": -1}), "timestamp is -1"),
        (json.dumps({**ROW, "timestamp": True}), "timestamp is True"),
        (json.dumps({**ROW, "input_length": 0}), "input_length is 0"),
        (json.dumps({**ROW, "output_length": 1.5}), "output_length is 1.5"),
        ('{"timestamp": 1, "input_length": 1}', "output_length is None"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "no JSON"),
    ],
)
def test_a_line_that_is_no_request_is_named(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=what) as caught:
        read_trace(path)
    assert caught.value.where == f"{path}:2"
    assert '"input_length": 120' in str(caught.value)


def test_a_file_without_a_request_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has no request"):
        read_trace(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match="the trace cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="the trace cannot be read"):
        read_trace(tmp_path)
