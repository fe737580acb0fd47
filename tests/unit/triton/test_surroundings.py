"""What a server gets of the environment, and how many threads its models call others with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.triton.surroundings import calling_threads, passed_on
from tests.conftest import PROJECT

GOLDEN = PROJECT / "tests/golden/triton/tensorrt_llm_bls.pbtxt"


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("PATH", True),
        ("LC_ALL", True),
        ("OMP_NUM_THREADS", True),
        ("ONEDNN_VERBOSE", True),
        ("CUDA_VISIBLE_DEVICES", True),
        ("NAMED", True),
        ("HF_TOKEN", False),
        ("NVIDIA_API_KEY", False),
        ("OPENAI_API_KEY", False),
        ("https_proxy", False),
        ("PYTHONSTARTUP", False),
        ("named", False),
    ],
)
def test_a_server_gets_what_it_can_need(name: str, there: bool) -> None:
    assert passed_on({name: "x"}, ["NAMED"]) == ({name: "x"} if there else {})


def test_as_many_threads_as_requests_that_a_model_takes(tmp_path: Path) -> None:
    assert calling_threads(tmp_path) == 32  # Triton's own
    (tmp_path / "bls").mkdir()
    (tmp_path / "bls" / "config.pbtxt").write_text(GOLDEN.read_text())
    assert calling_threads(tmp_path) == 288
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.pbtxt").write_text(
        'parameters { key: "max_concurrent_requests" value: { string_value: "4" } }'
    )
    assert calling_threads(tmp_path) == 288
