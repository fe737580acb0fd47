"""Compile targets, by the name the recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from pipeline.errors import UnsupportedError
from pipeline.targets.base import OwnType, Target

__all__ = ["TARGETS", "Target", "get_target", "own_types"]

TARGETS: Mapping[str, str] = {
    "openvino": "pipeline.targets.openvino.target:OpenVinoTarget",
    "llamacpp": "pipeline.targets.llamacpp.target:LlamaCppTarget",
    "ollama": "pipeline.targets.ollama.target:OllamaTarget",
    "tensorrt": "pipeline.targets.tensorrt.target:TensorRtTarget",
    "llmapi": "pipeline.targets.llmapi.target:LlmApiTarget",
    "edgellm": "pipeline.targets.edgellm.target:EdgeLlmTarget",
    "vllm": "pipeline.targets.vllm.target:VllmTarget",
}
"""Where each target's class is. It is imported when it is asked for, so a start stays cheap."""


def own_types() -> dict[str, tuple[str, OwnType]]:
    """Lists the formats that targets round to themselves, with the name of the first that does.

    Every target's class is imported for it.
    """
    found: dict[str, tuple[str, OwnType]] = {}
    for target in TARGETS:
        for name, own in get_target(target).own_types.items():
            found.setdefault(name, (target, own))
    return found


def get_target(name: str) -> Target:
    """Loads the target of a name.

    Raises:
        UnsupportedError: There is no such target.
    """
    if name not in TARGETS:
        raise UnsupportedError(
            f"there is no compile target {name}", fix=f"Targets: {', '.join(TARGETS)}"
        )
    module, _, attribute = TARGETS[name].partition(":")
    target: Target = getattr(import_module(module), attribute)()
    return target
