"""The sample, watched: as an engine of the CPU, and as one of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.monitoring.observed import Observed, observe

from .sample import deployed, report


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    chosen = {"namespace": "llm", "monitoring": {"pricePerHour": 1.5}}
    return observe(deployed(tmp_path_factory.mktemp("cpu"), report(), **chosen))


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return observe(deployed(tmp_path_factory.mktemp("gpu"), report(), gpus=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
