"""Fixtures of all unit tests."""

from __future__ import annotations

import pytest

from pipeline.effort import planned
from pipeline.targets.openvino import memory


@pytest.fixture(autouse=True)
def _ample_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused must not depend on the machine that runs the tests."""
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**15)
    monkeypatch.setattr(planned, "free", lambda _build: 10**15)
    monkeypatch.setattr(planned, "may_have_gpu", lambda: False)
