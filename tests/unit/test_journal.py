"""A journal: lines of JSON, each key once, never half a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.store.journal import append, read
from tests.conftest import PROJECT


def test_lines_are_appended_in_order_and_a_key_not_twice_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    assert append(path, {"key": "a", "text": "schön\nzwei"})
    assert append(path, {"key": "b"})
    assert not append(path, {"key": "b", "text": "another"})
    lines = [json.loads(text) for text in path.read_bytes().splitlines()]
    assert lines == [{"key": "a", "text": "schön\nzwei"}, {"key": "b"}] == read(path)
    # What was undone is news.
    assert append(path, {"key": "a"})
    assert [line["key"] for line in read(path)] == ["a", "b", "a"]


def test_a_text_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    texts = ["a\u2028b", "a\x85b", "a\u2029b", "a\x1eb", "a\rb"]
    for text in texts:
        assert append(path, {"key": repr(text), "text": text})
    assert [line["text"] for line in read(path)] == texts


def test_a_number_that_json_does_not_have_is_refused_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append(path, {"key": "a"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append(path, {"key": "b", "value": float("nan")})
    assert path.read_bytes() == before


def test_a_line_that_was_cut_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b')
    with pytest.raises(UsageError, match=r"history\.jsonl:2: this line is not one of a history"):
        append(path, {"key": "c"})


def test_a_pipe_and_a_folder_are_no_journals(tmp_path: Path) -> None:
    """Nobody writes into the pipe: to open it for reading would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe or a device"), (tmp_path, "directory")):
        with pytest.raises(UsageError, match=rf"no history that can be read\. .* a {kind}"):
            append(path, {"key": "a"})


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    code = (
        "import sys, itertools; from pathlib import Path\n"
        "from pipeline.store.journal import append\n"
        "for i in itertools.count():\n"
        "    append(Path(sys.argv[1]), {'key': str(i), 'text': 'x' * 20000})\n"
    )
    for _ in range(3):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT) as writer:
            deadline = time.monotonic() + 60
            while not path.exists() or path.stat().st_size < 200_000:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            writer.kill()
        keys = [line["key"] for line in read(path)]
        assert keys == [str(index) for index in range(len(keys))]
        assert len(keys) >= 10
