"""Why a stage runs, against sentences written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.running.reasons import reason_to_run
from pipeline.store.artifact import Damage

BEFORE: dict[str, Any] = {
    "stage": "s",
    "version": 1,
    "recipe": {"group_size": 128, "search": None},
    "inputs": {"source": "a" * 64},
    "material": {
        "directory": "/home/a/model",
        "files": {"config.json": [1, 2, 3], "model.safetensors": [4, 5, 6]},
        "tools": {"torch": "2.12.0"},
        "machine": {"cpus": 2, "processor": "EPYC"},
        "code": "b" * 64,
    },
}


def _with(**changed: Any) -> dict[str, Any]:
    return {**BEFORE, **changed}


def _material(**changed: Any) -> dict[str, Any]:
    return _with(material={**BEFORE["material"], **changed})


LONG = (
    "group_size changed from 128 to 64; the pipeline's own code changed; "
    "the model's files were touched; and 1 more"
)
FRESH = {"config.json": [1, 9, 9], "model.safetensors": [4, 9, 9]}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (BEFORE, "its artifact is gone from the store"),
        (_material(files=FRESH), "the model's files were touched"),
        (
            _material(files=FRESH, directory="/ci/model"),
            "the model lies in another folder; the model's files were touched",
        ),
        (_material(tools={"torch": "2.13.0"}), "torch is 2.13.0 now and was 2.12.0"),
        (_material(tools={}), "torch is not there now and was 2.12.0"),
        (_material(machine={"cpus": 4, "processor": "Xeon"}), "this is another machine"),
        (_material(code="c" * 64), "the pipeline's own code changed"),
        (_with(inputs={"source": "d" * 64}), "the source artifact changed"),
        (_with(version=2), "this version of the pipeline does it in another way"),
        (
            _with(recipe={"group_size": 64, "search": None}),
            "group_size changed from 128 to 64",
        ),
        (_with(recipe={"group_size": 128, "search": {"x": [1]}}), "search changed"),
        (
            _with(
                version=2,
                recipe={"group_size": 64, "search": None},
                material={**BEFORE["material"], "code": "c" * 64, "files": FRESH},
            ),
            LONG,
        ),
    ],
)
def test_what_changed_is_told_in_words(after: dict[str, Any], said: str) -> None:
    assert reason_to_run(after, BEFORE, None) == said


def test_what_never_ran_and_what_is_damaged() -> None:
    assert reason_to_run(BEFORE, None, None) == "never ran"
    damage = Damage(Path("x"), ("out is missing",))
    assert reason_to_run(BEFORE, BEFORE, damage) == "its artifact is damaged: out is missing"
