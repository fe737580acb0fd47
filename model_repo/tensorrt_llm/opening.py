"""Opens the CPU engine, and what stands beside it, for the front in model.py."""

from __future__ import annotations

from collections.abc import Callable

import triton_python_backend_utils as pb_utils

from .engine import Engine
from .engine_loop import EngineLoop
from .guide_checker import GuideChecker
from .settings import EngineSettings


def open_engine(settings: EngineSettings) -> OpenedEngine:
    """Opens the engine and warms it up.

    Raises:
        RuntimeError: OpenVINO cannot load the engine.
        ValueError: Guided decoding cannot follow this model's tokens.
        MemoryError: The machine has less memory than the KV cache takes.
    """
    guides = _guide_checker(settings)
    try:
        engine = Engine(settings)
        engine.warm_up(settings)
        if guides is not None:
            guides.wait_ready()
    except BaseException:
        # Triton does not call finalize() on a model that did not come up.
        if guides is not None:
            guides.close()
        raise
    if engine.saturates:
        pb_utils.Logger.log_warn(
            "INT8 products saturate on this processor (it has no VNNI), so they are computed "
            "in float32: exactly, and more slowly"
        )
    return OpenedEngine(settings, engine, guides)


class OpenedEngine:
    """The engine, and the process that tries guides."""

    def __init__(
        self, settings: EngineSettings, engine: Engine, guides: GuideChecker | None
    ) -> None:
        self._settings, self._engine, self._guides = settings, engine, guides

    def loop(
        self, *, after_step: Callable[[float], None], broken: Callable[[Exception], None]
    ) -> EngineLoop:
        """Makes the thread that owns the engine; see :class:`engine_loop.EngineLoop`."""
        return EngineLoop(
            self._engine.pipeline,
            self._engine.genai,
            self._engine.tensor,
            self._settings,
            after_step=after_step,
            textless=self._engine.textless,
            **({"check_guide": self._guides.check} if self._guides is not None else {}),
            broken=broken,
        )

    def close(self) -> None:
        """Ends what stands beside the engine; the loop ends the engine itself."""
        if self._guides is not None:
            self._guides.close()


def _guide_checker(settings: EngineSettings) -> GuideChecker | None:
    """Starts the trials before the engine is opened, so that the two load side by side."""
    if not settings.guided_decoding or settings.tokenizer is None or not settings.end_ids:
        return None  # the engine says what is missing
    return GuideChecker(settings.tokenizer, settings.vocab_size, settings.end_ids)
