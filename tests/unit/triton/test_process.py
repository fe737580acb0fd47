"""Where a server's private folder lies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pipeline.errors import ServerError
from pipeline.triton.process import _private_folder


@pytest.mark.parametrize(
    ("name", "there"),
    [("plain-1.2_x+y", True), ("with space", False), ("a$(id)", False), ("naïve", False)],
)
def test_a_folder_that_a_shell_would_read_as_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there: bool
) -> None:
    wanted = tmp_path / name
    wanted.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(wanted))
    made = _private_folder()
    made.rmdir()
    assert made.parent == (wanted if there else Path("/tmp"))


def test_a_full_or_read_only_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ServerError, match="no room for the server's private folder") as caught:
        _private_folder()
    assert caught.value.where == str(tmp_path / "nowhere")
    assert "TMPDIR" in str(caught.value)
