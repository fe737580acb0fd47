"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SHARED_MODELS = PROJECT.parent / "shared" / "models"
DEMO_MODEL = PROJECT / "examples" / "tiny_llama" / "model"
# For --set: numbers that nobody judges.
NO_GATES = (
    "evaluate.gates={perplexity_increase: null, top1_agreement: null, kl_divergence: null, "
    "accuracy_loss: null, engine_perplexity_increase: null, engine_top1_agreement: null, "
    "engine_kl_divergence: null, completions: false}"
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that is called in this process sets the level of the log, and may take it away."""
    logger = logging.getLogger("pipeline")
    level, handlers, propagates = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logger.propagate = propagates


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The committed demo model."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def stories_model() -> Path:
    """A real pretrained tiny model that is not part of the project."""
    path = SHARED_MODELS / "stories260K-h128"
    if not path.is_dir():
        pytest.skip("../shared/models/stories260K-h128 is not here")
    return path
