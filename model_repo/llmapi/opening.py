"""Opens TensorRT-LLM's LLM API, for the front in model.py; the only module that imports it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .engine_loop import EngineLoop
from .settings import EngineSettings

MODEL_YAML = "model.yaml"
"""Beside the engine's folder, where NVIDIA's own model looks for it."""
CHECKPOINT = "checkpoint"
"""The Hugging Face folder in the engine's."""

TRITON_KEY = "triton_config"
"""The part of model.yaml that is not for the engine."""
TOKENIZER = "tokenizer"

_FOREIGN = ("OMPI_", "PMIX_", "PMI_")
"""What mpirun leaves in the environment of a server that it started. With it the LLM's workers
would join that group of processes and wait for it; NVIDIA's own model clears it, too."""


def open_engine(settings: EngineSettings) -> OpenedEngine:
    """Reads what the engine is told; the loop's thread opens it (:meth:`EngineLoop.start`).

    Raises:
        OSError: model.yaml cannot be read.
        ValueError: It is not a mapping.
    """
    return OpenedEngine(settings, read_arguments(settings.engine_dir))


def read_arguments(engine_dir: Path) -> dict[str, Any]:
    """Reads the keyword arguments of ``tensorrt_llm.LLM`` from model.yaml.

    The model is the folder in the engine's wherever the repository lies, and the tokenizer is left
    out: this front speaks in tokens.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a mapping.
    """
    import yaml

    path = engine_dir.parent / MODEL_YAML
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must be a mapping of the LLM's arguments")
    own = {name: value for name, value in content.items() if name not in (TRITON_KEY, TOKENIZER)}
    return {**own, "model": str(engine_dir / CHECKPOINT), "skip_tokenizer_init": True}


class OpenedEngine:
    """What the engine is opened with."""

    def __init__(self, settings: EngineSettings, arguments: Mapping[str, Any]) -> None:
        self._settings, self._arguments = settings, arguments

    def loop(
        self, *, after_step: Callable[[float], None], broken: Callable[[Exception], None]
    ) -> EngineLoop:
        """Makes the thread that owns the engine; see :class:`engine_loop.EngineLoop`."""
        return EngineLoop(
            lambda: _open(self._arguments),
            self._settings,
            sampler=str(self._arguments.get("sampler_type", "auto")),
            after_step=after_step,
            broken=broken,
        )

    def close(self) -> None:
        """Does nothing: the loop ends the engine."""


def _open(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Opens the LLM; returns it and the class ``SamplingParams``."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            del os.environ[name]
    from tensorrt_llm import LLM, SamplingParams

    return LLM(**arguments), SamplingParams
