"""An engine that fails in the middle of its work."""

from __future__ import annotations

_SOURCE = """

class _Raises:
    def __init__(self, pipeline, steps):
        self._pipeline, self._steps = pipeline, steps

    def step(self):
        self._steps -= 1
        if self._steps < 0:
            raise RuntimeError("out of order")
        self._pipeline.step()

    def __getattr__(self, name):
        return getattr(self._pipeline, name)


_warm_up = Engine.warm_up


def _warm_up_and_spoil(self, settings):
    _warm_up(self, settings)
    self.pipeline = _Raises(self.pipeline, {step})


Engine.warm_up = _warm_up_and_spoil
"""


def raising_at(step: int) -> str:
    """Python to put at the end of engine.py in a copy of a repository: its ``step()`` raises.

    Args:
        step: How many steps it makes before, those of warming up not counted.
    """
    return _SOURCE.replace("{step}", str(step))
