"""Pins, and what each container holds."""

from __future__ import annotations

import pytest

from pipeline.errors import UnsupportedError
from pipeline.targets.tensorrt import toolchain
from pipeline.targets.tensorrt.toolchain import (
    CONTAINERS,
    DEFAULT_CONTAINER,
    check_tensorrt_llm,
    container_for,
)


def test_the_default_container_holds_the_pins() -> None:
    assert DEFAULT_CONTAINER.tensorrt_llm == toolchain.TENSORRT_LLM
    assert DEFAULT_CONTAINER.tensorrt == toolchain.TENSORRT
    assert DEFAULT_CONTAINER.driver == 580
    assert DEFAULT_CONTAINER.image == "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3"


def test_containers_by_what_they_hold() -> None:
    assert container_for("1.2.1", "10.14.1.48") is DEFAULT_CONTAINER
    old = container_for("1.0.0", "10.11.0.33")
    assert (old.tag, old.cuda, old.driver) == ("25.10", 12, 525)
    assert container_for("1.0.0", "10.11.0.33", built_in=CONTAINERS[1].image).tag == "25.09"
    months = [f"{year}.{month:02}" for year in (25, 26) for month in range(1, 13)]
    assert [c.tag for c in CONTAINERS] == months[months.index("25.08") : months.index("26.07") + 1]


def test_the_pinned_version_passes() -> None:
    check_tensorrt_llm("1.2.1")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.3.0rc22", "cannot build engines.*removed upstream in July 2026.*LLM-API"),
        ("1.3.0", "cannot build engines"),
        ("1.4.0rc0", "cannot build engines"),
        ("1.3.0rc15", "is not the pinned 1.2.1.*loads only in the version that built it"),
        ("1.2.0", "is not the pinned 1.2.1"),
        ("0.17.0.post1", "is not the pinned 1.2.1"),
        ("unknown", "is not the pinned 1.2.1"),
    ],
)
def test_every_other_version_is_refused(version: str, expected: str) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        check_tensorrt_llm(version)
    assert DEFAULT_CONTAINER.image in str(caught.value)
