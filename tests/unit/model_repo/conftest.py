from __future__ import annotations

import importlib

import pytest

from tests.unit.model_repo.fake_triton import install

install()


@pytest.fixture(autouse=True)
def _no_parent_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model opened by a test must not end the test's process."""
    for name in ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"):
        model = importlib.import_module(f"model_repo.{name}.model")
        monkeypatch.setattr(model, "end_with_parent", lambda: None)
