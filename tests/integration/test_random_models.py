"""The whole conformance run on tiny random models, on the real tritonserver.

The engine's numbers are held against transformers elsewhere; here a right server must not be called
wrong because of what its model writes, or because little fits into its engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.source.probes import known_probes
from pipeline.triton.server import TritonServer
from pipeline.verify import run_conformance
from tests.integration.random_models import (
    broken_characters,
    build_repository,
    one_token,
    words,
)

# Checks that may have nothing to look at; all others pass.
UNEXERCISED = {
    "begins_once",
    "border",
    "cancel_frees_slot",
    "end_ids",
    "end_token",
    "stop_request",
    "stop_word_kept",
    "stop_words",
    "unary_call",
    "utf8_across_tokens",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "architecture", "max_seq_len"),
    [
        (words, "Llama", 64),
        (words, "Mistral", 64),
        (one_token, "Qwen2", 64),
        (broken_characters, "Qwen3", 64),
        (broken_characters, "Llama", 36),
    ],
)
def test_a_right_server_passes_whatever_its_model_writes(
    source: Callable[[str, Path], Path], architecture: str, max_seq_len: int, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    repository = build_repository(source(architecture, tmp_path / "source"), tmp_path, max_seq_len)
    with TritonServer(repository, log_file=tmp_path / "triton.log") as server:
        report = run_conformance(server.grpc_url, probes=known_probes(repository))
    assert report.tolerance is None
    assert {r.name: r.reason for r in report.results if r.status == "failed"} == {}
    skipped = {r.name: r.reason or "" for r in report.results if r.status == "skipped"}
    assert skipped.keys() <= UNEXERCISED
    # The reason is one of this model or engine, not a request that was refused.
    assert not [reason for reason in skipped.values() if "refused" in reason]
