"""A real server under two names, and one whose engine waits before every step, in turns."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy import stats

from pipeline.bench import measure_interleaved
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.running.runner import run_recipe
from pipeline.store.build_dir import BuildDir
from pipeline.triton.server import TritonServer
from tests.conftest import PROJECT

WAIT_S = 0.02
# Put at the end of engine.py: no step takes less time than this.
WAITING = f"""

import time


class _Waits:
    def __init__(self, pipeline):
        self._pipeline = pipeline

    def step(self):
        time.sleep({WAIT_S})
        self._pipeline.step()

    def __getattr__(self, name):
        return getattr(self._pipeline, name)


_open = Engine.__init__


def _open_waiting(self, settings):
    _open(self, settings)
    self.pipeline = _Waits(self.pipeline)


Engine.__init__ = _open_waiting
"""
TOKENS = 12


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TritonServer]]:
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("HF_HUB_OFFLINE", "1")
        recipe = load_recipe(PROJECT / "configs" / "demo-float16.yaml", [])
        recipe = recipe.model_copy(update={"evaluate": None})
        built = run_recipe(recipe, BuildDir(root / "build"), Silent(), until="repository")
    repository = Path(built.deployed["repository"])
    slow = root / "slow"
    shutil.copytree(repository, slow)
    engine = slow / "tensorrt_llm" / "1" / "engine.py"
    text = engine.read_text(encoding="utf-8")
    engine.unlink()  # it may be a hard link into the store
    engine.write_text(text + WAITING, encoding="utf-8")
    with ExitStack() as stack:
        one, waiting = (
            stack.enter_context(TritonServer(place, log_file=root / f"{place.name}.log"))
            for place in (repository, slow)
        )
        # Two processes of one program can really differ, by where their memory lies.
        yield {"one": one, "same": one, "slow": waiting}


@pytest.fixture(scope="module")
def measured(servers: dict[str, TritonServer]) -> dict[str, Any]:
    return measure_interleaved(
        {name: server.grpc_url for name, server in servers.items()},
        baseline="one",
        concurrency=(1, 4),
        seconds=3,
        output_tokens=TOKENS,
        input_tokens=128,
    )


def rows(measured: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return list(measured["servers"][name]["measurements"])


def test_a_slower_engine_is_found_to_be_slower_by_as_much_as_it_waits(
    measured: dict[str, Any],
) -> None:
    for row in rows(measured, "slow"):
        assert row["difference"] is True
        assert row["ratio"]["high"] < 1
        # No token of a stream comes sooner than a step takes.
        most = row["concurrency"] / WAIT_S
        assert row["tokens_per_second"]["value"] < most
        assert row["decode_tokens_per_second"]["value"] < 1.05 * most
        assert row["latency_ms"]["p50"] > 1000 * WAIT_S * TOKENS
    alone = measured["servers"]["slow"]["decode_tokens_per_second"]
    assert 0.3 / WAIT_S < alone["value"] < 1.05 / WAIT_S


def test_a_server_differs_from_itself_only_by_chance(measured: dict[str, Any]) -> None:
    """scipy's paired test says how likely such rounds of one server are; one of twenty honest
    runs is a difference, one of a million would be a fault of the measurement."""
    for row, base in zip(rows(measured, "same"), rows(measured, "one"), strict=True):
        paired = stats.ttest_rel(np.log(row["by_round"]), np.log(base["by_round"]))
        assert paired.pvalue > 1e-6
        assert row["ratio"]["low"] < 1.5
        assert row["ratio"]["high"] > 0.67
        if abs(paired.pvalue - 0.05) > 1e-3:
            assert row["difference"] is bool(paired.pvalue < 0.05)


def test_what_a_level_says_fits_together(measured: dict[str, Any]) -> None:
    for server in measured["servers"].values():
        assert server["seconds"] >= 3
        for row, sample in zip(server["measurements"], server["samples"], strict=True):
            assert row["output_tokens"] == TOKENS * row["requests"]
            assert len(sample["ttft_ms"]) == row["requests"]
            assert row["ttft_ms"]["p50"] == pytest.approx(np.median(sample["ttft_ms"]), abs=0.01)
            assert row["itl_ms"]["p95"] == pytest.approx(
                np.percentile(sample["itl_ms"], 95), abs=0.01
            )
            assert row["tokens_per_second"]["value"] == pytest.approx(
                stats.gmean(row["by_round"]), rel=1e-4
            )
            assert row["prefill_tokens_per_second"]["value"] > 0


def test_the_memory_of_a_server_is_psutils(servers: dict[str, TritonServer]) -> None:
    for server in servers.values():
        root = psutil.Process(server.health().pid)
        processes = [root, *root.children(recursive=True)]
        assert len(processes) > 4  # tritonserver and a process for each Python model
        expected = sum(process.memory_full_info().pss for process in processes)
        assert server.memory().bytes == pytest.approx(expected, rel=0.03)
