"""Triton's own load generator against ``bench``, on the demo's server."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from .conftest import Cli

pytestmark = pytest.mark.skipif(
    shutil.which("perf_analyzer") is None,
    reason="perf_analyzer is not on the path; docs/bench.md says where it comes from",
)


def test_both_measure_the_demo(cli: Cli, server: Any) -> None:
    options = ("--concurrency", "2", "--duration", "12", "--rounds", "6", "--perf-analyzer")
    done = cli("bench", "--url", server.grpc_url, *options, "--json")
    (row,) = json.loads(done.stdout)["perf_analyzer"]
    for name in ("requests_per_second", "latency_p50_ms", "ttft_p50_ms"):
        ratio = row[name]["ratio"]
        # A busy machine makes the interval wide; one that lies outside altogether is a difference.
        assert ratio["low"] < 1.1, (name, ratio)
        assert ratio["high"] > 0.9, (name, ratio)
