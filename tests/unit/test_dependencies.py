from __future__ import annotations

import json

import pytest

from pipeline.dependencies import require
from pipeline.errors import MissingDependencyError


def test_what_is_installed_is_returned() -> None:
    assert require("json", "quantize") is json


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"no_such_package is not installed.*\[cpu\]"):
        require("no_such_package.part", "cpu")
