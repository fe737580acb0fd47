from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dependencies import check_installed, missing, require
from pipeline.errors import MissingDependencyError


def test_what_is_installed_is_returned() -> None:
    assert require("json", "quantize") is json


def test_what_is_missing_names_its_extra_and_gives_no_needless_reason() -> None:
    with pytest.raises(MissingDependencyError, match=r"no_such_package is not installed") as caught:
        require("no_such_package.part", "cpu")
    assert caught.value.why is None
    assert "pip install ./client '.[cpu]'" in str(caught.value)


def test_what_a_module_needs_is_named_with_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no_such_package is not installed") as caught:
        require("needy_module", "cpu")
    assert caught.value.why == "needy_module needs it"


def test_what_is_missing_is_found_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = [
        ("explosive.part", "cpu"),
        ("no_such_package.a", "cpu"),
        ("no_such_package.b", "cpu"),
        ("neither_this", "quantize"),
    ]
    absent = [("no_such_package", "cpu"), ("neither_this", "quantize")]
    assert missing(wanted) == absent
    with pytest.raises(
        MissingDependencyError,
        match="packages no_such_package, neither_this are not installed",
    ) as caught:
        check_installed(wanted)
    assert "./client '.[cpu,quantize]'" in str(caught.value)
    assert caught.value.exit_code == 3
    check_installed(wanted[:1])
